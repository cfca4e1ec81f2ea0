"""Which frames make up a clip, which objects are followed, and the order of clips."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from stma.data.masks import count_ids
from stma.errors import InputError
from stma.runtime.opencv import cv2

LARGER = 4  # times its first area: a small object that grows more was barely visible at first


def sample_times(num_frames: int, max_gap: int, rng: np.random.Generator) -> np.ndarray:
    """``num_frames`` increasing frame numbers from 0, neighbours at most ``max_gap`` apart."""
    gaps = rng.integers(1, max_gap + 1, num_frames - 1)
    return np.concatenate([[0], np.cumsum(gaps)])


def sample_frames(
    length: int, num_frames: int, max_gap: int, rng: np.random.Generator
) -> np.ndarray:
    """``num_frames`` increasing frame numbers of a video, neighbours at most ``max_gap`` apart.

    Gaps are drawn one by one, each leaving room for the rest, then shuffled; then the start.

    Args:
        length: frames of the video, at least ``num_frames``.
    """
    room = length - 1
    gaps = []
    for following in reversed(range(num_frames - 1)):
        gap = int(rng.integers(1, min(max_gap, room - following) + 1))
        gaps.append(gap)
        room -= gap
    start = int(rng.integers(0, room + 1))
    return start + np.concatenate([[0], np.cumsum(rng.permutation(gaps))]).astype(np.int64)


def draw_references(num_frames: int, num_references: int, rng: np.random.Generator) -> np.ndarray:
    """For every frame, past frames as its references, drawn at random as in the paper.

    Distinct and in order; a frame with fewer past frames than ``num_references`` takes all of
    them, and the rest of its row is 0 and must not be read.

    Returns:
        ``(num_frames, num_references)`` int64.
    """
    references = np.zeros((num_frames, num_references), np.int64)
    for frame in range(1, num_frames):
        count = min(frame, num_references)
        references[frame, :count] = np.sort(rng.choice(frame, count, replace=False))
    return references


def learnable_objects(masks: np.ndarray, min_pixels: int, clear_pixels: int) -> np.ndarray:
    """IDs of the objects that show enough in the first frame to be followed.

    That is ``min_pixels``; one with fewer than ``clear_pixels`` counts only if it never exceeds
    four times its first area, so that small objects count but slivers of large ones do not. (Ours.
    XMem's rule for BL30K is absolute: more than 100 pixels, and if not more than 900, fewer than
    400 in all later frames.)

    Args:
        masks: ``(T, H, W)`` uint8.
    """
    first = count_ids(masks[0])
    enough = first >= max(min_pixels, 1)
    enough[0] = False
    doubtful = enough & (first < clear_pixels)
    if doubtful.any():
        largest = np.max([count_ids(mask) for mask in masks], axis=0)
        enough &= ~doubtful | (largest <= LARGER * first)
    return np.flatnonzero(enough)


def keep_objects(masks: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Renumber objects from 1 in the order of ``ids``; all others become background.

    Args:
        masks: ``(T, H, W)`` uint8.
    """
    table = np.zeros(256, np.uint8)
    table[np.asarray(ids, np.int64)] = np.arange(1, len(ids) + 1)
    return cv2.LUT(masks.reshape(len(masks), -1), table).reshape(masks.shape)


def max_gap_at(progress: float, gaps: Sequence[int], starts: Sequence[float]) -> int:
    """The curriculum: the last of ``gaps`` whose start, a share of the stage, has been reached."""
    return [gap for gap, start in zip(gaps, starts, strict=True) if progress >= start][-1]


@dataclass(frozen=True)
class Share:
    """How much of an epoch a source provides.

    Attributes:
        size: number of its items; None for an endless source.
        repeats: how often each item occurs in an epoch, if ``weight`` is None.
        weight: share of all samples, more than 0 and at most 1.
    """

    size: int | None
    repeats: int = 1
    weight: float | None = None


@dataclass(frozen=True)
class Draw:
    """One sample: with the seed, ``epoch`` and ``index`` determine all of it."""

    epoch: int
    index: int
    source: int
    item: int


