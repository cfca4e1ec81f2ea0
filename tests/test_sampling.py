import itertools
from collections import Counter

import numpy as np
import pytest

from stma.data.sampling import (
    BatchNumbers,
    Epochs,
    Share,
    draw_references,
    keep_objects,
    learnable_objects,
    max_gap_at,
    sample_frames,
    sample_times,
)
from stma.errors import InputError


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_times_start_at_0_and_keep_to_the_gap() -> None:
    gaps = np.concatenate([np.diff(sample_times(5, 3, rng)) for rng in rngs(50)])
    assert set(gaps) == {1, 2, 3}
    assert sample_times(4, 1, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]


def test_frames_keep_to_the_gap_and_reach_everywhere() -> None:
    drawn = [sample_frames(20, 4, 3, rng) for rng in rngs(400)]
    gaps = np.diff(drawn, axis=1)
    assert set(gaps.ravel()) == {1, 2, 3}
    assert {tuple(row) for row in gaps} == set(itertools.product((1, 2, 3), repeat=3))
    assert min(frames[0] for frames in drawn) == 0
    assert max(frames[-1] for frames in drawn) == 19


@pytest.mark.parametrize(("length", "gap"), [(5, 15), (6, 15), (9, 15), (9, 2)])
def test_frames_of_short_videos_fit(length: int, gap: int) -> None:
    for rng in rngs(100):
        frames = sample_frames(length, 5, gap, rng)
        assert (np.diff(frames) >= 1).all()
        assert np.diff(frames).max() <= gap
        assert frames[0] >= 0
        assert frames[-1] < length


def test_large_gaps_stand_at_any_place() -> None:
    """Drawn first, they are shuffled: no place of a short video is favoured."""
    sums = np.sum([np.diff(sample_frames(12, 4, 9, rng)) for rng in rngs(2000)], axis=0)
    assert sums.max() < 1.1 * sums.min()


def test_references_are_distinct_past_frames() -> None:
    drawn = set()
    for rng in rngs(100):
        references = draw_references(4, 2, rng)
        assert references[1].tolist() == [0, 0]  # one past frame; the second is not read
        assert references[2].tolist() == [0, 1]
        drawn.add(tuple(references[3]))
    assert drawn == {(0, 1), (0, 2), (1, 2)}


def areas(*frames: dict[int, int]) -> np.ndarray:
    """Masks of 20 x 20 in which IDs have the given areas."""
    masks = np.zeros((len(frames), 400), np.uint8)
    for mask, wanted in zip(masks, frames, strict=True):
        start = 0
        for value, area in wanted.items():
            mask[start : start + area] = value
            start += area
    return masks.reshape(-1, 20, 20)


def test_objects_are_followed_if_they_show_enough_in_the_first_frame() -> None:
    masks = areas({1: 9, 2: 10, 7: 50}, {1: 100, 2: 40, 3: 90, 7: 60}, {2: 5})
    assert learnable_objects(masks, 1, 0).tolist() == [1, 2, 7]
    assert learnable_objects(masks, 10, 0).tolist() == [2, 7]
    # 2 grows to four times its first area and no more; 1 to eleven times.
    assert learnable_objects(masks, 1, 50).tolist() == [2, 7]
    assert learnable_objects(areas({5: 10}, {5: 41}), 1, 50).tolist() == []
    assert learnable_objects(areas({5: 50}, {5: 399}), 1, 50).tolist() == [5]
    assert learnable_objects(np.zeros((2, 4, 4), np.uint8), 1, 0).tolist() == []


def test_kept_objects_are_numbered_and_the_others_are_background() -> None:
    masks = np.array([[[0, 3, 200]], [[9, 200, 3]]], np.uint8)
    assert keep_objects(masks, [3, 200]).tolist() == [[[0, 1, 2]], [[0, 2, 1]]]


def test_the_curriculum_changes_at_its_shares_of_the_stage() -> None:
    gaps, starts = [5, 10, 15, 5], [0.0, 0.1, 0.3, 0.9]
    seen = [max_gap_at(p, gaps, starts) for p in (0, 0.0999, 0.1, 0.3, 0.899, 0.9, 0.9999)]
    assert seen == [5, 5, 10, 15, 15, 5, 5]


