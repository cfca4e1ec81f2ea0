import torch

from stma.memory.spatial import SpatialMemory
from stma.memory.temporal import TemporalMemory
from stma.memory.video import VideoMemory


def test_a_write_reaches_both_memories_and_drops_the_cache() -> None:
    memory = VideoMemory(SpatialMemory(queue_size=1), TemporalMemory(capacity=10))
    assert len(memory) == 0
    memory.reference_cache = []
    memory.write(
        torch.zeros(1, 4, 8),
        torch.zeros(1, 4, 8),
        torch.zeros(1, 2, 4, 8),
        torch.zeros(1, 2, 8),
        pinned=True,
    )
    assert (len(memory), len(memory.temporal)) == (1, 4)
    assert memory.reference_cache is None


def test_choosing_references_drops_the_cache() -> None:
    memory = VideoMemory()
    memory.reference_cache = []
    memory.select_references(torch.zeros(1, 1, dtype=torch.long))
    assert memory.reference_cache is None
