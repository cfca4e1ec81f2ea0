"""All that is remembered of one video (or of one batch of training clips)."""

from dataclasses import dataclass, field

from torch import Tensor

from stma.memory.spatial import SpatialMemory
from stma.memory.temporal import TemporalMemory
from stma.structures import KeyValue


@dataclass
class VideoMemory:
    """Both memories, and what the network derives from them between two updates.

    Attributes:
        valid_objects: ``(B, N)`` bool, False where a batch pads; None where all are real.
        reference_cache: keys and values of the references for every STML block. They are constants
            until either memory changes, so they are computed once per update.
    """

    spatial: SpatialMemory = field(default_factory=lambda: SpatialMemory(queue_size=None))
    temporal: TemporalMemory = field(default_factory=TemporalMemory)
    valid_objects: Tensor | None = None
    reference_cache: list[KeyValue] | None = None

    def __len__(self) -> int:
        """Reference frames held."""
        return len(self.spatial)

    def write(
        self, tokens: Tensor, keys: Tensor, values: Tensor, pooled: Tensor, *, pinned: bool
    ) -> None:
        """Memorise a frame in both; shapes as the two memories have them."""
        self.spatial.write(tokens, pinned=pinned)
        self.temporal.write(keys, values, pooled, pinned=pinned)
        self.reference_cache = None

    def select_references(self, indices: Tensor) -> None:
        """Choose the references by hand ``(B, R)``, as training does at random."""
        self.spatial.select(indices)
        self.reference_cache = None
