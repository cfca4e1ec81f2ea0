"""A network run with its streams changed, or observed: the share of their attention that each group
of keys receives."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stma.model.stma import STMA
from stma.model.streams import Blocks, JointTokens, Prepared, Streams
from stma.structures import KeyValue, Rope


class Cut(Streams):
    """The streams of a model, with their input changed."""

    def __init__(self, inner: Streams) -> None:
        self.inner = inner
        self.reads_objects = inner.reads_objects
        self.reads_references = inner.reads_references

    def objects(self, objects: Tensor) -> Tensor:
        """``F_o (B, N, C)`` as it enters the blocks."""
        return objects

    def references(self, references: Tensor) -> Tensor:
        """``(B, R, L, C)`` as they enter the blocks."""
        return references

    def prepare(
        self,
        blocks: Blocks,
        references: Tensor | None,
        objects: Tensor | None,
        valid_objects: Tensor | None,
        rope: Rope | None = None,
    ) -> Prepared:
        references = None if references is None else self.references(references)
        objects = None if objects is None else self.objects(objects)
        return self.inner.prepare(blocks, references, objects, valid_objects, rope)

    def encode(
        self,
        blocks: Blocks,
        tokens: Tensor,
        prepared: Prepared | None,
        rope: Rope | None = None,
    ) -> Tensor:
        return self.inner.encode(blocks, tokens, prepared, rope)


@contextmanager
def with_streams(model: STMA, streams: Streams) -> Iterator[None]:
    """Run the model with other streams inside the context."""
    original, model.streams = model.streams, streams
    try:
        yield
    finally:
        model.streams = original


@contextmanager
def attention_observed(
    blocks: Blocks, observe: Callable[[Tensor, Tensor | None], object]
) -> Iterator[None]:
    """Inside the context, ``observe(weights, mask)`` is called whenever tokens read keys.

    The weights are ``(B, heads, S', S)`` in fp32, the mask is that of the keys, if they have one.
    """

    def hook(attention: nn.Module, inputs: tuple[Any, ...]) -> None:
        query, keys, mask = inputs
        with torch.no_grad():
            observe(attention_weights(query, keys, mask), mask)

    handles = [block.attn.register_forward_pre_hook(hook) for block in blocks]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled blocks know no hooks
            yield
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(query: Tensor, keys: KeyValue, mask: Tensor | None) -> Tensor:
    """The weights that scaled-dot-product attention never shows: ``(B, heads, S', S)``, in fp32."""
    scores = query @ keys.key.transpose(2, 3) / math.sqrt(query.shape[3])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(dim=3)


def share_of_groups(weights: Tensor, lengths: Sequence[int]) -> Tensor:
    """The share of attention ``(B, heads, S', S)`` that each group of successive keys receives: a
    mean over clips, heads and queries, of sum 1."""
    received = weights.mean(dim=(0, 1, 2))
    return torch.stack([part.sum() for part in received.split(list(lengths))])


def spread_of(weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Over what share of its keys attention ``(B, heads, S', S)`` spreads: the exponential of its
    entropy, divided by their number: 1 if all receive the same, ``1 / S`` if one receives all; a
    mean over clips, heads and queries.

    Args:
        mask: ``(B, 1, 1, S)`` bool, False for keys that are not there; None if all are.
    """
    keys = weights.shape[3] if mask is None else mask.sum(dim=3)
    entropy = -torch.special.xlogy(weights, weights).sum(dim=3)
    return (entropy.exp() / keys).mean()


@dataclass(frozen=True)
class Look:
    """Where the test stream's attention goes.

    Attributes:
        groups: names of what it reads, in the order of the keys: ``itself``, ``objects``,
            ``reference1`` (the oldest), ...
        shares: what each group receives, ``(blocks, groups)``; each row adds up to 1.
        spreads: :func:`spread_of` every block, ``(blocks,)``.
        frames: how many of the ``of`` frames read these groups.
    """

    groups: tuple[str, ...]
    shares: Tensor
    spreads: Tensor
    frames: int = 1
    of: int = 1


class Watched(Cut):
    """Changes nothing, but records where the attention goes.

    Attributes:
        looks: one for every pass of a frame that reads more than itself.
        object_shares: for every memory update in which references read objects, the share of their
            attention that all objects together receive, in every block but the last, ``(blocks -
            1,)``: a mean over clips, references, heads and tokens.
    """

    def __init__(self, inner: Streams) -> None:
        super().__init__(inner)
        self.looks: list[Look] = []
        self.object_shares: list[Tensor] = []

    def prepare(
        self,
        blocks: Blocks,
        references: Tensor | None,
        objects: Tensor | None,
        valid_objects: Tensor | None,
        rope: Rope | None = None,
    ) -> Prepared:
        shares: list[Tensor] = []

        def observe(weights: Tensor, mask: Tensor | None) -> None:
            own, length = weights.shape[2:]
            if length > own:  # a reference, which reads itself and then the objects
                shares.append(share_of_groups(weights, (own, length - own))[1])

        with attention_observed(blocks, observe):
            prepared = super().prepare(blocks, references, objects, valid_objects, rope)
        if shares:
            self.object_shares.append(torch.stack(shares).cpu())
        return prepared

    def encode(
        self,
        blocks: Blocks,
        tokens: Tensor,
        prepared: Prepared | None,
        rope: Rope | None = None,
    ) -> Tensor:
        if prepared is None:
            return super().encode(blocks, tokens, prepared, rope)
        own = ("itself", tokens.shape[1])
        joint = isinstance(prepared, JointTokens)
        names, lengths = zip(
            *((*prepared.groups, own) if joint else (own, *prepared.groups)), strict=True
        )
        shares, spreads = [], []

        def observe(weights: Tensor, mask: Tensor | None) -> None:
            weights = weights[:, :, -tokens.shape[1] :]  # those of the frame, which come last
            shares.append(share_of_groups(weights, lengths))
            spreads.append(spread_of(weights, mask))

        with attention_observed(blocks, observe):
            encoded = super().encode(blocks, tokens, prepared, rope)
        self.looks.append(Look(names, torch.stack(shares).cpu(), torch.stack(spreads).cpu()))
        return encoded


def mean_look(looks: Sequence[Look]) -> Look | None:
    """The mean over the frames that read the most frequent groups (if tied, the larger set)."""
    if not looks:
        return None
    counts = Counter(look.groups for look in looks)
    groups = max(counts, key=lambda names: (counts[names], len(names)))
    chosen = [look for look in looks if look.groups == groups]
    return Look(
        groups,
        torch.stack([look.shares for look in chosen]).mean(dim=0),
        torch.stack([look.spreads for look in chosen]).mean(dim=0),
        len(chosen),
        len(looks),
    )


def mean_shares(shares: Sequence[Tensor]) -> Tensor | None:
    """The mean of :attr:`Watched.object_shares`."""
    return torch.stack(list(shares)).mean(dim=0) if shares else None
