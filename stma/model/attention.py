"""Multi-head attention in two halves: projecting to queries, keys and values, and attending.

STML (Eq. 2-4) lets three streams attend to different keys with the same
projections, so a block needs the two halves separately.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stma.model.blocks import DropPath, Mlp
from stma.structures import KeyValue

PLAIN_SCORES = 500_000  # a head; beyond, plain products gain nothing


def attend(query: Tensor, keys: KeyValue, mask: Tensor | None = None) -> Tensor:
    """Attention scaled by ``1 / sqrt(d)``: ``query (B, heads, S', d)`` to ``(B, heads, S', d)``.

    Training in bf16 on a CPU takes plain products where they are few: the backward pass of
    PyTorch's fused attention does not use the cores' bf16 units there (measured: x2 to x3).

    Args:
        mask: True where a key may be read, broadcastable to ``(B, heads, S', S)``.
    """
    few = query.shape[-2] * keys.key.shape[-2] <= PLAIN_SCORES
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if not (few and on_cpu and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(query, keys.key, keys.value, attn_mask=mask)
    scores = query * query.shape[-1] ** -0.5 @ keys.key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ keys.value


class Attention(nn.Module):
    """A block's shared ``W^Q, W^K, W^V`` and output projection, named as in timm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"token width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, KeyValue]:
        """``(B, S, C)`` to queries, keys and values ``(B, heads, S, C / heads)``."""
        query, key, value = rearrange(
            self.qkv(x), "b s (three nh d) -> three b nh s d", three=3, nh=self.num_heads
        )
        return query, KeyValue(key, value)

    def forward(self, query: Tensor, keys: KeyValue, mask: Tensor | None = None) -> Tensor:
        """:func:`attend`, projected: ``(B, S', C)``."""
        return self.proj(rearrange(attend(query, keys, mask), "b nh s d -> b s (nh d)"))


class BlockInHalves(nn.Module, ABC):
    """A pre-norm transformer block that is called in two halves, `project` and `update`.

    ``update(x, *project(x))`` is the ordinary self-attention block.

    Attributes:
        attn: its attention, called with queries, keys and a mask.
        recompute: the activations of `update` in the backward pass, to save memory.
    """

    attn: Any  # Attention or TimmAttention; nn.Module would make its attributes Tensor | Module

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False

    @abstractmethod
    def project(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, KeyValue]:
        """Queries, keys and values of the tokens ``(B, S, C)`` that enter this block.

        Args:
            rope: of these tokens, see :data:`stma.structures.Rope`; only timm's blocks have it.
        """

    def update(
        self, x: Tensor, query: Tensor, keys: KeyValue, mask: Tensor | None = None
    ) -> Tensor:
        """The tokens ``(B, S, C)`` after they have read ``keys`` and passed the MLP."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._update, x, query, keys, mask, use_reentrant=False)
        return self._update(x, query, keys, mask)

    @abstractmethod
    def _update(self, x: Tensor, query: Tensor, keys: KeyValue, mask: Tensor | None) -> Tensor: ...


class TransformerBlock(BlockInHalves):
    """The block of ViT, MAE and ConvMAE, in two halves. It has exactly their parameters, so their
    weights initialise it entirely.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def project(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, KeyValue]:
        """See :meth:`BlockInHalves.project`; there is no ``rope``."""
        assert rope is None
        return self.attn.project(self.norm1(x))

    def _update(self, x: Tensor, query: Tensor, keys: KeyValue, mask: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.attn(query, keys, mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))
