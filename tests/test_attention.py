import pytest
import torch

from stma.model.attention import Attention, TransformerBlock


def test_attention_equals_the_textbook_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(dim=6, num_heads=2)
    x = torch.randn(1, 5, 6)
    query, keys = attention.project(x)

    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / 3**0.5).softmax(-1)
        heads.append(weights @ v[..., head])
    expected = attention.proj(torch.cat(heads, dim=-1))
    assert torch.allclose(attention(query, keys), expected, atol=1e-6)


def test_masked_keys_are_as_if_they_were_not_there() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(8, num_heads=2)
    x = torch.randn(1, 4, 8)
    query, keys = block.project(x)
    shorter = type(keys)(keys.key[:, :, :3], keys.value[:, :, :3])
    mask = torch.tensor([True, True, True, False])[None, None, None]
    assert torch.allclose(
        block.update(x, query, keys, mask), block.update(x, query, shorter), atol=1e-6
    )


def test_heads_have_to_divide_the_width() -> None:
    with pytest.raises(ValueError, match="10 is not divisible by 3"):
        Attention(dim=10, num_heads=3)
