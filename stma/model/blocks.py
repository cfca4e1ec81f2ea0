"""Small convolutional parts that the value encoder and the decoder share."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


def group_norm(dim: int) -> nn.GroupNorm:
    """GroupNorm with at least 8 channels per group and at most 32 groups.

    Not optional: without it, a small model collapsed to background.
    """
    groups = min(32, max(1, dim // 8))
    while dim % groups:
        groups -= 1
    return nn.GroupNorm(groups, dim)


def residual_block(in_dim: int, dim: int, stride: int = 1) -> BasicBlock:
    """ResNet's basic block with GroupNorm, ``(B, in_dim, H, W)`` to ``(B, dim, H/s, W/s)``, sizes
    divisible by the stride."""
    shortcut = None
    if stride != 1 or in_dim != dim:
        # Averaged, not strided (ResNet-D): a strided 1x1 convolution drops three pixels of four,
        # and with 8 channels its gradient corrupted the heap on a CPU (torch 2.15, channels-last).
        shortcut = nn.Sequential(
            nn.AvgPool2d(stride) if stride != 1 else nn.Identity(),
            nn.Conv2d(in_dim, dim, 1, bias=False),
            group_norm(dim),
        )
    return BasicBlock(in_dim, dim, stride, shortcut, norm_layer=group_norm)


def init_convolutions(module: nn.Module) -> None:
    """Kaiming-normal convolutions, as in torchvision's ResNet."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def per_object(shared: Tensor, objects: Tensor) -> Tensor:
    """Add a map that all objects of a frame share to their own maps.

    With a convolution on either side this is one convolution of the concatenated maps, whose
    shared part is computed once for all objects.

    Args:
        shared: ``(B, C, H, W)``.
        objects: ``(B * N, C, H, W)``.
    """
    batch = shared.shape[0]
    return (objects.unflatten(0, (batch, -1)) + shared[:, None]).flatten(0, 1)
