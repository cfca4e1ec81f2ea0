"""Small parts that several modules of the network share.

LayerNorm2d, Mlp and ResidualBlock are timm's and torchvision's, with the same parameter names, in
the least form that is needed: importing timm.layers costs 2.8 s of CPU time, torchvision 1.5 to 2.6
(measured on a busy Xeon), as much as all else that `stma segment` imports.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CPU_OBJECTS, GPU_OBJECTS = 4, 32  # at once; 2 to 40 were measured on a CPU


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of ``(B, C, H, W)``."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers with GELU between them, for ``(B, L, C)``; with ``conv``, two 1x1
    convolutions, for ``(B, C, H, W)``."""

    def __init__(self, dim: int, hidden_dim: int, conv: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1) if conv else nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1) if conv else nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): drops a residual branch ``(B, ...)`` for some
    samples of a batch in training.

    The probability is a tensor, so that blocks that differ in nothing else share one compiled graph
    (timm's is a number, and so a constant of the graph).
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = torch.rand(shape, device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)


def autocast_on_cpu(x: Tensor) -> bool:
    """Whether an operation on ``x`` would run in half precision on a CPU, which has no fast code
    for some."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class GroupNorm(nn.GroupNorm):
    """GroupNorm; on a CPU never in bf16, where it takes three times as long (channels-last)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype) if autocast_on_cpu(x) else super().forward(x)


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel on its own, as large as what it reads; on a CPU never in bf16,
    where its backward pass takes four times as long.

    Args:
        kernel_size: odd.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        if not autocast_on_cpu(x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def group_norm(dim: int) -> GroupNorm:
    """GroupNorm with at least 8 channels per group and at most 32 groups.

    Not optional: without it, a small model collapsed to background.
    """
    groups = min(32, max(1, dim // 8))
    while dim % groups:
        groups -= 1
    return GroupNorm(groups, dim)


class ResidualBlock(nn.Module):
    """ResNet's basic block with GroupNorm, ``(B, in_dim, H, W)`` to ``(B, dim, H/s, W/s)``, sizes
    divisible by the stride."""

    def __init__(self, in_dim: int, dim: int, stride: int = 1) -> None:
        super().__init__()
        shortcut = None
        if stride != 1 or in_dim != dim:
            # Averaged, not strided (ResNet-D): a strided 1x1 convolution drops three pixels of
            # four, and with 8 channels its gradient corrupted the heap on a CPU (torch 2.15,
            # channels-last).
            shortcut = nn.Sequential(
                nn.AvgPool2d(stride) if stride != 1 else nn.Identity(),
                nn.Conv2d(in_dim, dim, 1, bias=False),
                group_norm(dim),
            )
        self.conv1 = nn.Conv2d(in_dim, dim, 3, stride, padding=1, bias=False)
        self.bn1 = group_norm(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn2 = group_norm(dim)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


def init_convolutions(module: nn.Module) -> None:
    """Kaiming-normal convolutions, as in torchvision's ResNet."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def split_objects(x: Tensor) -> Sequence[Tensor]:
    """``(B, N, ...)`` in parts of a few objects, so that many need bounded memory and, on a CPU,
    its cache holds what a part needs; all at once where a gradient or a graph is wanted."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (x,)
    return x.split(CPU_OBJECTS if x.device.type == "cpu" else GPU_OBJECTS, dim=1)


def per_object(shared: Tensor, objects: Tensor) -> Tensor:
    """Add a map that all objects of a frame share to their own maps.

    With a convolution on either side this is one convolution of the concatenated maps, whose
    shared part is computed once for all objects.

    Args:
        shared: ``(B, C, H, W)``.
        objects: ``(B * N, C, H, W)``.
    """
    # Channels last, so that the gradient's sum over the objects reads memory in order.
    each = objects.permute(0, 2, 3, 1).unflatten(0, (shared.shape[0], -1))
    return (each + shared.permute(0, 2, 3, 1)[:, None]).flatten(0, 1).permute(0, 3, 1, 2)
