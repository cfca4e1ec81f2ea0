"""The plain ViT backbone of Table 2, with the parameter names of MAE, MoCo v3 and timm."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stma.model.attention import BlockInHalves, TransformerBlock
from stma.model.backbone import (
    PRETRAINING_GRID,
    STRIDE,
    Backbone,
    FrameEmbedding,
    ResampledPositions,
    init_token_projection,
    init_transformer_weights,
    map_to_tokens,
    sinusoidal_position_embedding,
    tokens_to_map,
)
from stma.model.blocks import LayerNorm2d
from stma.model.convvit import ConvStem


class PatchProjection(nn.Module):
    """``(B, 3, H, W)`` to ``(B, C, H/16, W/16)`` (``patch_embed.proj`` in checkpoints)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=STRIDE, stride=STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def upsampling(in_dim: int, dim: int) -> nn.Sequential:
    """``(B, C, h, w)`` to ``(B, C', 2h, 2w)``."""
    return nn.Sequential(nn.ConvTranspose2d(in_dim, dim, 2, stride=2), LayerNorm2d(dim), nn.GELU())


class OneStride(Backbone):
    """A backbone without stages at strides 8 and 4.

    What supplies these features is ours, not the paper's: transposed convolutions on the last
    feature, as in ViTDet and SimVOS, or a convolutional stem on the image, whose features have
    edges in them.
    """

    added = ("stem.", "to_stride8.", "to_stride4.")
    stem: ConvStem | None

    def add_fine(
        self, fine_dims: Sequence[int], stem_depths: Sequence[int] | None, mlp_ratio: float
    ) -> None:
        """Build the stem or the pyramid.

        Args:
            fine_dims: channels at strides 8 and 4.
            stem_depths: convolutional blocks of the stem at strides 4 and 8; None for no stem.
        """
        stride8_dim, stride4_dim = fine_dims
        self.fine_dims = (stride8_dim, stride4_dim)
        self.stem = None
        if stem_depths is not None:
            self.stem = ConvStem((stride4_dim, stride8_dim), stem_depths, mlp_ratio)
        else:
            self.to_stride8 = upsampling(self.dim, stride8_dim)
            self.to_stride4 = upsampling(stride8_dim, stride4_dim)

    def embedding(self, images: Tensor, tokens: Tensor, grid: tuple[int, int]) -> FrameEmbedding:
        """A frame's tokens, with the stem's features if there is one."""
        return FrameEmbedding(tokens, grid, None if self.stem is None else self.stem(images))

    def fine_features(self, frame: FrameEmbedding, features: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`stma.model.backbone.Backbone.fine_features`; made from ``features`` if there
        is no stem."""
        if frame.fine is not None:
            return frame.fine
        stride8 = self.to_stride8(tokens_to_map(features, frame.grid))
        return stride8, self.to_stride4(stride8)


class ViT(OneStride):
    """ViT without its head.

    A class token, if there is one, goes through the blocks with its frame and is then dropped, so
    that the other tokens are as in pretraining.

    Args:
        fine_dims, stem_depths: see :meth:`OneStride.add_fine`.
    """

    pos_embed: Tensor

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        fine_dims: Sequence[int],
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        class_token: bool = True,
        stem_depths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_prefix = int(class_token)
        self.patch_embed = PatchProjection(dim)
        self.register_buffer("pos_embed", sinusoidal_position_embedding(PRETRAINING_GRID, dim))
        self.positions = ResampledPositions()
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            nn.init.normal_(self.cls_token, std=0.02)
        rates = np.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, mlp_ratio, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.add_fine(fine_dims, stem_depths, mlp_ratio)
        self.apply(init_transformer_weights)
        init_token_projection(self.patch_embed.proj)

    @property
    def last_stage(self) -> Sequence[BlockInHalves]:
        return list(self.blocks)  # type: ignore[arg-type]

    def embed(self, images: Tensor) -> FrameEmbedding:
        """See :meth:`stma.model.backbone.Backbone.embed`."""
        x = self.patch_embed(images)
        grid = (x.shape[-2], x.shape[-1])
        tokens = map_to_tokens(x) + self.positions.at(self.pos_embed, grid)
        if self.num_prefix:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.embedding(images, tokens, grid)
