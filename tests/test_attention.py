import pytest
import torch

from stma.model.attention import Attention, TransformerBlock, attend
from stma.structures import KeyValue


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


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_of_training_on_a_cpu_are_attention(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 30, 16).bfloat16()
    mask = torch.rand(2, 1, 1, 30) > 0.3 if masked else None

    def result_and_gradient(dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        result = attend(inputs[0], KeyValue(*inputs[1:]), mask)
        return [result, *torch.autograd.grad(result.square().sum(), inputs)]

    for ours, exact in zip(
        result_and_gradient(torch.bfloat16), result_and_gradient(torch.float64), strict=True
    ):
        assert (ours - exact).norm() < 0.01 * exact.norm()
