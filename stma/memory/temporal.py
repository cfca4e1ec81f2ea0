"""Temporal memory: keys shared by all objects, and ID values for each object.

With a capacity it is allocated once and written in place, never waits for the device, and evicts
the least frequently used elements. Without one, as in training, it grows and passes gradients.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stma.errors import InputError

log = logging.getLogger(__name__)

# A memory's state besides its tensors; `capacity` and `max_frames` grow if they must.
COUNTS = (
    "capacity",
    "max_frames",
    "size",
    "_group_sizes",
    "_group_entered",
    "_num_writes",
    "_pinned_elements",
    "_pinned_frames",
)


def least_used(usage: Tensor, age: Tensor, protected: Tensor, count: int) -> Tensor:
    """The elements to evict: those that received the least affinity per unit of age (XMem).

    Args:
        usage: ``(B, M)`` affinity received since the element was written.
        age: ``(B, M)`` reads since the element was written.
        protected: ``(B, M)`` bool, never to be evicted.
        count: how many; at most as many as are unprotected.

    Returns:
        ``(B, count)`` indices.
    """
    frequency = (usage / age.clamp(min=1)).masked_fill(protected, float("inf"))
    return frequency.topk(count, dim=1, largest=False).indices


@dataclass(frozen=True)
class ObjectGroup:
    """Objects that entered at the same frame, and so share their memory elements.

    Attributes:
        objects: their range among all objects.
        present: ``(B, M)`` bool, the elements written since then; None if all were.
    """

    objects: slice
    present: Tensor | None


@dataclass
class WholeBuffer:
    """A temporal memory as a compiled frame reads it: all of its buffer, whatever is filled, so
    that shapes stay as they are until an object enters.

    Attributes:
        keys, values, groups: see :class:`TemporalMemory`; what is not filled is not present.
        received: what :meth:`count_use` was given, in the order of the groups.
    """

    keys: Tensor
    values: Tensor
    groups: list[ObjectGroup]
    received: list[Tensor] = field(default_factory=list)

    def count_use(self, received: Tensor, group: ObjectGroup) -> None:
        """Keep it for :meth:`TemporalMemory.count_use`."""
        self.received.append(received)


class TemporalMemory:
    """Keys ``(B, M, C)``, values ``(B, M, N, C)`` and a pooled token per object and frame.

    Args:
        capacity: elements (``h * w`` per frame); None grows without limit. Elements of pinned
            frames are never evicted; if they would leave no room for another frame, the capacity
            grows by what is missing, with a warning.
        max_frames: frames of which elements may remain. Beyond it, the unpinned frame with the
            fewest elements left is evicted entirely, so that a long video needs bounded memory.
    """

    def __init__(self, capacity: int | None = None, max_frames: int = 64) -> None:
        if capacity is not None and capacity < 1:
            raise InputError(f"capacity is {capacity} elements; give 1 or more, or null")
        if max_frames < 2:
            raise InputError(f"max_frames is {max_frames}; give 2 or more")
        self.capacity = capacity
        self.max_frames = max_frames
        self.size = 0
        self._group_sizes: list[int] = []
        self._group_entered: list[int] = []
        self._num_writes = 0
        self._pinned_elements = 0
        self._pinned_frames = 0
        # Per element: B x M first.
        self._keys: Tensor | None = None
        self._values: Tensor
        self._usage: Tensor
        self._age: Tensor
        self._frame: Tensor  # the row of the element's frame in `_tokens`
        # Per frame: B x F first.
        self._tokens: Tensor
        self._written: Tensor  # number of the write, from 0
        self._pinned: Tensor

    @property
    def num_objects(self) -> int:
        return sum(self._group_sizes)

    def __len__(self) -> int:
        """Number of elements held."""
        return self.size

    @property
    def keys(self) -> Tensor:
        """``(B, M, C)``."""
        assert self._keys is not None, "the memory is empty"
        return self._keys[:, : self.size]

    @property
    def values(self) -> Tensor:
        """``(B, M, N, C)``; zero for elements older than the object."""
        return self._values[:, : self.size]

    @property
    def groups(self) -> list[ObjectGroup]:
        return self._groups(self._frame[:, : self.size], None)

    def _groups(self, frame: Tensor, filled: Tensor | None) -> list[ObjectGroup]:
        """The groups, as they read elements of these frames ``(B, M)``.

        Args:
            filled: ``(B, M)`` bool, the elements that exist; None if all do.
        """
        groups = []
        start = 0
        for size, entered in zip(self._group_sizes, self._group_entered, strict=True):
            present = filled
            if start > 0:  # nothing held is older than the first group
                present = self._written.gather(1, frame) >= entered
                if filled is not None:
                    present = filled & present
            groups.append(ObjectGroup(slice(start, start + size), present))
            start += size
        return groups

    def whole_buffer(self) -> WholeBuffer:
        """What to read until the next write, in a memory with a capacity."""
        assert self._keys is not None, "the memory is empty"
        assert self.capacity is not None
        filled = torch.arange(self._keys.shape[1], device=self._keys.device) < self.size
        groups = self._groups(self._frame, filled.expand_as(self._frame))
        return WholeBuffer(self._keys, self._values, groups)

    @property
    def object_tokens(self) -> Tensor:
        """``(B, N, C)``: the maximum over the frames that have elements left (Eq. 5)."""
        if self.capacity is None:
            return self._tokens.amax(dim=1)
        gone = self._elements_per_frame() == 0
        return self._tokens.masked_fill(gone[:, :, None, None], float("-inf")).amax(dim=1)

    def count_use(self, received: Tensor, group: ObjectGroup) -> None:
        """Record a read, for eviction.

        Args:
            received: ``(B, M)``, or longer, for the whole buffer: the softmax affinity of all
                queries to each element, as read by the objects in ``group``; it is weighted by
                their share of all objects.
        """
        if self.capacity is None:
            return
        objects = group.objects
        share = (objects.stop - objects.start) / self.num_objects
        self._usage[:, : self.size] += share * received[:, : self.size]
        if objects.start == 0:  # once per read
            self._age[:, : self.size] += 1

    def write(self, keys: Tensor, values: Tensor, tokens: Tensor, *, pinned: bool) -> None:
        """Memorise a frame.

        Args:
            keys: ``(B, L, C)``.
            values: ``(B, N, L, C)``; objects not yet known enter with this frame.
            tokens: ``(B, N, C)``, each object's values pooled over this frame.
            pinned: never evict it: it is the first frame of an object.
        """
        entering = values.shape[1] - self.num_objects
        if entering < 0:
            raise ValueError(f"values of {values.shape[1]} objects; {self.num_objects} are known")
        values = values.transpose(1, 2)
        if self.capacity is None:
            self._grow(keys, values, tokens)
        else:
            self._reserve(keys, values, tokens)
            self._overwrite(keys, values, tokens, pinned)
        if entering:
            self._group_sizes.append(entering)
            self._group_entered.append(self._num_writes)
        self._num_writes += 1

    def remove(self, index: int) -> None:
        """Remove an object, and all elements older than the remaining objects.

        If no other object entered with it, its first frame may be evicted from now on. Only for a
        single video, a batch of 1.

        Args:
            index: of the object; the ones after it move up.
        """
        if self._keys is None:
            return
        assert self._keys.shape[0] == 1, "removing an object from a batch"
        for name in ("_values", "_tokens"):
            held = getattr(self, name)
            setattr(self, name, torch.cat([held[:, :, :index], held[:, :, index + 1 :]], dim=2))
        group = next(i for i, group in enumerate(self.groups) if index < group.objects.stop)
        self._group_sizes[group] -= 1
        if self._group_sizes[group]:
            return
        del self._group_sizes[group]
        entered = self._group_entered.pop(group)
        if self.capacity is not None:
            self._pinned &= self._written != entered
            self._pinned_elements -= self._pinned_elements // self._pinned_frames
            self._pinned_frames -= 1
        if group == 0 and self._group_sizes:
            self._forget_before(self._group_entered[0])

    def _forget_before(self, write: int) -> None:
        """Free the elements of frames older than the one with that number."""
        written = self._written.gather(1, self._frame[:, : self.size])
        kept = (written[0] >= write).nonzero()[:, 0]
        self.size = kept.shape[0]
        for name in self._element_buffers():
            held = getattr(self, name)[:, kept]
            setattr(self, name, held if self.capacity is None else _pad(held, 1, self.capacity))

    def _element_buffers(self) -> tuple[str, ...]:
        """What is held per element, ``(B, M, ...)``."""
        always = ("_keys", "_values", "_frame")
        return always if self.capacity is None else (*always, "_usage", "_age")

    def _frame_buffers(self) -> tuple[str, ...]:
        """What is held per frame, ``(B, F, ...)``."""
        always = ("_tokens", "_written")
        return always if self.capacity is None else (*always, "_pinned")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything :meth:`restore` needs: tensors by name, and values that JSON can hold."""
        values = {name: getattr(self, name) for name in COUNTS}
        if self._keys is None:
            return {}, values
        tensors = {name: getattr(self, name)[:, : self.size] for name in self._element_buffers()}
        return tensors | {name: getattr(self, name) for name in self._frame_buffers()}, values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned, in a memory with the same settings.

        Raises:
            KeyError: something is missing.
        """
        for name in COUNTS:
            setattr(self, name, values[name])
        if tensors:
            for name in (*self._element_buffers(), *self._frame_buffers()):
                setattr(self, name, tensors[name])

    def _grow(self, keys: Tensor, values: Tensor, tokens: Tensor) -> None:
        if self._keys is None:
            self._keys, self._values, self._tokens = keys, values, tokens[:, None]
            self._frame = torch.zeros(keys.shape[:2], dtype=torch.long, device=keys.device)
        else:
            self._let_in(values.shape[2])
            self._keys = torch.cat([self._keys, keys], dim=1)
            self._values = torch.cat([self._values, values], dim=1)
            self._tokens = torch.cat([self._tokens, tokens[:, None]], dim=1)
            row = torch.full_like(self._frame[:, :1], self._num_writes)
            self._frame = torch.cat([self._frame, row.expand(-1, keys.shape[1])], dim=1)
        self._written = torch.arange(self._num_writes + 1, device=keys.device)
        self._written = self._written.expand(keys.shape[0], -1)
        self.size = self._keys.shape[1]

    def _reserve(self, keys: Tensor, values: Tensor, tokens: Tensor) -> None:
        """Make the buffers fit: allocate them, add new objects, keep room for one frame."""
        assert self.capacity is not None
        count = keys.shape[1]
        if self._pinned_elements + count > self.capacity:
            needed = self._pinned_elements + count
            log.warning(
                "temporal memory: frames that are never evicted hold %d of %d elements, and a new "
                "frame has %d; the capacity grows to %d",
                self._pinned_elements,
                self.capacity,
                count,
                needed,
            )
            self.capacity = needed
        if self._pinned_frames + 1 >= self.max_frames:
            self.max_frames = 2 * self.max_frames
        # With every frame row in use the memory is full, so an evicted frame's elements are
        # always overwritten by the frame that takes its row.
        self.max_frames = max(self.max_frames, self.capacity // count + 2)

        if self._keys is None:
            batch = keys.shape[0]
            self._keys = keys.new_zeros(batch, 0, keys.shape[2])
            self._values = values.new_zeros(batch, 0, *values.shape[2:])
            self._usage = torch.zeros(batch, 0, device=keys.device)
            self._age = torch.zeros(batch, 0, device=keys.device)
            self._frame = torch.zeros(batch, 0, dtype=torch.long, device=keys.device)
            self._tokens = tokens.new_zeros(batch, 0, *tokens.shape[1:])
            self._written = torch.zeros(batch, 0, dtype=torch.long, device=keys.device)
            self._pinned = torch.zeros(batch, 0, dtype=torch.bool, device=keys.device)
        self._let_in(values.shape[2])
        for name in self._element_buffers():
            setattr(self, name, _pad(getattr(self, name), dim=1, size=self.capacity))
        for name in self._frame_buffers():
            setattr(self, name, _pad(getattr(self, name), dim=1, size=self.max_frames))

    def _let_in(self, num_objects: int) -> None:
        """New objects have zeros in the elements already held."""
        self._values = _pad(self._values, dim=2, size=num_objects)
        self._tokens = _pad(self._tokens, dim=2, size=num_objects, value=float("-inf"))

    def _overwrite(self, keys: Tensor, values: Tensor, tokens: Tensor, pinned: bool) -> None:
        """Write into free elements and rows first, then over the least used ones."""
        assert self.capacity is not None
        assert self._keys is not None
        batch, count = keys.shape[:2]
        device = keys.device

        usage = self._usage
        if self._num_writes < self.max_frames:
            row = torch.full((batch, 1), self._num_writes, device=device)
        else:
            held = self._elements_per_frame()
            row = held.masked_fill(self._pinned, self.capacity + 1).argmin(dim=1, keepdim=True)
            usage = usage.masked_fill(self._frame == row, -1.0)

        free = torch.arange(self.size, min(self.size + count, self.capacity), device=device)
        elements = free.expand(batch, -1)
        missing = count - free.shape[0]
        if missing:
            # Before the first eviction all elements up to `size` are in use; the rest are free.
            in_use = slice(0, self.size)
            protected = self._pinned.gather(1, self._frame[:, in_use])
            evicted = least_used(usage[:, in_use], self._age[:, in_use], protected, missing)
            elements = torch.cat([elements, evicted], dim=1)

        _write_rows(self._keys, elements, keys)
        _write_rows(self._values, elements, values)
        self._usage.scatter_(1, elements, 0.0)
        self._age.scatter_(1, elements, 0.0)
        self._frame.scatter_(1, elements, row.expand(-1, count))
        _write_rows(self._tokens, row, tokens[:, None])
        self._written.scatter_(1, row, self._num_writes)
        self._pinned.scatter_(1, row, pinned)
        self.size = min(self.size + count, self.capacity)
        if pinned:
            self._pinned_elements += count
            self._pinned_frames += 1

    def _elements_per_frame(self) -> Tensor:
        """``(B, F)``."""
        frame = self._frame[:, : self.size]
        return torch.zeros_like(self._written).scatter_add_(1, frame, torch.ones_like(frame))


def _write_rows(target: Tensor, index: Tensor, rows: Tensor) -> None:
    """``target[b, index[b, i]] = rows[b, i]``, in place."""
    batch = torch.arange(index.shape[0], device=index.device)[:, None]
    target.index_put_((batch, index), rows.to(target.dtype))  # scatter_ would copy all of a target


def _pad(x: Tensor, dim: int, size: int, value: float = 0.0) -> Tensor:
    """``x`` with ``dim`` enlarged to ``size``, or ``x`` itself if it is that large."""
    if x.shape[dim] >= size:
        return x
    shape = list(x.shape)
    shape[dim] = size
    count = int(np.prod(shape))
    if value == 0.0 and x.device.type == "cpu" and count:
        # NumPy's zeros take memory only once they are written to, PyTorch's at once.
        zeros = np.zeros(count * x.element_size(), np.uint8)
        padded = torch.from_numpy(zeros).view(x.dtype).view(shape)
    else:
        padded = x.new_full(shape, value)
    padded.narrow(dim, 0, x.shape[dim]).copy_(x)
    return padded
