"""The information flow of Eq. 2-4: objects -> references -> test, never back."""

import pytest
import torch
from torch import Tensor

from stma.model.attention import TransformerBlock
from stma.model.stml import ReferenceCache, encode_test
from stma.model.stml import encode_references as encode_both

DIM, TOKENS, REFERENCES, OBJECTS = 16, 6, 3, 4


@pytest.fixture
def blocks() -> list[TransformerBlock]:
    torch.manual_seed(0)
    return [TransformerBlock(DIM, num_heads=2).double() for _ in range(3)]


@pytest.fixture
def streams() -> tuple[Tensor, Tensor, Tensor]:
    """Test tokens, reference tokens, object tokens."""
    generator = torch.Generator().manual_seed(1)

    def tokens(*shape: int) -> Tensor:
        return torch.randn(*shape, DIM, generator=generator, dtype=torch.float64)

    return tokens(2, TOKENS), tokens(2, REFERENCES, TOKENS), tokens(2, OBJECTS)


def encode_references(*arguments) -> ReferenceCache:
    return encode_both(*arguments)[0]


def of_reference(cache: ReferenceCache, index: int) -> list[Tensor]:
    span = slice(index * TOKENS, (index + 1) * TOKENS)
    return [part[:, :, span] for keys in cache for part in keys]


def test_changing_one_reference_leaves_the_others_alone(blocks, streams) -> None:
    _, references, objects = streams
    before = encode_references(blocks, references, objects)
    changed = references.clone()
    changed[:, 0, 0, 0] += 1
    after = encode_references(blocks, changed, objects)
    for index in (1, 2):
        pairs = zip(of_reference(before, index), of_reference(after, index), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.allclose(of_reference(before, 0)[-1], of_reference(after, 0)[-1])


def test_references_read_the_objects_and_the_test_frame_reads_the_references(
    blocks, streams
) -> None:
    test, references, objects = streams
    before = encode_references(blocks, references, objects)
    after = encode_references(blocks, references, objects.flip(2))
    # The first block's keys are made before anything is read.
    assert torch.equal(before[0].key, after[0].key)
    assert not torch.allclose(before[1].key, after[1].key)
    assert not torch.allclose(
        encode_test(blocks, test, before), encode_test(blocks, test, after), atol=1e-6
    )


def test_the_order_of_objects_does_not_matter_to_references(blocks, streams) -> None:
    _, references, objects = streams
    before = encode_references(blocks, references, objects)
    after = encode_references(blocks, references, objects[:, [2, 0, 3, 1]])
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a.key, b.key)
        assert torch.allclose(a.value, b.value)


def test_the_order_of_references_does_not_matter_to_the_test_frame(blocks, streams) -> None:
    test, references, objects = streams
    features = encode_test(blocks, test, encode_references(blocks, references, objects))
    permuted = encode_references(blocks, references[:, [1, 2, 0]], objects)
    assert torch.allclose(features, encode_test(blocks, test, permuted))


def test_padded_objects_change_nothing(blocks, streams) -> None:
    _, references, objects = streams
    without = encode_references(blocks, references, objects[:, :2])
    valid = torch.tensor([[True, True, False, False]] * 2)
    padded = encode_references(blocks, references, objects, valid)
    for a, b in zip(without, padded, strict=True):
        assert torch.allclose(a.key, b.key)
        assert torch.allclose(a.value, b.value)


def test_equal_to_one_block_masked_attention_over_all_tokens(blocks, streams) -> None:
    """Eq. 2-4 written out a second way: joint attention over [O; R; T] with a mask."""
    test, references, objects = streams
    sizes = [OBJECTS] + [TOKENS] * REFERENCES + [TOKENS]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    is_object, is_test = owner == 0, owner == len(sizes) - 1
    same = owner[:, None] == owner[None]
    allowed = same | (~is_test[:, None] & is_object[None]) | (is_test[:, None] & ~is_object[None])

    tokens = torch.cat([objects, references.flatten(1, 2), test], dim=1)
    for block in blocks:
        tokens = block.update(tokens, *block.project(tokens), allowed)
    features = encode_test(blocks, test, encode_references(blocks, references, objects))
    assert torch.allclose(features, tokens[:, is_test], atol=1e-12)
    assert not allowed[is_object][:, ~is_object].any()
