"""Spatial memory: a first-in-first-out queue of reference frames."""

from itertools import pairwise

import torch
from torch import Tensor

from stma.errors import InputError


class SpatialMemory:
    """Tokens of past frames as they entered the last stage.

    A frame that first gave an object is pinned and never leaves; of the others, the newest
    ``queue_size`` stay. With one pinned frame and the default of 1 there are two references: the
    first frame and the latest memorised one (``m = 2``, ours).

    Args:
        queue_size: unpinned frames to hold; None holds all.
        max_pinned: how many of the newest pinned frames serve as references; None takes all, as in
            the paper. All are kept in any case.
    """

    def __init__(self, queue_size: int | None = 1, max_pinned: int | None = None) -> None:
        if queue_size is not None and queue_size < 0:
            raise InputError(f"queue_size is {queue_size}; give 0 or more, or null for no limit")
        if max_pinned is not None and max_pinned < 1:
            raise InputError(f"max_pinned is {max_pinned}; give 1 or more, or null for all")
        self.queue_size = queue_size
        self.max_pinned = max_pinned
        self._frames: list[tuple[Tensor, bool]] = []
        self._selection: Tensor | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def write(self, tokens: Tensor, *, pinned: bool) -> None:
        """Add a frame, and drop the oldest unpinned one beyond the queue.

        Args:
            tokens: ``(B, L, C)``, or ``(B, N, L, C)`` if each object has its own.
        """
        self._frames.append((tokens, pinned))
        self._selection = None
        unpinned = [index for index, (_, keep) in enumerate(self._frames) if not keep]
        if self.queue_size is not None and len(unpinned) > self.queue_size:
            del self._frames[unpinned[0]]

    def remove(self, index: int, frame: int | None) -> None:
        """Remove an object, and the frames that show none of the remaining ones.

        Args:
            index: of the object; the ones after it move up.
            frame: which of the pinned frames, counted from the oldest, gave only this object; None
                if another came with it. It is dropped, and so is everything older than the pinned
                frame that is then the first.
        """
        self._selection = None
        if frame is not None and self._frames:
            pinned = [position for position, (_, keep) in enumerate(self._frames) if keep]
            del self._frames[pinned[frame]]
            while self._frames and not self._frames[0][1]:
                del self._frames[0]
        self._frames = [(without(tokens, index), pinned) for tokens, pinned in self._frames]

    @property
    def frames(self) -> list[tuple[Tensor, bool]]:
        """Tokens of all frames held, oldest first, and whether they are pinned."""
        return list(self._frames)

    def restore(self, frames: list[tuple[Tensor, bool]]) -> None:
        """Restore what :attr:`frames` returned."""
        self._frames = list(frames)
        self._selection = None

    def select(self, indices: Tensor) -> None:
        """Choose the references by hand, until the next write.

        Args:
            indices: ``(B, R)`` int64 positions among the frames held, oldest first.
        """
        self._selection = indices

    def references(self, objects: slice | None = None) -> Tensor:
        """The selection, or the pinned frames and the queue, oldest first.

        Args:
            objects: if frames hold tokens per object, the range of objects to take, from the frames
                that have them.

        Returns:
            ``(B, R, L, C)``; with objects ``(B, N', R, L, C)``.
        """
        chosen = self._chosen()
        if objects is not None:
            chosen = [tokens[:, objects] for tokens in chosen if tokens.shape[1] >= objects.stop]
        held = torch.stack(chosen, dim=1)
        if self._selection is not None:
            held = held[torch.arange(held.shape[0], device=held.device)[:, None], self._selection]
        return held if objects is None else held.transpose(1, 2)

    def empty_slots(self, objects: slice | None = None) -> int | None:
        """How many more references the queue has room for; None if it has no slots, or no limit.

        Args:
            objects: count the references of these objects only, as in :meth:`references`.
        """
        if not self.queue_size:
            return None
        return self.queue_size - sum(
            not pinned and (objects is None or tokens.shape[1] >= objects.stop)
            for tokens, pinned in self._frames
        )

    def object_groups(self) -> list[slice]:
        """If frames hold tokens per object: ranges of objects that have the same frames, whether
        these serve as references or not, so that only a new object makes a new range."""
        counts = sorted({tokens.shape[1] for tokens, _ in self._frames})
        return [slice(start, stop) for start, stop in pairwise([0, *counts])]

    def _chosen(self) -> list[Tensor]:
        """All frames held, except pinned ones beyond ``max_pinned``."""
        if self._selection is not None or self.max_pinned is None:
            return [tokens for tokens, _ in self._frames]
        skipped = sum(pinned for _, pinned in self._frames) - self.max_pinned
        chosen = []
        for tokens, pinned in self._frames:
            if pinned and skipped > 0:
                skipped -= 1
            else:
                chosen.append(tokens)
        return chosen


def without(tokens: Tensor, index: int) -> Tensor:
    """Tokens ``(B, N, L, C)`` without one object; unchanged if they belong to no object
    ``(B, L, C)``, or only to older ones."""
    if tokens.ndim == 3 or tokens.shape[1] <= index:
        return tokens
    return torch.cat([tokens[:, :index], tokens[:, index + 1 :]], dim=1)
