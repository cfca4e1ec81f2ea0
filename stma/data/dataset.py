"""Training clips from any mix of sources: each a function of (seed, stage, epoch, index) alone."""

import logging
import signal
import time
import zlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from stma.data.config import DatasetConfig
from stma.data.sampling import BatchNumbers, Epochs, Share, max_gap_at
from stma.data.sources import ClipSpec, Source, build_source
from stma.errors import InputError
from stma.runtime.config import check_ranges, check_types
from stma.runtime.workers import one_thread
from stma.structures import Clip, ClipBatch

T = TypeVar("T")
log = logging.getLogger(__name__)

PAUSES = (1.0, 10.0)  # seconds before a file that could not be read is read again
REDRAWN = 100  # attempts at a clip of an endless source


@dataclass
class DataConfig:
    """Training clips.

    Attributes:
        sources: the datasets, under names of the user's choice.
        height, width: of the clips.
        num_frames: of a clip.
        max_objects: followed in a clip; drawn at random if there are more.
        max_gaps: maximum distance between neighbouring frames of a clip, in frames of the video.
        max_gap_starts: share of the stage at which each of ``max_gaps`` begins.
        reverse: probability that a clip runs backwards.
        num_references: past frames drawn as references for every frame (2 in the paper).
        limit: train on the first ``limit`` samples only, over and over; null for no limit.
        max_bad_clips: how many clips may have faulty files before training stops; the next clip of
            the dataset takes the place of each sample that meets one.
    """

    sources: dict[str, DatasetConfig] = field(default_factory=dict)
    height: int = 384
    width: int = 384
    num_frames: int = 5
    max_objects: int = 3
    max_gaps: list[int] = field(default_factory=lambda: [5, 10, 15, 5])
    max_gap_starts: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.3, 0.9])
    reverse: float = 0.5
    num_references: int = 2
    limit: int | None = None
    max_bad_clips: int = 0

    def __post_init__(self) -> None:
        check_types(self, "data.")
        check_ranges(
            self,
            "data.",
            height=16,
            width=16,
            num_frames=2,
            max_objects=(1, 255),
            limit=1,
            max_bad_clips=0,
            num_references=1,
            reverse=(0, 1),
        )
        gaps, starts = self.max_gaps, self.max_gap_starts
        if len(gaps) != len(starts) or not gaps:
            raise InputError(
                f"data.max_gaps has {len(gaps)} values and data.max_gap_starts {len(starts)}; "
                "every gap needs its start, and at least one is needed"
            )
        if min(gaps) < 1:
            raise InputError(f"data.max_gaps is {gaps}; give 1 or more")
        if starts[0] != 0 or sorted(starts) != starts or starts[-1] >= 1:
            raise InputError(f"data.max_gap_starts is {starts}; it must rise from 0 to less than 1")


