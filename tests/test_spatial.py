import pytest
import torch
from torch import Tensor

from stma.memory.spatial import SpatialMemory


def frame(number: float) -> Tensor:
    return torch.full((1, 2, 3), number)


def numbers(memory: SpatialMemory) -> list[float]:
    return memory.references()[0, :, 0, 0].tolist()


def test_first_in_first_out_with_pinned_frames_kept() -> None:
    memory = SpatialMemory(queue_size=2)
    for number in range(6):
        memory.write(frame(number), pinned=number in (0, 3))
    assert numbers(memory) == [0, 3, 4, 5]
    assert len(memory) == 4


def test_one_frame_is_one_reference() -> None:
    memory = SpatialMemory(queue_size=1)
    memory.write(frame(7), pinned=True)
    assert numbers(memory) == [7]


def test_a_queue_of_none_holds_pinned_frames_alone() -> None:
    memory = SpatialMemory(queue_size=0)
    for number in range(3):
        memory.write(frame(number), pinned=number == 0)
    assert numbers(memory) == [0]


def test_slots_of_the_queue_are_empty_until_frames_come_that_know_the_objects() -> None:
    memory = SpatialMemory(queue_size=2)
    empty = []
    for count, pinned in ((2, True), (2, False), (3, True), (3, False), (3, False)):
        memory.write(torch.zeros(1, count, 1, 1), pinned=pinned)
        empty.append([memory.empty_slots(slice(0, 2)), memory.empty_slots(slice(2, 3))])
    assert empty == [[2, 2], [1, 2], [1, 2], [0, 1], [0, 0]]
    assert SpatialMemory(queue_size=0).empty_slots() is None


def test_pinned_references_can_be_limited_to_the_newest() -> None:
    memory = SpatialMemory(queue_size=1, max_pinned=2)
    for number in range(5):
        memory.write(frame(number), pinned=number < 4)
    assert numbers(memory) == [2, 3, 4]
    assert len(memory) == 5


def test_selection_by_hand_lasts_until_the_next_write() -> None:
    memory = SpatialMemory(queue_size=None)
    for number in range(4):
        memory.write(torch.tensor([number, number + 10.0]).view(2, 1, 1), pinned=False)
    memory.select(torch.tensor([[0, 2], [1, 3]]))
    assert memory.references().flatten().tolist() == [0, 2, 11, 13]
    memory.write(torch.zeros(2, 1, 1), pinned=False)
    assert memory.references().shape[1] == 5


def test_objects_with_tokens_of_their_own_have_the_frames_that_know_them() -> None:
    """Two objects enter with frame 0, a third with frame 1."""
    memory = SpatialMemory(queue_size=None)
    for number, count in ((0, 2), (1, 3), (2, 3)):
        tokens = 10 * torch.arange(count).view(1, count, 1, 1) + number
        memory.write(tokens, pinned=number < 2)
    first, third = memory.object_groups()
    assert (first, third) == (slice(0, 2), slice(2, 3))
    assert memory.references(first).flatten(1).tolist() == [[0, 1, 2, 10, 11, 12]]
    assert memory.references(third).flatten(1).tolist() == [[21, 22]]
    memory.select(torch.tensor([[2, 0]]))
    assert memory.references(slice(0, 2)).flatten(1).tolist() == [[2, 0, 12, 10]]


@pytest.mark.parametrize("settings", [{"queue_size": -1}, {"max_pinned": 0}])
def test_settings_that_make_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SpatialMemory(**settings)


def test_removing_takes_the_frame_that_nobody_else_needs_and_what_is_older_than_all() -> None:
    memory = SpatialMemory(queue_size=None)
    for number in range(6):
        memory.write(frame(number), pinned=number in (0, 2, 4))
    memory.remove(1, 1)
    assert numbers(memory) == [0, 1, 3, 4, 5]
    memory.remove(0, 0)
    assert numbers(memory) == [4, 5]
    memory.remove(0, None)
    assert numbers(memory) == [4, 5]


def test_removing_drops_the_tokens_of_the_object_alone() -> None:
    memory = SpatialMemory(queue_size=None)
    for count in (2, 3):
        memory.write(torch.arange(count).view(1, count, 1, 1), pinned=True)
    memory.remove(1, None)
    assert [tokens.flatten().tolist() for tokens, _ in memory.frames] == [[0], [0, 2]]
