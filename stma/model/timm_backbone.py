"""Backbones of timm by name: plain ViTs, whose own blocks STML runs through, and networks in
stages, which take the place of the first two below ConvViT's third.

timm's modules hold the weights, under timm's names; timm says how frames are normalised. It is
imported only where it is needed, since that takes seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stma.errors import InputError
from stma.model.attention import BlockInHalves, attend
from stma.model.backbone import STRIDE, FrameEmbedding, ResampledPositions
from stma.model.convvit import TransformerStage
from stma.model.vit import OneStride
from stma.structures import KeyValue, Rope, unrotated

FAILURES = (RuntimeError, AssertionError, TypeError, ValueError)  # of a timm network, on a probe
# How networks in stages take frames of other sizes, and are cut off above the stages asked for.
WAYS: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"feature_cls": "getter"})


@dataclass(frozen=True)
class Facts:
    """What timm's network of a name is.

    Attributes:
        is_vit: whether STML runs through its own blocks; otherwise it gives strides 4 and 8.
        dims: its channels: ``(C,)`` of a ViT, ``(C4, C8)`` of another.
        depth, num_heads: of a ViT, otherwise 0.
        options: with which it is created.
        multiple: its frames have sides of multiples of so many pixels.
        rotary: whether its positions are rotary.
        mean, std: of red, green and blue in ``[0, 1]``, as it was pretrained.
    """

    is_vit: bool
    dims: tuple[int, ...]
    depth: int
    num_heads: int
    options: dict[str, Any]
    multiple: int
    rotary: bool
    mean: list[float]
    std: list[float]


@lru_cache
def facts(name: str) -> Facts:
    """Build the network without numbers, and look at it.

    Raises:
        InputError: timm has no such network, or STML cannot run above or through it.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        network = create(name)
        config = network.pretrained_cfg
        normalization = {"mean": list(config["mean"]), "std": list(config["std"])}
        if type(network) not in (VisionTransformer, Eva):
            options, channels, multiple = _stages_of(name, network)
            return Facts(False, channels, 0, 0, options, multiple, False, **normalization)
    if reason := _why_not(network):
        raise InputError(f"model.timm is {name!r}: {reason}; STML cannot run through its blocks")
    grid = network.patch_embed.grid_size
    options = {
        "img_size": [STRIDE * side for side in grid],  # its positions are kept as they are
        "patch_size": STRIDE,
        "dynamic_img_size": True,
    }
    heads, depth = network.blocks[0].attn.num_heads, len(network.blocks)
    rotary = getattr(network, "rope", None) is not None
    dims = (network.embed_dim,)
    return Facts(True, dims, depth, heads, options, STRIDE, rotary, **normalization)


def create(name: str, **options: Any) -> Any:
    """``timm.create_model`` without a head.

    Raises:
        InputError: timm has no such network.
    """
    import timm

    try:
        network: Any = timm.create_model(name, num_classes=0, **options)
    except RuntimeError as error:
        if not str(error).startswith(("Unknown model", "Invalid pretrained tag")):
            raise
        like = get_close_matches(name, timm.list_models(pretrained=True), n=3)
        hint = f"; did you mean {', '.join(like)}?" if like else ""
        raise InputError(f"model.timm is {name!r}: {error}{hint}") from error
    if hasattr(network, "attn_pool"):
        network.attn_pool = None
    return network


def _why_not(network: Any) -> str | None:
    """Why the blocks of a ViT have no two halves; None if they have."""
    from timm.layers import Attention, AttentionRope, PatchEmbed
    from timm.models.eva import EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block

    if type(network.patch_embed) is not PatchEmbed:
        return f"a {type(network.patch_embed).__name__} comes before its blocks"
    for block in network.blocks:
        if type(block) not in (Block, EvaBlock):
            return f"its blocks are {type(block).__name__}, not pre-norm with attention and MLP"
        attention = block.attn
        if type(attention) not in (Attention, AttentionRope, EvaAttention):
            return f"its attention is {type(attention).__name__}"
        if attention.gate is not None:
            return "its attention is gated"
        if getattr(attention, "num_kv_groups", 1) > 1:
            return "several heads share their keys"
    return None


def _stages_of(name: str, network: Any) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """Options, channels at strides 4 and 8, and the multiple of frame sizes, by trying."""
    if any("rel_pos" in parameter or "relative" in parameter for parameter in network.state_dict()):
        reason = "its relative positions belong to pairs of tokens, which two halves do not know"
    else:
        reason = f"a {type(network).__name__} without features at strides 4 and 8"
    for way in WAYS:
        try:
            info = create(name, features_only=True, **way).feature_info
        except FAILURES:
            continue
        strides = info.reduction()
        if 4 not in strides or 8 not in strides:
            break
        reason = "it takes frames of one size only"
        options = way | {"features_only": True, "out_indices": [strides.index(s) for s in (4, 8)]}
        stages = create(name, **options)
        for multiple in (STRIDE, 2 * STRIDE, 4 * STRIDE):
            if _runs(stages, multiple):
                return options, tuple(stages.feature_info.channels()), multiple
    raise InputError(f"model.timm is {name!r}: {reason}")


def _runs(stages: nn.Module, multiple: int) -> bool:
    """Whether the stages take frames of such sizes, and need all of their parameters for them."""
    try:
        maps = stages(torch.zeros(1, 3, 3 * multiple, 5 * multiple))
        sum(x.sum() for x in maps).backward()
    except FAILURES:
        return False
    return all(parameter.grad is not None for parameter in stages.parameters())


