from dataclasses import replace

import pytest
import torch

from stma.model.attention import TransformerBlock
from stma.model.probing import Look, Watched, mean_look, spread_of
from stma.model.streams import (
    FullStreams,
    JointSelfAttention,
    Others,
    Streams,
    WithoutObjects,
    WithoutReferences,
)


@pytest.fixture
def blocks() -> list[TransformerBlock]:
    torch.manual_seed(0)
    return [TransformerBlock(8, num_heads=2) for _ in range(2)]


def look_at(streams: Streams, blocks, tokens: torch.Tensor, prepared) -> Look:
    watched = Watched(streams)
    with torch.no_grad():
        encoded = watched.encode(blocks, tokens, prepared)
        assert torch.equal(encoded, streams.encode(blocks, tokens, prepared))
    (look,) = watched.looks  # and not a second one, of what is run without it
    return look


def with_queries_of_zero(blocks) -> None:
    for block in blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)


def test_uniform_attention_by_hand(blocks) -> None:
    """With queries of zero every key gets the same: 4 own, 2 references of 4, so a third each."""
    with_queries_of_zero(blocks)
    streams = FullStreams()
    prepared = streams.prepare(blocks, torch.randn(3, 2, 4, 8), torch.randn(3, 5, 8), None)
    look = look_at(streams, blocks, torch.randn(3, 4, 8), prepared)
    assert look.groups == ("itself", "reference1", "reference2")
    torch.testing.assert_close(look.shares, torch.full((2, 3), 1 / 3))
    torch.testing.assert_close(look.spreads, torch.ones(2))


def test_a_frame_that_reads_only_itself_is_not_recorded(blocks) -> None:
    watched = Watched(FullStreams())
    watched.encode(blocks, torch.randn(3, 4, 8), None)
    assert watched.looks == []


def test_padded_objects_get_nothing(blocks) -> None:
    valid = torch.tensor([[True, False]])
    streams = WithoutReferences()
    prepared = streams.prepare(blocks, None, torch.randn(1, 2, 8), valid)
    prepared = replace(prepared, groups=(("one", 1), ("padding", 1)))
    look = look_at(streams, blocks, torch.randn(1, 4, 8), prepared)
    assert look.shares[:, 2].tolist() == [0, 0]
    torch.testing.assert_close(look.shares.sum(dim=1), torch.ones(2))


def test_a_key_like_the_query_draws_attention(blocks) -> None:
    tokens = torch.randn(1, 4, 8)
    streams = FullStreams()
    prepared = streams.prepare(blocks, torch.randn(1, 1, 4, 8), None, None)
    query, _ = blocks[0].project(tokens)
    keys = prepared.keys[0]._replace(key=100 * query)
    drawn = Others([keys, prepared.keys[1]], prepared.groups)
    assert look_at(streams, blocks, tokens, drawn).shares[0, 1] > 0.9


def test_in_joint_attention_it_is_the_frame_that_is_looked_at(blocks) -> None:
    references, objects = torch.randn(1, 2, 4, 8), torch.randn(1, 3, 8)
    tokens, streams = torch.randn(1, 4, 8), JointSelfAttention()
    look = look_at(streams, blocks, tokens, streams.prepare(blocks, references, objects, None))
    assert look.groups == ("objects", "reference1", "reference2", "itself")
    torch.testing.assert_close(look.shares.sum(dim=1), torch.ones(2))
    flipped = streams.prepare(blocks, references.flip(1), objects, None)
    other = look_at(streams, blocks, tokens, flipped)
    torch.testing.assert_close(look.shares[:, [0, 2, 1, 3]], other.shares)


def test_the_references_attention_on_objects_by_hand(blocks) -> None:
    """Queries of zero: 4 own keys and 2 objects, so a third; of which one is padding, a fifth."""
    with_queries_of_zero(blocks)
    references, objects = torch.randn(2, 3, 4, 8), torch.randn(2, 2, 8)
    watched = Watched(FullStreams())
    for valid in (None, torch.tensor([[True, False], [False, True]])):
        watched.prepare(blocks, references, objects, valid)
    assert [shares.tolist() for shares in watched.object_shares] == [
        [pytest.approx(1 / 3)],
        [pytest.approx(1 / 5)],
    ]
    Watched(WithoutObjects()).prepare(blocks, references, None, None)
    assert len(watched.object_shares) == 2


def test_compiled_blocks_are_observed(blocks) -> None:
    for block in blocks:
        block.project = torch.compile(block.project, backend="eager")
        block.update = torch.compile(block.update, backend="eager")
    streams, tokens = FullStreams(), torch.randn(1, 4, 8)
    prepared = streams.prepare(blocks, torch.randn(1, 2, 4, 8), torch.randn(1, 3, 8), None)
    streams.encode(blocks, tokens, prepared)  # compiled here, where nobody looks
    look_at(streams, blocks, tokens, prepared)


def test_spread_by_hand() -> None:
    """All keys alike, two of four, one of four; and the mean over tokens."""
    weights = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    for row, expected in zip(weights, (1, 0.5, 0.25), strict=True):
        assert spread_of(row.view(1, 1, 1, 4)) == pytest.approx(expected)
    assert spread_of(weights[None, None]) == pytest.approx(1.75 / 3)
    both = weights[1:].view(
        2, 1, 1, 4
    )  # two keys are hidden from the first, and none from the other
    mask = torch.tensor([[False, True, True, False], [True] * 4]).view(2, 1, 1, 4)
    assert spread_of(both, mask) == pytest.approx((1 + 0.25) / 2)


def look(*groups: str, share: float) -> Look:
    return Look(groups, torch.full((2, len(groups)), share), torch.full((2,), share))


def test_looks_at_unlike_frames_are_not_mixed() -> None:
    one, two = ("itself", "reference1"), ("itself", "reference1", "reference2")
    mean = mean_look([look(*one, share=0.5), look(*two, share=0.2), look(*two, share=0.4)])
    assert (mean.groups, mean.frames, mean.of) == (two, 2, 3)
    torch.testing.assert_close(mean.shares, torch.full((2, 3), 0.3))
    torch.testing.assert_close(mean.spreads, torch.full((2,), 0.3))
    # A clip of three frames has one of each: the larger.
    assert mean_look([look(*one, share=0.5), look(*two, share=0.2)]).groups == two
    assert mean_look([]) is None


@pytest.mark.parametrize(
    ("streams", "names"),
    [
        (FullStreams(), ("reference1", "reference2")),
        (WithoutReferences(), ("objects",)),
        (JointSelfAttention(), ("objects", "reference1", "reference2")),
    ],
)
def test_groups_name_all_that_is_read(blocks, streams, names) -> None:
    references, objects = torch.randn(1, 2, 4, 8), torch.randn(1, 3, 8)
    prepared = streams.prepare(blocks, references, objects, None)
    assert tuple(name for name, _ in prepared.groups) == names
    read = (
        prepared.keys[0].key.shape[2] if isinstance(prepared, Others) else prepared.tokens.shape[1]
    )
    assert sum(length for _, length in prepared.groups) == read
