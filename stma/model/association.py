"""ID association ``P_mem`` (Eq. 1): what every object's memory says about the test frame."""

import math

import torch
from torch import Tensor, nn

from stma.memory.temporal import TemporalMemory
from stma.runtime.device import without_autocast
from stma.structures import at_least_fp32

SIMILARITIES = ("dot", "l2")


def affinity_scores(query: Tensor, keys: Tensor, similarity: str) -> Tensor:
    """Scaled similarity of every query to every memory element, before the softmax.

    ``dot`` is the inner product over ``sqrt(C)``; ``l2`` the negative squared distance over
    ``sqrt(C)`` (STCN), without its term ``|q|^2``, which the softmax cancels.

    Args:
        query: ``(B, L, C)``.
        keys: ``(B, M, C)``.

    Returns:
        ``(B, L, M)``. Never under autocast: rounded to bf16, a score of 28 is off by 6 %.
    """
    with without_autocast(query.device):
        scores = query @ keys.transpose(1, 2)
        if similarity == "l2":
            scores = 2 * scores - keys.square().sum(dim=2)[:, None]
        return scores / math.sqrt(query.shape[-1])


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """All but the ``k`` largest scores of each query set to ``-inf``; ``(B, L, M)``."""
    if k >= scores.shape[-1]:
        return scores
    threshold = scores.topk(k, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < threshold, float("-inf"))


class Association(nn.Module):
    """Softmax affinity of the test frame to the memory, and one readout per object.

    Args:
        dim: token width.
        key_dim: width of the keys; None uses the tokens themselves.
        similarity: ``dot`` or ``l2``.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int | None = None,
        similarity: str = "dot",
    ) -> None:
        super().__init__()
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity is {similarity!r}; choose one of {SIMILARITIES}")
        self.similarity = similarity
        self.project: nn.Module = nn.Identity() if key_dim is None else nn.Linear(dim, key_dim)

    def key(self, features: Tensor) -> Tensor:
        """``F_t (B, L, C)`` to keys or queries ``(B, L, C')``, never in half precision."""
        return at_least_fp32(self.project(features))

    def forward(self, features: Tensor, memory: TemporalMemory) -> Tensor:
        """Read the memory.

        Objects that entered at the same frame share their memory elements and so one softmax; an
        element older than an object does not exist for it.

        Args:
            features: ``F_t (B, L, C)``.
            memory: holds at least one frame.

        Returns:
            ``(B, N, L, C)``.
        """
        scores = affinity_scores(self.key(features), memory.keys, self.similarity)
        values = memory.values
        readouts = []
        for group in memory.groups:
            visible = scores
            if group.present is not None:
                visible = scores.masked_fill(~group.present[:, None], float("-inf"))
            if memory.top_k is not None:
                visible = keep_top_k(visible, memory.top_k)
            weights = visible.softmax(dim=-1)
            memory.count_use(weights, group)
            group_values = values[:, :, group.objects]  # (B, M, N', C)
            readout = weights.to(values.dtype) @ group_values.flatten(2)
            readouts.append(readout.unflatten(2, group_values.shape[2:]))
        return torch.cat(readouts, dim=2).transpose(1, 2)
