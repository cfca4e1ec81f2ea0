"""What STMA asks of a backbone: tokens at stride 16, transformer blocks, and finer features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stma.model.attention import BlockInHalves
from stma.structures import Rope, at_least_fp32

STRIDE = 16
PRETRAINING_GRID = (14, 14)  # 224 / 16
MAX_GRIDS = 16
Normalization = tuple[Sequence[float], Sequence[float]]
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class FrameEmbedding:
    """A frame before the last stage.

    Attributes:
        tokens: ``(B, L, C)``, positions added, as they enter the first transformer block; with a
            class token ``(B, 1 + L, C)``, which goes through the blocks with its frame.
        grid: ``(h, w)``.
        fine: the features at strides 8 and 4, ``(B, C8, 2h, 2w)`` and ``(B, C4, 4h, 4w)``, or None
            if the backbone makes them from the last stage's output.
    """

    tokens: Tensor
    grid: tuple[int, int]
    fine: tuple[Tensor, Tensor] | None

    def frames(self, num_frames: int) -> list["FrameEmbedding"]:
        """Split an embedding of ``B * T`` frames, clip by clip, into ``T`` of ``B`` frames."""

        def split(x: Tensor) -> list[Tensor]:
            return list(x.unflatten(0, (-1, num_frames)).unbind(1))

        def split_map(x: Tensor) -> list[Tensor]:
            # So that the gradient is channels-last, too: operations on two layouts are slow.
            return [part.permute(0, 3, 1, 2) for part in split(x.permute(0, 2, 3, 1))]

        tokens = split(self.tokens)
        if self.fine is None:
            return [FrameEmbedding(x, self.grid, None) for x in tokens]
        stride8, stride4 = (split_map(x) for x in self.fine)
        return [
            FrameEmbedding(x, self.grid, (fine8, fine4))
            for x, fine8, fine4 in zip(tokens, stride8, stride4, strict=True)
        ]


class Backbone(nn.Module, ABC):
    """The interface between a backbone and :class:`stma.model.stma.STMA`.

    Attributes:
        dim: width of a token, ``C``.
        fine_dims: channels of the features at strides 8 and 4.
        norm: the norm after the last block.
        num_prefix: number of tokens before those of the patches: the class token.
        normalization: mean and standard deviation of red, green and blue in ``[0, 1]`` that it
            expects to be removed.
        added: how the names of parameters begin that no public checkpoint of the backbone fills.
    """

    dim: int
    fine_dims: tuple[int, int]
    norm: nn.Module
    num_prefix: int = 0
    normalization: Normalization = IMAGENET
    added: tuple[str, ...] = ()

    @property
    @abstractmethod
    def last_stage(self) -> Sequence[BlockInHalves]:
        """The blocks that STML runs its three streams through."""

    @abstractmethod
    def embed(self, images: Tensor) -> FrameEmbedding:
        """``(B, 3, H, W)`` normalised images, H and W multiples of 16."""

    def finish(self, tokens: Tensor) -> Tensor:
        """The last block's output, normalised, without the prefix: ``(B, L, C)``."""
        return self.norm(tokens)[:, self.num_prefix :]

    def rope(self, grid: tuple[int, int]) -> Rope | None:
        """Rotary embeddings of a frame's tokens; None without any."""
        return None

    @abstractmethod
    def fine_features(self, frame: FrameEmbedding, features: Tensor) -> tuple[Tensor, Tensor]:
        """The features at strides 8 and 4, given the last stage's output ``(B, L, C)``."""


def sinusoidal_position_embedding(grid: tuple[int, int], dim: int) -> Tensor:
    """The fixed 2-D sine-cosine embedding of MAE and ConvMAE, ``(1, L, dim)``.

    The first half of the channels encodes the column and the second the row, as MAE does.
    """
    bands = 1 / 10_000 ** (torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    angles = [place.flatten()[:, None] * bands for place in (columns, rows)]
    return torch.cat([wave for x in angles for wave in (x.sin(), x.cos())], dim=1)[None]


def resample_positions(
    embedding: Tensor, grid: tuple[int, int], old: tuple[int, int] = PRETRAINING_GRID
) -> Tensor:
    """Interpolate a position embedding ``(1, P + L, C)`` of another grid, without its ``P`` prefix
    tokens, to ``(1, L', C)``."""
    embedding = embedding[:, embedding.shape[1] - old[0] * old[1] :]
    if grid == old:
        return embedding
    table = at_least_fp32(tokens_to_map(embedding, old))
    resampled = F.interpolate(table, grid, mode="bicubic", antialias=True)
    return map_to_tokens(resampled).to(embedding.dtype)


class ResampledPositions:
    """Caches the position embeddings of recent grids, since all frames of a video have the same.

    It notices when the embedding is replaced or written to; a copy or a pickle starts empty.
    """

    def __init__(self) -> None:
        self._source: tuple[Tensor, int] | None = None
        self._kept: dict[tuple[int, int], Tensor] = {}

    def __reduce__(self) -> tuple:
        return ResampledPositions, ()

    def at(
        self, embedding: Tensor, grid: tuple[int, int], old: tuple[int, int] = PRETRAINING_GRID
    ) -> Tensor:
        """See :func:`resample_positions`."""
        # A graph has no use for what is kept, and a learned embedding needs its gradient.
        learns = embedding.requires_grad and torch.is_grad_enabled()
        if learns or torch.compiler.is_compiling():
            return resample_positions(embedding, grid, old)
        version = -1 if embedding.is_inference() else embedding._version
        source = self._source
        if source is None or source[0] is not embedding or source[1] != version:
            self._source, self._kept = (embedding, version), {}
        if grid not in self._kept:
            if len(self._kept) == MAX_GRIDS:
                self._kept.clear()
            with torch.inference_mode(False), torch.no_grad():  # training may follow
                self._kept[grid] = resample_positions(embedding, grid, old)
        return self._kept[grid]


def init_transformer_weights(module: nn.Module) -> None:
    """Xavier-uniform linear layers, as in MAE and ConvMAE."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_token_projection(projection: nn.Conv2d) -> None:
    """As a linear layer on each patch, as MAE and ConvMAE do where patches become tokens (ConvMAE
    not in its first two stages)."""
    nn.init.xavier_uniform_(projection.weight.data.flatten(1))


def pad_to_stride(x: Tensor) -> Tensor:
    """``(..., H, W)``, padded with zeros at the right and bottom to multiples of 16."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(..., L, C)`` to ``(..., C, h, w)``."""
    return tokens.transpose(-1, -2).unflatten(-1, grid)


def pool_tokens(tokens: Tensor, grid: tuple[int, int], side: int, num_prefix: int = 0) -> Tensor:
    """The mean of every ``side x side`` tokens, fewer at the edges: ``(B, L, C)`` to
    ``(B, L', C)``. Prefix tokens stay as they are."""
    if side == 1:
        return tokens
    prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
    pooled = F.avg_pool2d(
        tokens_to_map(patches, grid), side, ceil_mode=True, count_include_pad=False
    )
    return torch.cat([prefix, map_to_tokens(pooled)], dim=1)


def map_to_tokens(x: Tensor) -> Tensor:
    """``(..., C, h, w)`` to ``(..., L, C)``."""
    return torch.transpose(x.flatten(-2), -1, -2)
