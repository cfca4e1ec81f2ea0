"""ConvViT, the ConvMAE backbone (Gao et al., NeurIPS 2022), with the names of its checkpoints.

Two convolutional stages at strides 4 and 8, then transformer blocks at stride 16, each in two
halves (`TransformerBlock`), so that STML can run its three streams through them.
"""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from stma.model.attention import BlockInHalves, TransformerBlock
from stma.model.backbone import (
    PRETRAINING_GRID,
    Backbone,
    FrameEmbedding,
    ResampledPositions,
    init_token_projection,
    init_transformer_weights,
    map_to_tokens,
    sinusoidal_position_embedding,
)
from stma.model.blocks import DepthwiseConv2d, DropPath, LayerNorm2d, Mlp

# ConvMAE's code builds the norms of its convolutional parts with PyTorch's default epsilon and
# only the transformer blocks with 1e-6; its checkpoints were trained that way.
CONV_NORM_EPS = 1e-5


class PatchEmbed(nn.Module):
    """A strided convolution, LayerNorm and GELU: ``(B, C, H, W)`` to ``(B, C', H/p, W/p)``."""

    def __init__(self, in_dim: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = LayerNorm2d(dim, eps=CONV_NORM_EPS)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.proj(x)))


class ConvBlock(nn.Module):
    """Norm, 1x1, 5x5 depthwise, 1x1, residual; norm, 1x1-convolution MLP, residual."""

    def __init__(self, dim: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=CONV_NORM_EPS)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.attn = DepthwiseConv2d(dim, 5)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.norm2 = LayerNorm2d(dim, eps=CONV_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), conv=True)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvStem(nn.Module):
    """ConvViT's first two stages on their own, beside another backbone (ours).

    Args:
        dims: channels at strides 4 and 8.
        depths: convolutional blocks at these strides.
    """

    def __init__(self, dims: Sequence[int], depths: Sequence[int], mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.patch_embed1 = PatchEmbed(3, dims[0], patch_size=4)
        self.blocks1 = nn.Sequential(*(ConvBlock(dims[0], mlp_ratio) for _ in range(depths[0])))
        self.patch_embed2 = PatchEmbed(dims[0], dims[1], patch_size=2)
        self.blocks2 = nn.Sequential(*(ConvBlock(dims[1], mlp_ratio) for _ in range(depths[1])))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, H, W)`` to ``(B, C8, H/8, W/8)`` and ``(B, C4, H/4, W/4)``."""
        stride4 = self.blocks1(self.patch_embed1(images))
        return self.blocks2(self.patch_embed2(stride4)), stride4


class TransformerStage(Backbone):
    """ConvViT's third stage, transformer blocks at stride 16, above strides 4 and 8.

    Args:
        dims: channels at strides 4, 8 and 16.
        drop_paths: stochastic depth of every block.
    """

    pos_embed: Tensor

    def __init__(
        self,
        dims: Sequence[int],
        num_heads: int,
        mlp_ratio: float,
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        dim1, dim2, dim3 = dims
        self.dim = dim3
        self.fine_dims = (dim2, dim1)
        self.patch_embed3 = PatchEmbed(dim2, dim3, patch_size=2)
        self.patch_embed4 = nn.Linear(dim3, dim3)
        self.register_buffer("pos_embed", sinusoidal_position_embedding(PRETRAINING_GRID, dim3))
        self.positions = ResampledPositions()
        self.blocks3 = nn.ModuleList(
            TransformerBlock(dim3, num_heads, mlp_ratio, rate) for rate in drop_paths
        )
        self.norm = nn.LayerNorm(dim3, eps=1e-6)
        self.apply(init_transformer_weights)
        init_token_projection(self.patch_embed3.proj)

    @property
    def last_stage(self) -> Sequence[BlockInHalves]:
        return list(self.blocks3)  # type: ignore[arg-type]

    @abstractmethod
    def stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, H, W)`` to ``(B, C8, H/8, W/8)`` and ``(B, C4, H/4, W/4)``."""

    def embed(self, images: Tensor) -> FrameEmbedding:
        """See :meth:`stma.model.backbone.Backbone.embed`."""
        stride8, stride4 = self.stages(images)
        stride16 = self.patch_embed3(stride8)
        grid = (stride16.shape[-2], stride16.shape[-1])
        tokens = self.patch_embed4(map_to_tokens(stride16))
        return FrameEmbedding(
            tokens + self.positions.at(self.pos_embed, grid), grid, (stride8, stride4)
        )

    def fine_features(self, frame: FrameEmbedding, features: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`stma.model.backbone.Backbone.fine_features`; made by the stages."""
        assert frame.fine is not None
        return frame.fine


class ConvViT(TransformerStage):
    """ConvViT without its classification head.

    Args:
        dims: channels at strides 4, 8 and 16.
        depths: blocks in the three stages.
        drop_path: stochastic depth of the last block, growing linearly from 0.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        rates = np.linspace(0, drop_path, sum(depths)).tolist()
        rates1, rates2, rates3 = (
            rates[: depths[0]],
            rates[depths[0] : depths[0] + depths[1]],
            rates[depths[0] + depths[1] :],
        )
        super().__init__(dims, num_heads, mlp_ratio, rates3)
        dim1, dim2, _ = dims
        self.patch_embed1 = PatchEmbed(3, dim1, patch_size=4)
        self.blocks1 = nn.Sequential(*(ConvBlock(dim1, mlp_ratio, rate) for rate in rates1))
        self.patch_embed2 = PatchEmbed(dim1, dim2, patch_size=2)
        self.blocks2 = nn.Sequential(*(ConvBlock(dim2, mlp_ratio, rate) for rate in rates2))

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`TransformerStage.stages`."""
        stride4 = self.blocks1(self.patch_embed1(images))
        return self.blocks2(self.patch_embed2(stride4)), stride4