class ClipDataset(Dataset[Clip]):
    """The samples of a stage, numbered from 0 to its end, over all epochs.

    The number of a sample determines its epoch and its place there; all chance comes from the seed,
    the stage's name, the epoch and the sample's index in the epoch before shuffling. So the number
    of workers, processes and restarts changes nothing. Only the curriculum depends on the stage's
    progress.

    Args:
        length: samples of the whole stage.
        stage: its name, so that a stage does not repeat the clips of the one before.

    Attributes:
        left_out: clips with faulty files, and what is wrong with them.

    Raises:
        InputError: a source is faulty; the message names it.
    """

    def __init__(self, config: DataConfig, length: int, seed: int, stage: str = "") -> None:
        self.config = config
        self.length = length
        self.seed = (seed, zlib.crc32(stage.encode())) if stage else (seed,)
        blocks = config.sources
        if not blocks:
            raise InputError(
                "data.sources is empty; choose a stage that has some (such as stage=video)"
            )
        for block in blocks.values():
            if block.kind == "procedural":
                block.scene.check_size((config.height, config.width))
            if block.kind == "composite":
                block.composite.check_size((config.height, config.width))
        self.sources: list[Source] = [
            build_source(name, block, config.num_frames) for name, block in blocks.items()
        ]
        shares = [
            Share(source.size, block.repeats, block.weight)
            for source, block in zip(self.sources, blocks.values(), strict=True)
        ]
        self.epochs = Epochs(shares, list(blocks), self.seed)
        self.pauses = PAUSES
        self.left_out: dict[str, str] = {}
        self._found: dict[str, str] = {}  # faulty clips, in this process

    def __len__(self) -> int:
        return self.length

    def sample(self, number: int) -> Clip:
        """The sample of this number. If it meets a faulty file, the next clip of its source takes
        its place, whichever process finds the fault, and when.

        Raises:
            InputError: a file is faulty, and no more clips may be left out; the message names it.
        """
        config = self.config
        if config.limit is not None:
            number %= config.limit
        draw = self.epochs[number]
        spec = ClipSpec(
            num_frames=config.num_frames,
            size=(config.height, config.width),
            max_objects=config.max_objects,
            max_gap=max_gap_at(number / self.length, config.max_gaps, config.max_gap_starts),
            reverse=config.reverse,
            num_references=config.num_references,
        )
        source = self.sources[draw.source]
        for attempt in range(source.size or REDRAWN):
            item, words = draw.item, (*self.seed, draw.epoch, draw.index)
            if attempt > 0:
                words = (*words, attempt)
                item += attempt
            if source.size is not None:
                item %= source.size
            try:
                return self._read(source, item, spec, words)
            except InputError as error:
                if config.max_bad_clips == 0:
                    raise
                name = str(error) if source.size is None else source.item_name(item)
                self._found.setdefault(name, str(error))
                self._check_count()
        raise InputError(f"{source.name}: all of its clips have faulty files")

    def _read(self, source: Source, item: int, spec: ClipSpec, words: tuple[int, ...]) -> Clip:
        """A clip; a file that cannot be read is tried again, since a disk on a network may fail for
        a moment."""
        for pause in self.pauses:
            try:
                return source.sample(item, spec, np.random.default_rng(words))
            except InputError as error:
                known = str(error) in {*self.left_out.values(), *self._found.values()}
                if known or not isinstance(error.__cause__, OSError):
                    raise
                time.sleep(pause)
        return source.sample(item, spec, np.random.default_rng(words))

    def leave_out(self, found: Mapping[str, str]) -> None:
        """Count clips with faulty files, and log those that are new.

        Raises:
            InputError: there are more than ``max_bad_clips``.
        """
        new = {name: fault for name, fault in found.items() if name not in self.left_out}
        for name, fault in new.items():
            log.warning("left out: %s: %s", name, fault)
        self.left_out |= new
        if new:
            self._check_count()

    def _check_count(self) -> None:
        bad = {**self.left_out, **self._found}
        if (most := self.config.max_bad_clips) < len(bad):
            raise InputError(
                f"{list(bad.values())[-1]}; data.max_bad_clips is {most}, and {len(bad)} clips "
                f"have faulty files: {', '.join(bad)}"
            )

    def __getitems__(
        self, numbers: Sequence[int]
    ) -> "tuple[ClipBatch | InputError, dict[str, str]]":
        """A batch, and the clips that have been found to be faulty. A fault is returned: raised in
        a worker process, it would reach the user wrapped in that process's traceback."""
        try:
            return ClipBatch.collate([self.sample(number) for number in numbers]), self._found
        except InputError as error:
            return error, self._found

    def describe(self) -> str:
        """What an epoch holds, and what was left out, for the log."""
        parts = [
            f"{source.name} {count}"
            + (f" (of {source.size})" if source.size not in (None, count) else "")
            for source, count in zip(self.sources, self.epochs.counts, strict=True)
        ]
        notes = [note for source in self.sources for note in source.notes]
        return "\n".join([f"an epoch is {self.epochs.length} clips: {', '.join(parts)}", *notes])


def clip_batches(
    clips: ClipDataset, numbers: BatchNumbers, num_workers: int, pin_memory: bool = False
) -> Generator[ClipBatch, None, None]:
    """Load batches, in worker processes if there are any. Close it to end them: otherwise the
    program's exit would wait for them while anything, such as a traceback, holds the generator.

    Raises:
        InputError: a file is faulty, and no more clips may be left out; the message names it.
    """
    loader = DataLoader(
        clips,
        batch_sampler=numbers,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its draw must not disturb the generator of training
        pin_memory=pin_memory,
    )
    for batch, found in loader:
        if isinstance(batch, InputError):
            raise batch
        clips.leave_out(found)
        yield batch


def _start_worker(worker: int) -> None:
    """Ignore signals to stop: they reach all processes of a session (a terminal, torchrun), but the
    one that trains needs its workers until it has saved, and then ends them."""
    one_thread()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(loaded: T) -> T:
    return loaded