def counted(epochs: Epochs, numbers) -> Counter:
    return Counter((epochs[n].source, epochs[n].item) for n in numbers)


def test_an_epoch_holds_every_item_as_often_as_told() -> None:
    epochs = Epochs([Share(3, repeats=5), Share(4)], ["a", "b"], seed=(0,))
    assert epochs.length == 19
    for epoch in range(3):
        counts = counted(epochs, range(19 * epoch, 19 * (epoch + 1)))
        assert counts == {(0, i): 5 for i in range(3)} | {(1, i): 1 for i in range(4)}


def test_index_and_epoch_are_unique_and_shuffled() -> None:
    epochs = Epochs([Share(50)], ["a"], seed=(3,))
    keys = [(epochs[n].epoch, epochs[n].index) for n in range(100)]
    assert len(set(keys)) == 100
    assert {epoch for epoch, _ in keys[:50]} == {0}
    orders = [[epochs[n].item for n in range(start, start + 50)] for start in (0, 50)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]
    assert orders[0] == [Epochs([Share(50)], ["a"], seed=(3,))[n].item for n in range(50)]
    assert orders[0] != [Epochs([Share(50)], ["a"], seed=(4,))[n].item for n in range(50)]


def test_weights_are_shares_of_all_samples_and_endless_sources_never_repeat() -> None:
    epochs = Epochs([Share(60, repeats=5), Share(None, weight=0.25)], ["a", "b"], seed=(0,))
    assert epochs.counts == [600, 200]
    endless = [d.item for n in range(2400) if (d := epochs[n]).source == 1]
    assert sorted(endless) == list(range(600))


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [((1, None), (None, 0.01)), ((7, None), (None, 0.2)), ((10, 10), (0.999, 0.001)),
     ((4, None, 3), (None, 0.1, 0.35))],
)  # fmt: skip
def test_shares_are_kept_however_small_the_sets(sizes, weights) -> None:
    shares = [Share(size, weight=weight) for size, weight in zip(sizes, weights, strict=True)]
    epochs = Epochs(shares, ["a", "b", "c"][: len(shares)], seed=(0,))
    for share, count in zip(shares, epochs.counts, strict=True):
        if share.weight is not None:
            assert count / epochs.length == pytest.approx(share.weight, rel=0.01)


def test_a_weighted_source_goes_round_its_items_evenly() -> None:
    """An epoch ends anywhere among its items, and the next one continues from there."""
    epochs = Epochs([Share(7), Share(90, weight=0.3)], ["a", "b"], seed=(1,))
    assert epochs.counts == [469, 201]
    counts = counted(epochs, range(30 * epochs.length))
    assert all(counts[1, item] == 67 for item in range(90))
    assert all(counts[0, item] == 30 * 67 for item in range(7))


def test_weights_alone() -> None:
    epochs = Epochs([Share(8, weight=0.5), Share(None, weight=0.5)], ["a", "b"], seed=(0,))
    sources = Counter(epochs[n].source for n in range(epochs.length))
    assert sources[0] == sources[1] == epochs.length / 2


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([Share(5), Share(None)], "b is endless; give it a weight"),
        ([Share(5), Share(5, weight=1.0)], "sum to 1; .* must leave something"),
        ([Share(5, weight=0.7), Share(5, weight=0.7)], r"sum to 1\.4"),
        ([Share(5, weight=0.2), Share(5, weight=0.7)], r"every source has a weight.*0\.9"),
    ],
)
def test_shares_that_cannot_be(shares: list[Share], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Epochs(shares, ["a", "b"], seed=(0,))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batches_hold_the_same_samples_for_any_number_of_processes(world_size: int) -> None:
    ranks = [list(BatchNumbers(3, 6, 4, rank, world_size)) for rank in range(world_size)]
    together = [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert together == [[12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23]]
    assert len(BatchNumbers(3, 6, 4, 0, world_size)) == 3


def test_a_batch_that_cannot_be_divided() -> None:
    with pytest.raises(InputError, match="batch_size is 6, which 4 processes cannot share"):
        BatchNumbers(0, 1, 6, 0, 4)
