"""Object features (Eq. 5): one token per object, pooled from its memorised ID values."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stma.model.backbone import STRIDE, map_to_tokens
from stma.structures import at_least_fp32

CENTER_MOMENTUM = 0.95


def object_regions(masks: Tensor) -> Tensor:
    """Where each object is at stride 16: cells that it touches, or all cells if it is absent.

    Args:
        masks: ``(B, N, H, W)`` probabilities or hard masks.

    Returns:
        ``(B, N, L)`` bool.
    """
    region = (F.max_pool2d(masks, STRIDE) > 0.5).flatten(2)
    return region | ~region.any(dim=2, keepdim=True)


class ObjectFeatures(nn.Module):
    """``f_o`` of Eq. 5, and the projection and embedding with which ``F_o`` enters STML.

    The temporal memory takes the maximum over memorised frames; each frame is pooled once, when it
    is written, over the object's own region (ours: over the whole map, the background's maxima win,
    and all objects get nearly the same token).
    """

    center: Tensor
    num_updates: Tensor

    def __init__(self, value_dim: int, dim: int) -> None:
        super().__init__()
        self.f_o = nn.Linear(value_dim, dim)
        # Most of a pooled value says "this is an object", the same for all of them. Unless the
        # mean over objects is subtracted, trained tokens have a cosine of 0.99 (ours).
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self._observed: Tensor | None = None  # (C + 1): sum, and number of objects
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = nn.Linear(dim, dim, bias=False)
        # One vector for all objects: the model is equivariant to their order and not limited to a
        # certain number (ours).
        self.position = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.position, std=0.02)

    def pool(self, values: Tensor, masks: Tensor) -> Tensor:
        """Project and pool one frame.

        Args:
            values: ``(B, N, C, h, w)`` from the value encoder.
            masks: ``(B, N, H, W)`` that they were encoded from.

        Returns:
            ``(B, N, C)``.
        """
        projected = self.f_o(map_to_tokens(values))
        region = object_regions(masks)[..., None]
        return projected.masked_fill(~region, float("-inf")).amax(dim=2)

    def forward(
        self, pooled: Tensor, valid_objects: Tensor | None = None, observe: bool = True
    ) -> Tensor:
        """``F_o`` as it enters the first block.

        Args:
            pooled: ``(B, N, C)``, the maximum over time.
            valid_objects: ``(B, N)`` bool, False for padding, which the running mean leaves out.
            observe: whether these objects count in the running mean, in training.

        Returns:
            ``(B, N, C)``.
        """
        if self.training and observe:
            self._observe(pooled.detach(), valid_objects)
        return self.project(self.norm(pooled - self.center)) + self.position

    def _observe(self, pooled: Tensor, valid_objects: Tensor | None) -> None:
        """Add to the sum and number of objects seen, for `update_center`."""
        pooled = at_least_fp32(pooled)
        if valid_objects is None:
            valid_objects = torch.ones_like(pooled[..., 0], dtype=torch.bool)
        counted = torch.cat([pooled, torch.ones_like(pooled[..., :1])], dim=-1)
        total = counted.masked_fill(~valid_objects[..., None], 0.0).sum(dim=(0, 1))
        self._observed = total if self._observed is None else self._observed + total

    def forget_observed(self) -> None:
        """Discard what was seen since the last update, because the step was not finite."""
        self._observed = None

    @torch.no_grad()
    def update_center(self, over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move the running mean towards the objects seen since the last call.

        Args:
            over_processes: sums a tensor over all training processes.

        Training calls this once per optimiser step, so that all forward passes of a step see the
        same mean, however its batch is split.
        """
        if self._observed is None:
            return
        observed = self._observed if over_processes is None else over_processes(self._observed)
        mean = observed[:-1] / observed[-1]
        self._observed = None
        # A plain average at first, then an exponential one.
        rate = torch.clamp(1.0 / (self.num_updates + 1), min=1 - CENTER_MOMENTUM)
        self.center.lerp_(mean.to(self.center.dtype), rate.to(self.center.dtype))
        self.num_updates += 1


class NoObjectFeatures(nn.Module):
    """For the variants without ``F_o``: nothing is pooled, and there is nothing to train."""

    def pool(self, values: Tensor, masks: Tensor) -> Tensor:
        """Empty tokens ``(B, N, 0)``, since the memory keeps some for every frame."""
        return values.new_zeros(*values.shape[:2], 0)

    def forget_observed(self) -> None:
        """See :meth:`ObjectFeatures.forget_observed`."""

    def update_center(self, over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """See :meth:`ObjectFeatures.update_center`."""
