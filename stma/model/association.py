"""ID association ``P_mem`` (Eq. 1): what each object's memory says about the test frame."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stma.errors import InputError
from stma.memory.temporal import TemporalMemory, WholeBuffer
from stma.runtime.device import without_autocast
from stma.structures import at_least_fp32

SIMILARITIES = ("dot", "l2")

# Queries read a few at a time: their scores stay in a CPU's cache between the product, the softmax
# and the next product, and those of a long video never fill the memory. A GPU wants more at once.
CPU_QUERIES = 256
CPU_SCORES = 2**24
GPU_SCORES = 2**28
GROUP, BLOCK = 16, 32  # of queries, of elements


@dataclass(frozen=True)
class Reading:
    """How the temporal memory is read; by default as in the paper.

    Attributes:
        top_k: each query reads only the ``k`` elements most similar to it; None reads all.
        kernel: each element is read around the query most similar to it, weighted by a Gaussian of
            this standard deviation, in shorter sides of the frame; None reads it everywhere.
    """

    top_k: int | None = None
    kernel: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; give 1 or more, or null to read all elements")
        if self.kernel is not None and not self.kernel > 0:
            raise InputError(
                f"kernel is {self.kernel}; give more than 0, or null to read everywhere"
            )


READ_ALL = Reading()


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
        scale = 1 / math.sqrt(query.shape[-1])  # for the queries, which are fewer than the scores
        if similarity == "l2":
            norms = scale * keys.square().sum(dim=2)[:, None]
            return (2 * scale * query) @ keys.transpose(1, 2) - norms
        return (scale * query) @ keys.transpose(1, 2)


def places(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Where the tokens of a frame are: ``(L, 2)``, row and column in shorter sides of the frame."""
    rows, columns = (torch.arange(length, device=like.device, dtype=like.dtype) for length in grid)
    side: int = torch.sym_min(*grid)  # type: ignore[assignment]  # symbolic in export
    at = (rows[:, None].expand(grid), columns.expand(grid))
    return torch.stack(at, dim=-1).flatten(0, 1) / side


def kernelize(scores: Sequence[Tensor], grid: tuple[int, int], sigma: float) -> None:
    """Lower, in place, the scores of an element for queries far from the one that it resembles
    most, by the logarithm of a Gaussian kernel there (KMN, Seong et al., ECCV 2020). So an element
    is read in one place of the frame, and not also by a look-alike elsewhere.

    Args:
        scores: ``(B, l, M)`` of successive queries, L together.
        sigma: standard deviation, in shorter sides of the frame.
    """
    where = places(grid, scores[0])
    best = torch.full_like(scores[0][:, 0], -math.inf)  # (B, M)
    centre = where.new_zeros(*best.shape, 2)
    start = 0
    for each in scores:
        value, index = best_query(each.detach())
        centre = torch.where((value > best)[..., None], where[start + index], centre)
        best = value.maximum(best)
        start += each.shape[1]
    # |p - c|^2 without |p|^2, which softmax and top-k cancel: a product of three columns.
    offset = -0.5 * centre.square().sum(dim=2, keepdim=True)
    element = torch.cat([centre, offset], dim=2).mT / sigma**2
    query = torch.cat([where, torch.ones_like(where[:, :1])], dim=1)
    query = query.expand(element.shape[0], -1, -1)
    start = 0
    with without_autocast(where.device):
        for each in scores:
            each.baddbmm_(query[:, start : start + each.shape[1]], element)
            start += each.shape[1]


