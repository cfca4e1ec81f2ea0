"""The decoder of Eq. 1: readouts and finer features to one logit map per object, and soft
aggregation of these maps."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stma.model.blocks import (
    ResidualBlock,
    group_norm,
    init_convolutions,
    per_object,
    split_objects,
)

EPSILON = 1e-7
LARGEST_LOGIT = math.log((1 - EPSILON) / EPSILON)


class UpsampleBlock(nn.Module):
    """Upsample twofold, add the frame's own finer features, and refine."""

    def __init__(self, in_dim: int, fine_dim: int, dim: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(fine_dim, in_dim, 1)
        self.refine = ResidualBlock(in_dim, dim)

    def forward(self, x: Tensor, fine: Tensor) -> Tensor:
        """``x (B * N, C, h, w)`` and ``fine (B, C', 2h, 2w)`` to ``(B * N, C'', 2h, 2w)``."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.refine(per_object(self.skip(fine), x))


class Decoder(nn.Module):
    """Residual upsampling blocks from stride 16 to 4, then bilinear to full size.

    Readout and ``F_t`` are concatenated (ours) by adding two convolutions, so that the one of
    ``F_t``, like the skip connections, is computed once for all objects.

    Args:
        value_dim: channels of a readout.
        dim: channels of ``F_t``.
        fine_dims: channels at strides 8 and 4.
        widths: the decoder's own channels at strides 16 and 8, and at stride 4.
    """

    def __init__(
        self, value_dim: int, dim: int, fine_dims: tuple[int, int], widths: Sequence[int]
    ) -> None:
        super().__init__()
        coarse, fine = widths
        self.from_readout = nn.Conv2d(value_dim, coarse, 3, padding=1)
        self.from_features = nn.Conv2d(dim, coarse, 3, padding=1, bias=False)
        self.fuse = nn.Sequential(
            group_norm(coarse), nn.ReLU(inplace=True), ResidualBlock(coarse, coarse)
        )
        self.to_stride8 = UpsampleBlock(coarse, fine_dims[0], fine)
        self.to_stride4 = UpsampleBlock(fine, fine_dims[1], fine)
        self.head = nn.Conv2d(fine, 1, 3, padding=1)
        self.apply(init_convolutions)
        # Kaiming's fan-out of one channel would begin with logits of +-10: sure, and wrong.
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, readout: Tensor, features: Tensor, fine: tuple[Tensor, Tensor]) -> Tensor:
        """Decode.

        Args:
            readout: ``(B, N, C, h, w)``.
            features: ``F_t (B, C, h, w)``.
            fine: ``F_t^{1/8} (B, C8, 2h, 2w)`` and ``F_t^{1/4} (B, C4, 4h, 4w)``.

        Returns:
            Logits ``(B, N, H, W)``.
        """
        parts = [self._decode(some, features, fine) for some in split_objects(readout)]
        return torch.cat(parts, dim=1)

    def _decode(self, readout: Tensor, features: Tensor, fine: tuple[Tensor, Tensor]) -> Tensor:
        batch = readout.shape[0]
        x = self.fuse(
            per_object(self.from_features(features), self.from_readout(readout.flatten(0, 1)))
        )
        for upsample, fine_features in zip((self.to_stride8, self.to_stride4), fine, strict=True):
            x = upsample(x, fine_features)
        logits = F.interpolate(self.head(x), scale_factor=4, mode="bilinear", align_corners=False)
        return logits.unflatten(0, (batch, -1)).squeeze(2)


def soft_aggregate(logits: Tensor, valid_objects: Tensor | None = None) -> Tensor:
    """Soft aggregation (STM): object probabilities ``p_i``, a background of ``prod(1 - p_i)``.

    The result holds the logits of all probabilities, clamped to ``[1e-7, 1 - 1e-7]``. It is
    computed from logits: when ``p`` is close to 1, ``1 - p`` has no digits left in fp32.

    Args:
        logits: ``(B, N, H, W)``, each object on its own.
        valid_objects: ``(B, N)`` bool; the others take no part.

    Returns:
        ``(B, N+1, H, W)``, background first; the softmax is the joint distribution. Objects that
        take no part hold ``-inf``.
    """
    logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    if valid_objects is not None:
        logits = logits.masked_fill(~valid_objects[:, :, None, None], float("-inf"))
    # -log of the background's probability: the sum of -log(1 - p_i).
    surprise = F.softplus(logits).sum(dim=1, keepdim=True).clamp(min=EPSILON)
    background = -surprise - torch.log(-torch.expm1(-surprise))
    return torch.cat([background.clamp(min=-LARGEST_LOGIT), logits], dim=1)
