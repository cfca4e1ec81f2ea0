"""Object features (Eq. 5): one token per object, pooled from its memorised ID values."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stma.model.backbone import STRIDE, map_to_tokens


def object_regions(masks: Tensor) -> Tensor:
    """Where each object is at stride 16: cells that it touches, or all cells if it is nowhere.

    Args:
        masks: ``(B, N, H, W)`` probabilities or hard masks.

    Returns:
        ``(B, N, L)`` bool.
    """
    region = (F.max_pool2d(masks, STRIDE) > 0.5).flatten(2)
    return region | ~region.any(dim=2, keepdim=True)


class ObjectFeatures(nn.Module):
    """``f_o`` of Eq. 5 and the projection and embedding with which ``F_o`` enters STML.

    The maximum over time is taken over memorised frames by the temporal memory; one frame is
    pooled once, when it is written, over the object's own region (ours: over the whole map the
    background's maxima win, and all objects get nearly the same token).
    """

    def __init__(self, value_dim: int, dim: int) -> None:
        super().__init__()
        self.f_o = nn.Linear(value_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = nn.Linear(dim, dim)
        # One vector for all objects: the model is equivariant to their order and not bound to a
        # number of them (ours).
        self.position = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.position, std=0.02)

    def pool(self, values: Tensor, masks: Tensor) -> Tensor:
        """Project and pool one frame.

        Args:
            values: ``(B, N, C, h, w)`` of the value encoder.
            masks: ``(B, N, H, W)`` that they were made from.

        Returns:
            ``(B, N, C)``.
        """
        projected = self.f_o(map_to_tokens(values))
        region = object_regions(masks)[..., None]
        return projected.masked_fill(~region, float("-inf")).amax(dim=2)

    def forward(self, pooled: Tensor) -> Tensor:
        """``F_o`` as it enters the first block, from the maximum over time: ``(B, N, C)``."""
        return self.project(self.norm(pooled)) + self.position
