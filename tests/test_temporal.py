import logging

import pytest
import torch
from torch import Tensor

from stma.memory.temporal import ObjectGroup, TemporalMemory, least_used

WHOLE = slice(0, 1)


def write(
    memory: TemporalMemory, number: float, *, elements: int = 2, objects: int = 1, pinned=False
) -> None:
    """A frame whose keys, values and tokens all are its number."""
    number = float(number)
    memory.write(
        torch.full((1, elements, 1), number),
        torch.full((1, objects, elements, 1), number),
        torch.full((1, objects, 1), number),
        pinned=pinned,
    )


def use(memory: TemporalMemory, *weights: float) -> None:
    memory.count_use(torch.tensor(weights)[None], ObjectGroup(WHOLE, None))


def held(memory: TemporalMemory) -> list[float]:
    return sorted(memory.keys.flatten().tolist())


def test_least_used_counts_use_by_age_and_spares_the_protected() -> None:
    usage = torch.tensor([[8.0, 3.0, 1.0, 0.0]])
    age = torch.tensor([[8.0, 1.0, 2.0, 5.0]])  # frequency 1, 3, 0.5, 0
    protected = torch.tensor([[False, False, False, True]])
    assert sorted(least_used(usage, age, protected, 2)[0].tolist()) == [0, 2]


def test_the_least_frequently_used_elements_make_room() -> None:
    memory = TemporalMemory(capacity=6)
    write(memory, 0, pinned=True)
    write(memory, 1)
    use(memory, 0.0, 0.0, 0.9, 0.1)  # of frame 1, the first element is used
    write(memory, 2)
    use(memory, 0.0, 0.0, 0.1, 0.0, 0.6, 0.3)
    write(memory, 3)
    # Frequencies: 1: (0.9 + 0.1) / 2 and 0.1 / 2; 2: 0.6 and 0.3. Frame 0 is pinned.
    assert held(memory) == [0, 0, 1, 2, 3, 3]


def test_values_move_with_their_keys() -> None:
    memory = TemporalMemory(capacity=6)
    for number in range(5):
        write(memory, number, pinned=number == 0)
    assert torch.equal(memory.keys[..., 0], memory.values[..., 0, 0])


def test_object_tokens_are_the_maximum_over_frames_that_still_hold_elements() -> None:
    memory = TemporalMemory(capacity=4)
    write(memory, 1, pinned=True)
    write(memory, 9)
    assert memory.object_tokens.flatten().tolist() == [9]
    write(memory, 4)  # no room: all of frame 9 goes
    assert held(memory) == [1, 1, 4, 4]
    assert memory.object_tokens.flatten().tolist() == [4]


def test_objects_that_enter_later_have_groups_of_their_own() -> None:
    memory = TemporalMemory(capacity=8)
    write(memory, 1, objects=2, pinned=True)
    write(memory, 2, objects=2)
    write(memory, 3, objects=5, pinned=True)
    first, second = memory.groups
    assert (first.objects, first.present) == (slice(0, 2), None)
    assert second.objects == slice(2, 5)
    assert second.present is not None
    assert second.present.tolist() == [[False, False, False, False, True, True]]
    assert memory.object_tokens[0, :, 0].tolist() == [3, 3, 3, 3, 3]
    assert (memory.values[0, :4, 2:] == 0).all()


def test_late_objects_survive_eviction() -> None:
    memory = TemporalMemory(capacity=8)
    write(memory, 1, objects=1, pinned=True)
    write(memory, 2, objects=2, pinned=True)
    for number in range(3, 20):
        write(memory, number, objects=2)
        for group in memory.groups:
            present = torch.ones(1, len(memory)) if group.present is None else group.present
            memory.count_use(present / present.sum(), group)
    assert {1.0, 2.0, 19.0} <= set(held(memory))
    late = memory.groups[1].present
    assert late is not None
    written_since = memory.keys[0, :, 0] >= 2
    assert torch.equal(late[0], written_since)


def test_capacity_and_buffers_never_grow_over_500_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = TemporalMemory(capacity=50)
    buffers = []
    for number in range(500):
        write(memory, number, elements=7, objects=2, pinned=number == 0)
        assert len(memory) <= 50
        for group in memory.groups:
            weights = torch.rand(1, 3, len(memory), generator=generator)
            memory.count_use((weights / weights.sum(-1, keepdim=True)).sum(1), group)
        if number in (60, 499):
            buffers.append([tuple(memory.__dict__[name].shape) for name in ("_keys", "_tokens")])
    assert held(memory).count(0.0) == 7
    assert held(memory).count(499.0) == 7
    assert buffers[0] == buffers[1]


