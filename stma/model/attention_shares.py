"""Where the streams look: the share of their attention that each group of keys receives, and how to
run a network with its streams observed or changed."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from stma.model.stma import STMA
from stma.model.streams import Blocks, JointTokens, Others, Prepared, Streams
from stma.structures import KeyValue


@torch.no_grad()
def attention_weights(
    blocks: Blocks, tokens: Tensor, prepared: Prepared | None
) -> Iterator[Tensor]:
    """Run the test stream again and yield its attention, block by block.

    Args:
        tokens: ``(B, L, C)`` of the test frame as they enter the blocks.
        prepared: what it reads besides its own tokens, see :mod:`stma.model.streams`.

    Yields:
        ``(B, heads, L, S)``, over the frame's own tokens first, then over the prepared keys.
    """
    own = tokens.shape[1]
    for index, block in enumerate(blocks):
        if isinstance(prepared, JointTokens):
            # Its own tokens first here too, so that groups have the same order everywhere.
            sequence = tokens if index else torch.cat([tokens, prepared.tokens], dim=1)
            query, keys = block.project(sequence)
            others_mask = prepared.mask
        else:
            sequence = tokens
            query, keys = block.project(sequence)
            others_mask = None
            if isinstance(prepared, Others):
                keys = KeyValue.concatenate(keys, prepared.keys[index])
                others_mask = prepared.mask
        mask = None
        if others_mask is not None:
            visible = others_mask.new_ones(others_mask.shape[0], own)
            mask = rearrange(torch.cat([visible, others_mask], dim=1), "b s -> b 1 1 s")
        yield _softmax(query[:, :, :own], keys, mask)
        tokens = block.update(sequence, query, keys, mask)


def _softmax(query: Tensor, keys: KeyValue, mask: Tensor | None) -> Tensor:
    """The weights that scaled-dot-product attention never shows: ``(B, heads, S', S)``, in fp32."""
    scores = query @ keys.key.transpose(2, 3) / math.sqrt(query.shape[3])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(dim=3)


def share_of_groups(weights: Tensor, segments: Sequence[int]) -> Tensor:
    """The share of attention ``(B, heads, L, S)`` that each group of keys receives:
    ``(1 + groups,)``, the frame's own tokens first; a mean over clips, heads and tokens, of sum 1.

    Args:
        segments: lengths of the groups after its own tokens (``L`` for each reference).
    """
    received = weights.mean(dim=(0, 1, 2))
    own = received.shape[0] - sum(segments)
    return torch.stack([part.sum() for part in received.split([own, *segments])])


def spread_of(weights: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Over what share of its keys attention ``(B, heads, L, S)`` spreads: the exponential of its
    entropy, divided by their number: 1 if all receive the same, ``1 / S`` if one receives all; a
    mean over clips, heads and tokens.

    Args:
        hidden: ``(B,)``, how many keys a mask hides; None for none.
    """
    keys = torch.full_like(weights[:, 0, 0, 0], weights.shape[3])
    if hidden is not None:
        keys = keys - hidden
    entropy = -torch.special.xlogy(weights, weights).sum(dim=3)
    return (entropy.exp().mean(dim=(1, 2)) / keys).mean()


@torch.no_grad()
def object_shares(
    blocks: Blocks, references: Tensor, objects: Tensor, valid_objects: Tensor | None
) -> Tensor:
    """Run the object and the reference streams (Eq. 2, 3), and add up the references' attention.

    Args:
        references, objects, valid_objects: as :meth:`stma.model.streams.Streams.prepare` has them.

    Returns:
        ``(blocks - 1,)``: the share that all objects together receive, a mean over clips,
        references, heads and tokens. In the last block, references read nothing.
    """
    count, length = references.shape[1:3]
    tokens = references.flatten(0, 1)
    mask = object_mask = None
    if valid_objects is not None:
        object_mask = rearrange(valid_objects, "b n -> b 1 1 n")
        repeated = valid_objects.repeat_interleave(count, dim=0)
        own = repeated.new_ones(repeated.shape[0], length)
        mask = rearrange(torch.cat([own, repeated], dim=1), "b s -> b 1 1 s")
    shares = []
    for block in blocks[:-1]:
        query, keys = block.project(tokens)
        object_query, object_keys = block.project(objects)
        each = KeyValue(*(x.repeat_interleave(count, dim=0) for x in object_keys))
        keys = KeyValue.concatenate(keys, each)
        shares.append(_softmax(query, keys, mask)[..., length:].sum(dim=3).mean())
        tokens = block.update(tokens, query, keys, mask)
        objects = block.update(objects, object_query, object_keys, object_mask)
    return torch.stack(shares)


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
    ) -> Prepared:
        references = None if references is None else self.references(references)
        objects = None if objects is None else self.objects(objects)
        return self.inner.prepare(blocks, references, objects, valid_objects)

    def encode(self, blocks: Blocks, tokens: Tensor, prepared: Prepared | None) -> Tensor:
        return self.inner.encode(blocks, tokens, prepared)


@dataclass(frozen=True)
class Look:
    """Where the test stream's attention goes.

    Attributes:
        groups: names of what it reads: ``itself``, ``objects``, ``reference1`` (the oldest), ...
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
        looks: one for every pass of a frame that reads others.
        object_shares: :func:`object_shares` of every memory update, if references read objects.
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
    ) -> Prepared:
        prepared = super().prepare(blocks, references, objects, valid_objects)
        if objects is not None and references is not None and isinstance(prepared, Others):
            shares = object_shares(blocks, references, objects, valid_objects)
            self.object_shares.append(shares.cpu())
        return prepared

    def encode(self, blocks: Blocks, tokens: Tensor, prepared: Prepared | None) -> Tensor:
        if prepared is not None:
            names, lengths = zip(*prepared.groups, strict=True)
            hidden = None if prepared.mask is None else (~prepared.mask).sum(dim=1)
            shares, spreads = [], []
            for weights in attention_weights(blocks, tokens, prepared):
                shares.append(share_of_groups(weights, lengths))
                spreads.append(spread_of(weights, hidden))
            self.looks.append(
                Look(("itself", *names), torch.stack(shares).cpu(), torch.stack(spreads).cpu())
            )
        return super().encode(blocks, tokens, prepared)


@contextmanager
def with_streams(model: STMA, streams: Streams) -> Iterator[None]:
    """Run the model with other streams inside the context."""
    original, model.streams = model.streams, streams
    try:
        yield
    finally:
        model.streams = original


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
