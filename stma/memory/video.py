"""All that is remembered of one video (or of one batch of training clips)."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stma.memory.spatial import SpatialMemory
from stma.memory.temporal import TemporalMemory


@dataclass
class VideoMemory:
    """Both memories, and what the network derives from them between two updates.

    Attributes:
        valid_objects: ``(B, N)`` bool, False for padding; None if all are real.
        prepared: what the network has derived from the memories' tokens (such as the references'
            keys and values for every STML block). It is constant until either memory changes, so it
            is computed once per update.
        is_empty: no frame has been memorised yet.
    """

    spatial: SpatialMemory = field(default_factory=lambda: SpatialMemory(queue_size=None))
    temporal: TemporalMemory = field(default_factory=TemporalMemory)
    valid_objects: Tensor | None = None
    prepared: Any = None
    is_empty: bool = True

    def write_references(self, tokens: Tensor, *, pinned: bool) -> None:
        """Memorise a frame's tokens in the spatial memory."""
        self.spatial.write(tokens, pinned=pinned)
        self._updated()

    def write_values(self, keys: Tensor, values: Tensor, pooled: Tensor, *, pinned: bool) -> None:
        """Memorise a frame in the temporal memory; shapes as in :meth:`TemporalMemory.write`."""
        self.temporal.write(keys, values, pooled, pinned=pinned)
        self._updated()

    def remove(self, index: int, frame: int | None) -> None:
        """Remove an object from both memories; it must not be the only one.

        Args:
            index, frame: see :meth:`SpatialMemory.remove`.
        """
        self.spatial.remove(index, frame)
        self.temporal.remove(index)
        self.prepared = None

    def _updated(self) -> None:
        self.prepared = None
        self.is_empty = False

    def select_references(self, indices: Tensor) -> None:
        """Choose the references by hand ``(B, R)``, as training does at random."""
        self.spatial.select(indices)
        self.prepared = None
