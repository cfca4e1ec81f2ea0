import torch

from stma.memory.spatial import SpatialMemory
from stma.memory.temporal import TemporalMemory
from stma.memory.video import VideoMemory


def test_a_write_to_either_memory_drops_what_was_made_of_both() -> None:
    memory = VideoMemory(SpatialMemory(queue_size=1), TemporalMemory(capacity=10))
    assert memory.is_empty
    memory.prepared = []
    memory.write_references(torch.zeros(1, 4, 8), pinned=True)
    assert memory.prepared is None
    assert not memory.is_empty
    memory.prepared = []
    values = torch.zeros(1, 2, 4, 8)
    memory.write_values(torch.zeros(1, 4, 8), values, torch.zeros(1, 2, 8), pinned=True)
    assert memory.prepared is None
    assert (len(memory.spatial), len(memory.temporal)) == (1, 4)


def test_choosing_references_drops_what_was_made_of_others() -> None:
    memory = VideoMemory()
    memory.prepared = []
    memory.select_references(torch.zeros(1, 1, dtype=torch.long))
    assert memory.prepared is None