class TimmAttention(nn.Module):
    """timm's attention in two halves, as :class:`stma.model.attention.Attention`."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.num_heads: int = self.inner.num_heads

    def project(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, KeyValue]:
        """Queries, keys and values ``(B, heads, S, d)``."""
        inner = self.inner
        if inner.qkv is None:
            query, key, value = (
                rearrange(layer(x), "b s (nh d) -> b nh s d", nh=self.num_heads)
                for layer in (inner.q_proj, inner.k_proj, inner.v_proj)
            )
        else:
            bias = inner.qkv.bias
            if getattr(inner, "q_bias", None) is not None:
                bias = torch.cat([inner.q_bias, inner.k_bias, inner.v_bias])
            query, key, value = rearrange(
                F.linear(x, inner.qkv.weight, bias),
                "b s (three nh d) -> three b nh s d",
                three=3,
                nh=self.num_heads,
            )
        query, key = inner.q_norm(query), inner.k_norm(key)
        if rope is not None:
            from timm.layers import apply_rot_embed_cat

            query, key = (
                apply_rot_embed_cat(each, rope, half=inner.rotate_half).type_as(value)
                for each in (query, key)
            )
        return query, KeyValue(key, value)

    def forward(self, query: Tensor, keys: KeyValue, mask: Tensor | None = None) -> Tensor:
        """See :meth:`stma.model.attention.Attention.forward`."""
        x = attend(query, keys, mask)
        return self.inner.proj(self.inner.norm(rearrange(x, "b nh s d -> b s (nh d)")))


class TimmBlock(BlockInHalves):
    """timm's transformer block in two halves."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.attn = TimmAttention(self.inner.attn)

    def project(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, KeyValue]:
        """See :meth:`stma.model.attention.BlockInHalves.project`."""
        return self.attn.project(self.inner.norm1(x), rope)

    def _update(self, x: Tensor, query: Tensor, keys: KeyValue, mask: Tensor | None) -> Tensor:
        inner = self.inner
        x = x + inner.drop_path1(self._scaled(1, self.attn(query, keys, mask)))
        return x + inner.drop_path2(self._scaled(2, inner.mlp(inner.norm2(x))))

    def _scaled(self, branch: int, x: Tensor) -> Tensor:
        """By LayerScale, which Eva's blocks hold as a parameter."""
        if hasattr(self.inner, f"ls{branch}"):
            return getattr(self.inner, f"ls{branch}")(x)
        gamma = getattr(self.inner, f"gamma_{branch}")
        return x if gamma is None else gamma * x


class TimmViT(OneStride):
    """A plain ViT of timm, at 16 pixels a patch, with absolute or rotary positions.

    Its class and register tokens go through the blocks with their frame.

    Args:
        fine_dims, stem_depths: see :meth:`stma.model.vit.OneStride.add_fine`.
    """

    def __init__(
        self,
        name: str,
        fine_dims: Sequence[int],
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        stem_depths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.vit = create(name, drop_path_rate=drop_path, **facts(name).options)
        self.dim = self.vit.embed_dim
        self.num_prefix = self.vit.num_prefix_tokens
        self.positions = ResampledPositions()
        # A list, not a ModuleList, since the ViT holds the same modules.
        self._blocks = [TimmBlock(block) for block in self.vit.blocks]
        self.add_fine(fine_dims, stem_depths, mlp_ratio)

    @property
    def last_stage(self) -> Sequence[BlockInHalves]:
        return self._blocks

    def embed(self, images: Tensor) -> FrameEmbedding:
        """See :meth:`stma.model.backbone.Backbone.embed`."""
        vit = self.vit
        patches = vit.patch_embed(images)  # (B, h, w, C)
        grid = (patches.shape[1], patches.shape[2])
        tokens = patches.flatten(1, 2)
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if vit.pos_embed is not None:
            tokens = tokens + self.positions.at(vit.pos_embed, grid, vit.patch_embed.grid_size)
        if prefix:
            added = torch.cat(prefix, dim=1)
            if vit.pos_embed is not None and not vit.no_embed_class:
                added = added + vit.pos_embed[:, : self.num_prefix]
            tokens = torch.cat([added.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.embedding(images, vit.norm_pre(tokens), grid)

    def finish(self, tokens: Tensor) -> Tensor:
        """See :meth:`stma.model.backbone.Backbone.finish`; the norm may be the one that timm has
        after pooling."""
        return self.vit.fc_norm(self.vit.norm(tokens))[:, self.num_prefix :]

    def rope(self, grid: tuple[int, int]) -> Rope | None:
        """See :meth:`stma.model.backbone.Backbone.rope`."""
        if getattr(self.vit, "rope", None) is None:
            return None
        rope = self.vit.rope.get_embed(shape=grid)
        rope = torch.cat([unrotated(rope, self.num_prefix), rope], dim=-2)
        return list(rope) if self.vit.rope_mixed else [rope] * len(self._blocks)


class TimmStages(TransformerStage):
    """Strides 4 and 8 from a network of timm, and ConvViT's third stage above them.

    BatchNorm is frozen, as is usual where batches are small.
    """

    added = ("patch_embed3.", "patch_embed4.", "blocks3.", "norm.")

    def __init__(
        self,
        name: str,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        from timm.utils.model import freeze_batch_norm_2d

        known = facts(name)
        rates = torch.linspace(0, drop_path, depth).tolist()
        super().__init__((*known.dims, dim), num_heads, mlp_ratio, rates)
        self.name = name
        self.multiple = known.multiple
        self.network = freeze_batch_norm_2d(create(name, **known.options))

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`stma.model.convvit.TransformerStage.stages`."""
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        stride4, stride8 = self.network(padded)
        if stride4.shape[1] != self.fine_dims[1]:  # timm's Swin has its channels last
            stride4, stride8 = (x.permute(0, 3, 1, 2) for x in (stride4, stride8))
        return (
            stride8[:, :, : height // 8, : width // 8],
            stride4[:, :, : height // 4, : width // 4],
        )
