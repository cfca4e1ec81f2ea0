"""The decoder of Eq. 1: readouts and finer features to one logit map per object."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from stma.model.blocks import ResidualBlock, group_norm, init_convolutions, per_object


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
        batch = readout.shape[0]
        x = self.fuse(
            per_object(self.from_features(features), self.from_readout(readout.flatten(0, 1)))
        )
        for upsample, fine_features in zip((self.to_stride8, self.to_stride4), fine, strict=True):
            x = upsample(x, fine_features)
        logits = F.interpolate(self.head(x), scale_factor=4, mode="bilinear", align_corners=False)
        return logits.unflatten(0, (batch, -1)).squeeze(2)
