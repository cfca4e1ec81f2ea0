"""Stochastic depth (Huang et al., ECCV 2016)."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a residual branch ``(B, ...)`` for some samples of a batch in training.

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
