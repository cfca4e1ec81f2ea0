import pytest
import torch

from stma.model.attention import TransformerBlock
from stma.model.attention_shares import (
    Look,
    attention_weights,
    mean_look,
    object_shares,
    share_of_groups,
    spread_of,
)
from stma.model.streams import FullStreams, JointSelfAttention, Others, WithoutReferences


@pytest.fixture
def blocks() -> list[TransformerBlock]:
    torch.manual_seed(0)
    return [TransformerBlock(8, num_heads=2) for _ in range(2)]


def attention_shares(blocks, tokens, prepared, segments) -> torch.Tensor:
    weights = attention_weights(blocks, tokens, prepared)
    return torch.stack([share_of_groups(each, segments) for each in weights])


def test_uniform_attention_by_hand(blocks) -> None:
    """With queries of zero every key gets the same: 4 own, 2 references of 4, so a third each."""
    for block in blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
    prepared = FullStreams().prepare(blocks, torch.randn(3, 2, 4, 8), torch.randn(3, 5, 8), None)
    shares = attention_shares(blocks, torch.randn(3, 4, 8), prepared, [4, 4])
    assert shares.shape == (2, 3)
    torch.testing.assert_close(shares, torch.full((2, 3), 1 / 3))
    assert attention_shares(blocks, torch.randn(3, 4, 8), None, []).tolist() == [[1], [1]]


def test_padded_objects_get_nothing(blocks) -> None:
    valid = torch.tensor([[True, False]])
    prepared = WithoutReferences().prepare(blocks, None, torch.randn(1, 2, 8), valid)
    shares = attention_shares(blocks, torch.randn(1, 4, 8), prepared, [1, 1])
    assert shares[:, 2].tolist() == [0, 0]
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))


def test_a_key_like_the_query_draws_attention(blocks) -> None:
    tokens = torch.randn(1, 4, 8)
    prepared = FullStreams().prepare(blocks, torch.randn(1, 1, 4, 8), None, None)
    query, _ = blocks[0].project(tokens)
    keys = prepared.keys[0]._replace(key=100 * query)
    drawn = Others([keys, prepared.keys[1]], prepared.groups)
    assert attention_shares(blocks, tokens, drawn, [4])[0, 1] > 0.9


def test_in_joint_attention_the_frame_comes_first(blocks) -> None:
    """The tokens that leave are those of the variant itself: the second block sees the same."""
    references, objects, tokens = (
        torch.randn(1, 2, 4, 8),
        torch.randn(1, 3, 8),
        torch.randn(1, 4, 8),
    )
    prepared = JointSelfAttention().prepare(blocks, references, objects, None)
    shares = attention_shares(blocks, tokens, prepared, [3, 4, 4])
    assert shares.shape == (2, 4)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
    flipped = JointSelfAttention().prepare(blocks, references.flip(1), objects, None)
    other = attention_shares(blocks, tokens, flipped, [3, 4, 4])
    torch.testing.assert_close(shares[:, [0, 1, 3, 2]], other)


def test_the_references_attention_on_objects_by_hand(blocks) -> None:
    """Queries of zero: 4 own keys and 2 objects, so a third; of which one is padding, a fifth."""
    for block in blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
    references, objects = torch.randn(2, 3, 4, 8), torch.randn(2, 2, 8)
    shares = object_shares(blocks, references, objects, None)
    torch.testing.assert_close(shares, torch.full((1,), 1 / 3))
    valid = torch.tensor([[True, False], [False, True]])
    torch.testing.assert_close(
        object_shares(blocks, references, objects, valid), torch.full((1,), 1 / 5)
    )


def test_the_references_tokens_are_those_of_the_streams(blocks) -> None:
    """What the second block's share is made of: the keys that the cache has for it."""
    blocks = [*blocks, TransformerBlock(8, num_heads=2)]
    references, objects = torch.randn(1, 2, 4, 8), torch.randn(1, 3, 8)
    seen = []
    project = blocks[1].project
    blocks[1].project = lambda tokens: seen.append(tokens) or project(tokens)
    FullStreams().prepare(blocks, references, objects, None)
    object_shares(blocks, references, objects, None)
    theirs, ours = seen[:2], seen[2:]
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b)


def test_spread_by_hand() -> None:
    """All keys alike, two of four, one of four; and the mean over tokens."""
    weights = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    for row, expected in zip(weights, (1, 0.5, 0.25), strict=True):
        assert spread_of(row.view(1, 1, 1, 4)) == pytest.approx(expected)
    assert spread_of(weights[None, None]) == pytest.approx(1.75 / 3)
    both = weights[1:].view(
        2, 1, 1, 4
    )  # two keys are hidden from the first, and none from the other
    assert spread_of(both, torch.tensor([2, 0])) == pytest.approx((1 + 0.25) / 2)


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
