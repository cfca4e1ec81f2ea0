import torch

from stma.model.value_encoder import ValueEncoder


def encoder() -> ValueEncoder:
    torch.manual_seed(0)
    return ValueEncoder(dim=6, widths=(8, 8, 16), depth=2).eval()


def test_one_value_map_per_object_at_stride_16() -> None:
    values = encoder()(torch.randn(2, 3, 32, 48), torch.rand(2, 5, 32, 48))
    assert values.shape == (2, 5, 6, 2, 3)


def test_objects_permute_with_their_masks() -> None:
    model, image, masks = encoder(), torch.randn(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    order = [2, 0, 1]
    assert torch.allclose(model(image, masks)[:, order], model(image, masks[:, order]), atol=1e-5)


def test_split_stem_is_one_convolution_of_image_own_mask_and_other_masks() -> None:
    model, image, masks = encoder(), torch.randn(1, 3, 32, 32), torch.rand(1, 2, 32, 32)
    own = torch.cat([image, masks[:, :1], masks[:, 1:]], dim=1)
    weight = torch.cat([model.stem_image.weight, model.stem_masks.weight], dim=1)
    x = torch.nn.functional.conv2d(own, weight, stride=2, padding=3)
    expected = model.project(model.stages(model.stem(x)))
    assert torch.allclose(model(image, masks)[:, 0], expected, atol=1e-5)