class Epochs:
    """The endless list of samples: epoch after epoch, each shuffled as a whole.

    An epoch holds every item of the sources without weight ``repeats`` times (or a multiple of it,
    if small shares need more samples to come out right), and as many of the weighted ones as their
    shares require; these continue in the next epoch where they stopped. Shuffling all sources
    together, by the seed and the epoch alone, makes any slice of the list a fair mix.

    Args:
        shares: one for each source.
        names: of the sources, for messages.

    Raises:
        InputError: impossible shares.
    """

    def __init__(
        self, shares: Sequence[Share], names: Sequence[str], seed: tuple[int, ...]
    ) -> None:
        self.shares = shares
        self.seed = seed
        self.counts = _counts(shares, names)
        self.ends = np.cumsum(self.counts)
        self.length = int(self.ends[-1])

    def __getitem__(self, number: int) -> Draw:
        """The sample of this number, counted over all epochs."""
        epoch, position = divmod(number, self.length)
        index = int(_shuffled(self.length, (*self.seed, epoch))[position])
        source = int(np.searchsorted(self.ends, index, side="right"))
        within = index - int(self.ends[source]) + self.counts[source]
        nth = epoch * self.counts[source] + within
        size = self.shares[source].size
        if size is None:
            return Draw(epoch, index, source, nth)
        # A weighted source may end an epoch anywhere among its items: every pass through them has
        # its own order, so that none is left out for long.
        turn, place = divmod(nth, size)
        item = int(_shuffled(size, (*self.seed, turn, source))[place])
        return Draw(epoch, index, source, item)


@lru_cache(maxsize=32)
def _shuffled(length: int, key: tuple[int, ...]) -> np.ndarray:
    # The spawn key keeps this stream apart from those of the samples, seeded (*seed, epoch, index).
    seed = np.random.SeedSequence(key, spawn_key=(len(key),))
    return np.random.default_rng(seed).permutation(length)


def _counts(shares: Sequence[Share], names: Sequence[str]) -> list[int]:
    """Samples of each source in an epoch."""
    total = sum(share.weight or 0 for share in shares)
    free = [share.weight is None for share in shares]
    for share, name in zip(shares, names, strict=True):
        if share.size is None and share.weight is None and len(shares) > 1:
            raise InputError(
                f"{name} is endless; give it a weight, its share of all samples (such as 0.2)"
            )
    if total > 1 + 1e-6 or (any(free) and total > 1 - 1e-6):
        raise InputError(
            f"the sources' weights sum to {total:g}; they are shares of all samples, and must "
            "leave something for the sources without weight"
        )
    if not any(free) and abs(total - 1) > 1e-6:
        raise InputError(f"every source has a weight, and they sum to {total:g}; make it 1")
    sizes = [
        (ENDLESS_EPOCH if share.size is None else share.size) * share.repeats for share in shares
    ]
    if not total:
        return sizes
    # Shares are rounded to whole samples; the epoch is made long enough for that not to matter.
    unweighted = sum(size for size, is_free in zip(sizes, free, strict=True) if is_free)
    smallest = min(share.weight for share in shares if share.weight is not None)
    wanted = math.ceil(ROUNDING / smallest)
    if unweighted:
        rounds = math.ceil(wanted * (1 - total) / unweighted)
        sizes = [size * rounds for size in sizes]
        length = unweighted * rounds / (1 - total)
    else:
        length = max(wanted, *sizes)
    return [
        size if share.weight is None else round(share.weight * length)
        for share, size in zip(shares, sizes, strict=True)
    ]


ROUNDING = 200  # least samples of the smallest share in an epoch: half a sample is then 0.25 %
ENDLESS_EPOCH = 10_000  # samples that count as an epoch if every source is endless


class BatchNumbers(Sampler[list[int]]):
    """The sample numbers of each batch, for one process of several.

    Process ``rank`` takes its slice of every batch, so that a batch holds the same samples for any
    number of processes, and a restart can continue from any batch.

    Args:
        start, stop: first batch, and the one after the last.
        batch_size: over all processes.
        accumulate: parts that a process splits its slice into, which follow one another.

    Raises:
        InputError: the batch cannot be divided.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise InputError(
                f"batch_size is {batch_size}, which {world_size} processes cannot share equally "
                f"in {accumulate} parts each; make it a multiple of {world_size * accumulate}"
            )
        self.start, self.stop, self.batch_size = start, stop, batch_size
        self.part = batch_size // (world_size * accumulate)
        self.accumulate = accumulate
        self.rank = rank

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.start, self.stop):
            for part in range(self.accumulate):
                place = self.rank * self.accumulate + part
                first = batch * self.batch_size + place * self.part
                yield list(range(first, first + self.part))
