"""Records that cross module boundaries, and the legend of the shape letters used everywhere.

====  =====================================================================
B     clips in a batch
T     frames of a clip
N     objects of a clip, including padded ones; index masks count from 1
H, W  height and width of a frame in pixels
h, w  the same at stride 16 (``H / 16``, ``W / 16``)
L     tokens of a frame, ``h * w``
C     width of a token
R     reference frames (``m`` in the paper)
M     elements of the temporal memory (``T * h * w`` in the paper, before eviction)
S     length of any other sequence of keys
====  =====================================================================
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision to fp32; fp32 and fp64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Clip:
    """One training sample, as made by a data source.

    Attributes:
        name: where it comes from, for messages.
        frames: ``(T, H, W, 3)`` uint8, RGB.
        masks: ``(T, H, W)`` uint8; 0 is background, objects are ``1..num_objects``.
        num_objects: all of them visible in frame 0.
        references: ``(T, R)`` int64, the past frames that serve as references of frame ``t``;
            row 0 is unused, and row 1 always names frame 0.
    """

    name: str
    frames: np.ndarray
    masks: np.ndarray
    num_objects: int
    references: np.ndarray


@dataclass(frozen=True)
class ClipBatch:
    """Clips of equal length and size, padded to the same number of objects.

    Attributes:
        names: one for each clip.
        frames: ``(B, T, 3, H, W)`` uint8, RGB.
        masks: ``(B, T, H, W)`` uint8 index masks.
        valid_objects: ``(B, N)`` bool, False where the batch pads.
        references: ``(B, T, R)`` int64, see :class:`Clip`.
        has_padding: False promises that all objects are valid, so that nothing needs to be masked;
            known on the host, which then need not wait for a GPU.
    """

    names: list[str]
    frames: Tensor
    masks: Tensor
    valid_objects: Tensor
    references: Tensor
    has_padding: bool = True

    @classmethod
    def collate(cls, clips: list[Clip]) -> "ClipBatch":
        """Stack clips; objects are padded to the largest count among them."""
        shapes = {clip.frames.shape for clip in clips}
        if len(shapes) > 1:
            sizes = ", ".join(f"{clip.name}: {clip.frames.shape}" for clip in clips)
            raise ValueError(f"clips of a batch differ in length or size: {sizes}")
        num_objects = torch.tensor([clip.num_objects for clip in clips])
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        return cls(
            names=[clip.name for clip in clips],
            frames=frames.permute(0, 1, 4, 2, 3),  # channels last in memory: no copy
            masks=torch.from_numpy(np.stack([clip.masks for clip in clips])),
            valid_objects=torch.arange(int(num_objects.max())) < num_objects[:, None],
            references=torch.from_numpy(np.stack([clip.references for clip in clips])),
            has_padding=bool((num_objects != num_objects[0]).any()),
        )

    def to(self, device: torch.device | str) -> "ClipBatch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ClipBatch":
        """Called by the data loader, so that copies to a GPU do not wait."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ClipBatch":
        tensors: dict[str, Any] = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)

    def __len__(self) -> int:
        return len(self.names)


class KeyValue(NamedTuple):
    """Keys and values of one block, ``(B, heads, S, C / heads)`` each."""

    key: Tensor
    value: Tensor

    @staticmethod
    def concatenate(*parts: "KeyValue") -> "KeyValue":
        """``[a ; b ; ...]`` along the sequence."""
        return KeyValue(
            torch.cat([part.key for part in parts], dim=2),
            torch.cat([part.value for part in parts], dim=2),
        )


Rope = Sequence[Tensor]
"""Rotary position embeddings of the tokens of a frame, one for each block: sines and cosines
``(S, 2 d)`` or, for each head, ``(heads, S, 2 d)``."""


def unrotated(rope: Tensor, count: int) -> Tensor:
    """The embedding of so many tokens without a place, beside ``rope``: ``(..., count, 2 d)``."""
    shape = (*rope.shape[:-2], count, rope.shape[-1] // 2)
    return torch.cat([rope.new_zeros(shape), rope.new_ones(shape)], dim=-1)


@dataclass(frozen=True)
class Prediction:
    """The result of unrolling a clip, for its frames ``1..T-1``.

    Attributes:
        logits: ``(B, T-1, N+1, H, W)``; their softmax over dimension 2 gives the probabilities
            of the background (index 0) and of every object. Padded objects hold ``-inf``.
        object_logits: ``(B, T-1, N, h, w)`` at stride 16, from the object tokens alone; only in
            training, and None for variants without such tokens.
    """

    logits: Tensor
    object_logits: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        """``(B, T-1, N+1, H, W)``."""
        return self.logits.softmax(dim=2)
