import torch

from stma.model.value_encoder import ValueEncoder


def encoder() -> ValueEncoder:
    torch.manual_seed(0)
    return ValueEncoder(dim=6, token_dim=10, widths=(8, 8, 16), depth=2).eval()


def inputs(objects: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, tokens and masks of frames of 32 x 48."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 3, 32, 48, generator=generator),
        torch.randn(batch, 10, 2, 3, generator=generator),
        torch.rand(batch, objects, 32, 48, generator=generator),
    )


def test_one_value_map_per_object_at_stride_16() -> None:
    assert encoder()(*inputs(objects=5, batch=2)).shape == (2, 5, 6, 2, 3)


def test_objects_permute_with_their_masks() -> None:
    model, (image, tokens, masks) = encoder(), inputs(3)
    order = [2, 0, 1]
    expected = model(image, tokens, masks)[:, order]
    assert torch.allclose(expected, model(image, tokens, masks[:, order]), atol=1e-5)


def test_split_parts_are_convolutions_of_concatenated_inputs() -> None:
    """Of image, own mask and other masks at the stem; of features and tokens at the end."""
    model, (image, tokens, masks) = encoder(), inputs(2)
    own = torch.cat([image, masks[:, :1], masks[:, 1:]], dim=1)
    weight = torch.cat([model.stem_image.weight, model.stem_masks.weight], dim=1)
    x = torch.nn.functional.conv2d(own, weight, stride=2, padding=3)
    joined = torch.cat([model.stages(model.stem(x)), tokens], dim=1)
    weight = torch.cat([model.project.weight, model.project_tokens.weight], dim=1)
    expected = torch.nn.functional.conv2d(joined, weight, model.project.bias)
    assert torch.allclose(model(image, tokens, masks)[:, 0], expected, atol=1e-5)
