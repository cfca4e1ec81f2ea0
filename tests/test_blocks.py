import pytest
import torch
from timm import layers
from torch import nn
from torchvision.models.resnet import BasicBlock

from stma.model.blocks import (
    DepthwiseConv2d,
    DropPath,
    LayerNorm2d,
    Mlp,
    ResidualBlock,
    group_norm,
    per_object,
    split_objects,
)


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (LayerNorm2d(6), layers.LayerNorm2d(6), (2, 6, 4, 5)),
        (LayerNorm2d(6, eps=1e-2), layers.LayerNorm2d(6, eps=1e-2), (2, 6, 4, 5)),
        (Mlp(6, 9), layers.Mlp(6, 9), (2, 5, 6)),
        (Mlp(6, 9, conv=True), layers.Mlp(6, 9, use_conv=True), (2, 6, 4, 5)),
        (ResidualBlock(6, 6), BasicBlock(6, 6, norm_layer=group_norm), (2, 6, 4, 5)),
        (
            ResidualBlock(6, 8, stride=2),
            BasicBlock(6, 8, 2, ResidualBlock(6, 8, stride=2).downsample, norm_layer=group_norm),
            (2, 6, 4, 6),
        ),
    ],
)
def test_parts_are_those_of_timm_and_torchvision(
    ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...]
) -> None:
    """With the same names, in the same order."""
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape)
    assert torch.equal(ours(x), theirs(x))


def test_whole_samples_are_left_out_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    y = layer(torch.ones(4000, 2, 3))
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(y.mean().item() - 1) < 0.05
    assert layer(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_nothing_is_left_out_outside_training_and_nothing_is_saved() -> None:
    layer = DropPath(0.9).eval()
    x = torch.randn(8, 3)
    assert torch.equal(layer(x), x)
    assert layer.state_dict() == {}


def test_objects_are_split_where_no_gradient_is_wanted() -> None:
    x = torch.arange(9.0).view(1, 9, 1).requires_grad_()
    assert [part.shape[1] for part in split_objects(x)] == [9]
    with torch.no_grad():
        assert [part.shape[1] for part in split_objects(x)] == [4, 4, 1]
        assert torch.equal(torch.cat(list(split_objects(x)), dim=1), x)


@pytest.mark.parametrize("layer", [group_norm(16), DepthwiseConv2d(16, 5)])
def test_layers_that_are_slow_in_bf16_on_a_cpu_compute_in_fp32_there(layer: nn.Module) -> None:
    x = torch.randn(2, 16, 6, 7).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x).to(x.dtype), layer.float()(x.float()).to(x.dtype))


def test_a_map_that_objects_share_is_added_to_each() -> None:
    shared, objects = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 4, 5)
    sums = per_object(shared, objects)
    assert torch.equal(sums, objects + shared.repeat_interleave(3, dim=0))
