"""The ablations of Table 1 that change which tokens read which.

Each is a pair of calls on the same blocks: `prepare`, once per memory update, for what does not
depend on the test frame, and `encode`, for every frame, on the result of `prepare`. The fifth row,
without temporal memory, is a different network: :mod:`stma.model.per_object`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from stma.model.attention import BlockInHalves
from stma.model.stml import ReferenceCache, encode_references, encode_test
from stma.structures import Rope, unrotated

Blocks = Sequence[BlockInHalves]


Groups = tuple[tuple[str, int], ...]
"""What a sequence of tokens consists of: names and lengths, in order."""


@dataclass(frozen=True)
class Others:
    """Keys and values that the test frame reads besides its own.

    Attributes:
        keys: of every block, ``(B, heads, S, d)``.
        groups: whose they are.
        mask: ``(B, S)`` bool, False for padding; None if all are real.
        objects: the object tokens as they enter the last block, ``(B, N, C)``; None without any.
    """

    keys: ReferenceCache
    groups: Groups
    mask: Tensor | None = None
    objects: Tensor | None = None


@dataclass(frozen=True)
class JointTokens:
    """Tokens that go through the blocks together with the test frame's: ``(B, S, C)``."""

    tokens: Tensor
    groups: Groups
    mask: Tensor | None = None


Prepared = Others | JointTokens


def reference_groups(references: Tensor) -> Groups:
    """Groups of references ``(B, R, L, C)``, one after another."""
    return tuple((f"reference{i + 1}", references.shape[2]) for i in range(references.shape[1]))


def object_group(objects: Tensor) -> tuple[str, int]:
    """The group of objects ``(B, N, C)``."""
    return ("objects", objects.shape[1])


def hide_last(prepared: Prepared, number: int) -> Prepared:
    """The same, but its last tokens, that many, are not read: they are empty slots."""
    held = prepared.keys[0].key[:, 0] if isinstance(prepared, Others) else prepared.tokens
    batch, length = held.shape[:2]
    mask = (torch.arange(length, device=held.device) < length - number).repeat(batch, 1)
    return replace(prepared, mask=mask if prepared.mask is None else mask & prepared.mask)


class Streams(ABC):
    """Which tokens read which.

    Attributes:
        reads_objects, reads_references: whether these take part at all.
        gives_object_tokens: whether object tokens leave the blocks apart from the frame's
            (:attr:`Others.objects`), which `loss.objects` needs.
    """

    reads_objects = True
    reads_references = True
    gives_object_tokens = True

    @abstractmethod
    def prepare(
        self,
        blocks: Blocks,
        references: Tensor | None,
        objects: Tensor | None,
        valid_objects: Tensor | None,
        rope: Rope | None = None,
    ) -> Prepared:
        """What the test frame will read.

        Args:
            references: ``(B, R, L, C)``; None if the variant does not read them.
            objects: ``(B, N, C)``; None likewise.
            valid_objects: ``(B, N)`` bool, False for padding; None if all are real.
            rope: of a frame's tokens; None for a backbone without.
        """

    def prepare_slots(
        self,
        blocks: Blocks,
        references: Tensor | None,
        objects: Tensor | None,
        valid_objects: Tensor | None,
        empty: int | None,
        rope: Rope | None = None,
    ) -> Prepared:
        """As `prepare`, with that many empty slots after the references; None leaves out their
        mask, too."""
        if references is None or empty is None:
            return self.prepare(blocks, references, objects, valid_objects, rope)
        padded = F.pad(references, (0, 0, 0, 0, 0, empty))
        prepared = self.prepare(blocks, padded, objects, valid_objects, rope)
        return hide_last(prepared, empty * references.shape[2])

    def encode(
        self,
        blocks: Blocks,
        tokens: Tensor,
        prepared: Prepared | None,
        rope: Rope | None = None,
    ) -> Tensor:
        """The test frame's tokens ``(B, L, C)`` after all blocks; with None they read only
        themselves."""
        if prepared is None:
            return encode_test(blocks, tokens, None, rope=rope)
        assert isinstance(prepared, Others)
        return encode_test(blocks, tokens, prepared.keys, prepared.mask, rope)


class FullStreams(Streams):
    """Eq. 2-4: objects -> references -> test."""

    def prepare(
        self,
        blocks: Blocks,
        references: Tensor | None,
        objects: Tensor | None,
        valid_objects: Tensor | None,
        rope: Rope | None = None,
    ) -> Others:
        assert references is not None
        keys, objects = encode_references(blocks, references, objects, valid_objects, rope)
        return Others(keys, reference_groups(references), objects=objects)


class WithoutObjects(FullStreams):
    """References attend to themselves; the test frame as in Eq. 4."""

    reads_objects = False
    gives_object_tokens = False


class WithoutReferences(Streams):
    """The test frame reads itself and the objects, which read one another (Eq. 2)."""

    reads_references = False

    def prepare(
        self,
        blocks: Blocks,
        references: Tensor | None,
        objects: Tensor | None,
        valid_objects: Tensor | None,
        rope: Rope | None = None,
    ) -> Others:
        assert objects is not None
        groups = (object_group(objects),)
        mask = None if valid_objects is None else rearrange(valid_objects, "b n -> b 1 1 n")
        keys: ReferenceCache = []
        for index, block in enumerate(blocks):
            query, own = block.project(objects)
            keys.append(own)
            if index + 1 < len(blocks):
                objects = block.update(objects, query, own, mask)
        return Others(keys, groups, valid_objects, objects)


class JointSelfAttention(Streams):
    """One self-attention over ``[F_o ; F_r ; F_t]``, all to all: nothing can be prepared."""

    gives_object_tokens = False

    def prepare(
        self,
        blocks: Blocks,
        references: Tensor | None,
        objects: Tensor | None,
        valid_objects: Tensor | None,
        rope: Rope | None = None,
    ) -> JointTokens:
        assert references is not None
        assert objects is not None
        tokens = torch.cat([objects, references.flatten(1, 2)], dim=1)
        mask = None
        if valid_objects is not None:
            frames = valid_objects.new_ones(tokens.shape[0], tokens.shape[1] - objects.shape[1])
            mask = torch.cat([valid_objects, frames], dim=1)
        groups = (object_group(objects), *reference_groups(references))
        return JointTokens(tokens, groups, mask)

    def encode(
        self,
        blocks: Blocks,
        tokens: Tensor,
        prepared: Prepared | None,
        rope: Rope | None = None,
    ) -> Tensor:
        if prepared is None:
            return encode_test(blocks, tokens, None, rope=rope)
        assert isinstance(prepared, JointTokens)
        mask = None
        if prepared.mask is not None:
            own = prepared.mask.new_ones(tokens.shape[:2])
            mask = rearrange(torch.cat([prepared.mask, own], dim=1), "b s -> b 1 1 s")
        joint = torch.cat([prepared.tokens, tokens], dim=1)
        for index, block in enumerate(blocks):
            placed = None
            if rope is not None:
                (_, objects), *references = prepared.groups
                placed = torch.cat(
                    [unrotated(rope[index], objects), *[rope[index]] * (len(references) + 1)], -2
                )
            joint = block.update(joint, *block.project(joint, placed), mask)
        return joint[:, -tokens.shape[1] :]


PER_OBJECT = "no_temporal_memory"
STREAMS: dict[str, type[Streams]] = {
    "full": FullStreams,
    "no_object": WithoutObjects,
    "no_spatial_memory": WithoutReferences,
    "joint": JointSelfAttention,
}
VARIANTS = (*STREAMS, PER_OBJECT)