def test_with_every_frame_row_taken_the_emptiest_frame_goes_whole() -> None:
    memory = TemporalMemory(capacity=8, max_frames=2)  # 8 // 2 + 2 = 6 rows are the least
    favourites = []
    for number in range(30):
        write(memory, number, pinned=number == 0)
        # One element of every frame is popular, so frames never go by themselves.
        weights = torch.zeros(len(memory))
        weights[memory.keys[0, :, 0].unique(return_inverse=True)[1].argsort()[::2]] = 1.0
        use(memory, *weights.tolist())
        favourites.append(len(set(held(memory))))
    assert max(favourites) <= 6
    rows = memory._elements_per_frame()
    assert rows.shape[1] == 6
    assert rows.sum() == 8


def test_pinned_frames_that_fill_the_capacity_make_it_grow_and_say_so(caplog) -> None:
    memory = TemporalMemory(capacity=5)
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            write(memory, number, objects=number + 1, pinned=True)
    assert held(memory) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "capacity grows" in caplog.text


def test_objects_enter_a_growing_memory_too() -> None:
    growing, bounded = TemporalMemory(), TemporalMemory(capacity=100)
    for memory in (growing, bounded):
        write(memory, 1, objects=1, pinned=True)
        write(memory, 2, objects=3, pinned=True)
        write(memory, 3, objects=3)
    assert torch.equal(growing.keys, bounded.keys)
    assert torch.equal(growing.values, bounded.values)
    assert torch.equal(growing.object_tokens, bounded.object_tokens)
    for a, b in zip(growing.groups, bounded.groups, strict=True):
        assert a.objects == b.objects
        assert (a.present is None) == (b.present is None)
    assert torch.equal(growing.groups[1].present, bounded.groups[1].present)  # type: ignore[arg-type]


def test_a_growing_memory_passes_gradients() -> None:
    memory = TemporalMemory()
    values = torch.ones(1, 1, 2, 3, requires_grad=True)
    for _ in range(2):
        memory.write(torch.zeros(1, 2, 4), values, torch.zeros(1, 1, 4), pinned=False)
    memory.values.sum().backward()
    assert isinstance(values.grad, Tensor)
    assert (values.grad == 2).all()


def test_batches_evict_each_on_its_own() -> None:
    memory = TemporalMemory(capacity=4)
    for number in range(2):
        memory.write(
            torch.full((2, 2, 1), float(number)),
            torch.zeros(2, 1, 2, 1),
            torch.zeros(2, 1, 1),
            pinned=False,
        )
    received = torch.tensor([[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.9, 0.8]])
    memory.count_use(received, ObjectGroup(WHOLE, None))
    memory.write(
        torch.full((2, 2, 1), 5.0), torch.zeros(2, 1, 2, 1), torch.zeros(2, 1, 1), pinned=False
    )
    assert sorted(memory.keys[0].flatten().tolist()) == [0, 0, 5, 5]
    assert sorted(memory.keys[1].flatten().tolist()) == [1, 1, 5, 5]


def test_settings_and_calls_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        TemporalMemory(capacity=0)
    memory = TemporalMemory(capacity=9)
    write(memory, 0, objects=3, pinned=True)
    with pytest.raises(ValueError, match="2 objects; 3 are known"):
        write(memory, 1, objects=2)


def test_removing_an_object_frees_what_is_older_than_those_that_remain() -> None:
    memory = TemporalMemory(capacity=8)
    write(memory, 1, objects=1, pinned=True)
    write(memory, 2, objects=1)
    write(memory, 3, objects=2, pinned=True)
    memory.remove(0)
    assert held(memory) == [3, 3]
    assert memory.groups == [ObjectGroup(slice(0, 1), None)]
    assert memory.values.shape == (1, 2, 1, 1)


def test_the_frame_of_a_removed_object_is_evicted_like_any_other() -> None:
    memory = TemporalMemory(capacity=6)
    write(memory, 1, objects=1, pinned=True)
    write(memory, 2, objects=2, pinned=True)
    memory.remove(1)
    assert held(memory) == [1, 1, 2, 2]
    write(memory, 3)
    use(memory, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5)
    write(memory, 4)
    assert held(memory) == [1, 1, 3, 3, 4, 4]


def test_after_a_removal_rows_and_elements_are_used_again() -> None:
    """Every element still belongs to the frame that wrote it, however many follow."""
    memory = TemporalMemory(capacity=10, max_frames=6)
    write(memory, 0, objects=1, pinned=True)
    for number in range(1, 5):
        write(memory, number)
    write(memory, 5, objects=2, pinned=True)
    memory.remove(0)
    assert held(memory) == [5, 5]
    for number in range(6, 30):
        write(memory, number)
        tokens = memory._tokens[0, memory._frame[0, : len(memory)], 0, 0]
        assert torch.equal(tokens, memory.keys[0, :, 0])
        assert memory.object_tokens.item() == number