def best_query(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of ``(B, L, M)`` over L, and where. On a CPU in two levels, which takes a third
    of the time: first without where it is, in groups of queries."""
    if scores.device.type != "cpu" or torch.compiler.is_compiling() or scores.shape[1] % GROUP:
        value, index = scores.max(dim=1)
        return value, index
    groups = scores.unflatten(1, (-1, GROUP))
    group = groups.amax(dim=2).max(dim=1).indices  # (B, M)
    candidates = groups.gather(1, group[:, None, None].expand(-1, 1, GROUP, -1))[:, 0]
    value, index = candidates.max(dim=1)
    return value, group * GROUP + index


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of ``(B, L, M)`` over M, unordered, and where. On a CPU a large memory is
    read in blocks: the largest are in the ``k`` blocks that have the largest maxima."""
    blocks = scores.shape[2] // BLOCK
    plain = scores.device.type != "cpu" or torch.compiler.is_compiling() or scores.requires_grad
    if plain or blocks <= 2 * k:
        value, index = scores.topk(k, dim=2, sorted=False)
        return value, index
    whole, rest = scores.split([blocks * BLOCK, scores.shape[2] - blocks * BLOCK], dim=2)
    whole = whole.unflatten(2, (blocks, BLOCK))
    chosen = whole.amax(dim=3).topk(k, dim=2, sorted=False).indices[..., None]  # (B, L, k, 1)
    candidates = whole.gather(2, chosen.expand(-1, -1, -1, BLOCK)).flatten(2)
    value, index = torch.cat([candidates, rest], dim=2).topk(k, dim=2, sorted=False)
    inside = chosen[..., 0].gather(2, (index // BLOCK).clamp(max=k - 1)) * BLOCK + index % BLOCK
    beyond = index + (blocks - k) * BLOCK
    return value, torch.where(index < k * BLOCK, inside, beyond)


def queries_at_once(batch: int, elements: int, device: torch.device) -> int:
    """How many queries of each clip read a memory of that many elements at a time."""
    if device.type == "cpu":
        return min(CPU_QUERIES, max(1, CPU_SCORES // (batch * elements)))
    return max(1, GPU_SCORES // (batch * elements))


def read_all(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Every query's mean of the values, weighted by the softmax of its scores.

    Args:
        scores: ``(B, L, M)``, ``-inf`` where an element does not exist for these objects.
        values: ``(B, M, N, C)``.

    Returns:
        ``(B, L, N, C)``, and the weight that each element received from all queries, ``(B, M)``.
    """
    weights = scores.softmax(dim=-1)
    readout = weights.to(values.dtype) @ values.flatten(2)
    return readout.unflatten(2, values.shape[2:]), weights.detach().sum(dim=1)


def read_top_k(scores: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As :func:`read_all`, but each query reads only the ``k`` elements with the largest scores."""
    batch, elements = scores.shape[0], scores.shape[2]
    top, indices = largest(scores, min(k, elements))
    weights = top.softmax(dim=-1)  # (B, L, K)
    first = torch.arange(batch, device=scores.device)[:, None, None] * elements
    readout = F.embedding_bag(
        (indices + first).flatten(0, 1),
        values.flatten(2).flatten(0, 1),
        per_sample_weights=weights.flatten(0, 1).to(values.dtype),
        mode="sum",
    )
    received = torch.zeros_like(scores[:, 0], requires_grad=False)
    received.scatter_add_(1, indices.flatten(1), weights.detach().flatten(1))
    return readout.view(batch, -1, *values.shape[2:]), received


class Association(nn.Module):
    """Softmax affinity of the test frame to the memory, and one readout per object.

    Keys and queries are the features themselves; it has no parameters.

    Args:
        similarity: ``dot`` or ``l2``.
    """

    def __init__(self, similarity: str = "dot") -> None:
        super().__init__()
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity is {similarity!r}; choose one of {SIMILARITIES}")
        self.similarity = similarity

    def forward(
        self,
        features: Tensor,
        memory: TemporalMemory | WholeBuffer,
        grid: tuple[int, int],
        reading: Reading = READ_ALL,
    ) -> Tensor:
        """Read the memory.

        Objects that entered at the same frame share their memory elements and thus one softmax; an
        element older than an object does not exist for it.

        Args:
            features: ``F_t (B, L, C)``.
            memory: holds at least one frame.
            grid: ``h, w``.

        Returns:
            ``(B, N, L, C)``.
        """
        query = at_least_fp32(features)
        keys, values, groups = memory.keys, memory.values, memory.groups
        readouts: list[Tensor] = []
        received: list[list[Tensor]] = []
        at_once = queries_at_once(keys.shape[0], keys.shape[1], keys.device)
        parts: Iterable[Tensor] = (
            affinity_scores(some, keys, self.similarity) for some in query.split(at_once, dim=1)
        )
        if reading.kernel is not None:
            parts = list(parts)  # an element's best query may be any of them
            kernelize(parts, grid, reading.kernel)
        for scores in parts:
            reads = []
            for group in groups:
                visible = scores
                if group.present is not None:
                    visible = scores.masked_fill(~group.present[:, None], float("-inf"))
                group_values = values[:, :, group.objects]  # (B, M, N', C)
                if reading.top_k is None:
                    reads.append(read_all(visible, group_values))
                else:
                    reads.append(read_top_k(visible, group_values, reading.top_k))
            readouts.append(torch.cat([readout for readout, _ in reads], dim=2))
            received.append([used for _, used in reads])
        for group, used in zip(groups, zip(*received, strict=True), strict=True):
            memory.count_use(torch.stack(used).sum(dim=0), group)
        return torch.cat(readouts, dim=1).transpose(1, 2)
