"""The information flow of Eq. 2-4: objects -> references -> test, never back."""

import torch

from stma.model.attention import TransformerBlock
from stma.model.stml import encode_references, encode_test

DIM, TOKENS, REFERENCES, OBJECTS = 16, 6, 3, 4


def test_equal_to_one_block_masked_attention_over_all_tokens() -> None:
    """Eq. 2-4 written out a second way: joint attention over [O; R; T] with a mask."""
    torch.manual_seed(0)
    blocks = [TransformerBlock(DIM, num_heads=2).double() for _ in range(3)]
    test, references, objects = (
        torch.randn(2, *shape, DIM, dtype=torch.float64)
        for shape in ((TOKENS,), (REFERENCES, TOKENS), (OBJECTS,))
    )
    sizes = [OBJECTS] + [TOKENS] * REFERENCES + [TOKENS]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    is_object, is_test = owner == 0, owner == len(sizes) - 1
    same = owner[:, None] == owner[None]
    allowed = same | (~is_test[:, None] & is_object[None]) | (is_test[:, None] & ~is_object[None])

    tokens = torch.cat([objects, references.flatten(1, 2), test], dim=1)
    for block in blocks:
        tokens = block.update(tokens, *block.project(tokens), allowed)
    cache, _ = encode_references(blocks, references, objects)
    features = encode_test(blocks, test, cache)
    assert torch.allclose(features, tokens[:, is_test], atol=1e-12)
    assert not allowed[is_object][:, ~is_object].any()
