"""A stage on disk: checkpoints, written completely or not at all, what its result depends on, and
whether it is finished, under way, or not begun."""

import logging
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from stma.errors import InputError
from stma.runtime.outputs import full_disks_told, replacing
from stma.runtime.resume import RECORD, STAGE, Record, differences, read_record
from stma.training.config import TrainConfig
from stma.training.learner import STATE as OF_LEARNER
from stma.training.loggers import RUN_ID

log = logging.getLogger(__name__)

SUFFIX = ".pt"
BEST = "best.pt"
UNREADABLE = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, OSError)
NAME = re.compile(r"(\d{8})\.pt")

# Attributes of a trainer that a checkpoint stores unchanged.
COUNTS = ("iteration", "seconds", "best", "validated")
STATE = (*COUNTS, *OF_LEARNER, "shown", "settings", "generators")

# What a result depends on, besides the stage itself and the weights it starts from. The rest may
# change from one start of a run to the next.
SETTINGS = ("seed", "precision", "ema", "strict_weights", "model")
LENGTH = ("iterations", "max_minutes")  # of the stage; these may change as well
FREE = ("root", "exclude", "max_bad_clips")  # of its data: so that faulty clips end no run
OVER = "resume=false to start over"


class Checkpoints:
    """The newest checkpoints of a run, by iteration.

    Args:
        keep: how many stay; older ones are removed once a newer one is complete.
        entries: keys that every state must have.
    """

    def __init__(self, folder: Path, keep: int, entries: Collection[str] = ()) -> None:
        self.folder = folder
        self.keep = keep
        self.entries = entries

    def paths(self) -> list[Path]:
        """The files, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    def save(self, iteration: int, state: bytes) -> Path:
        """Write the training state after this many iterations.

        Args:
            state: see :func:`pack`.

        Raises:
            InputError: it cannot be written (for example, the disk is full); the message names the
                last complete one.
        """
        path = self.folder / f"{iteration:08d}{SUFFIX}"
        self._write(path, state)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def _write(self, path: Path, state: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_bytes(state)
        except OSError as error:
            last = next(reversed(self.paths()), None)
            raise InputError(
                f"{path}: the checkpoint cannot be written ({error}); the last complete one is "
                f"{last or 'none'}. Make room and run the same command again to resume from it"
            ) from error

    def save_best(self, state: bytes) -> None:
        """Write the best one: beside the newest, and not counted among them."""
        self._write(self.folder / BEST, state)

    def load_newest(self, *, mapped: bool = False) -> dict[str, Any] | None:
        """The newest readable state; None if there are no files.

        A file that cannot be read is skipped for the one before it, with a warning.

        Args:
            mapped: read tensors from the file only when they are used.

        Raises:
            InputError: there are files, but none can be read, or the newest readable one is not a
                training state.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                with zipfile.ZipFile(path) as archive:  # or torch might read a bare pickle
                    if not mapped and archive.testzip() is not None:  # checksums; torch skips them
                        raise EOFError("its content has changed since it was written")
                # On the CPU: the optimiser and the generators move tensors where they belong.
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except UNREADABLE as error:
                log.warning("%s: cannot be read (%s); trying the one before", path, error)
                continue
            missing = [e for e in self.entries if not isinstance(state, dict) or e not in state]
            if missing:
                raise InputError(
                    f"{path}: not a checkpoint of this version of stma (it lacks "
                    f"{', '.join(missing)}); remove it, or start over with resume=false"
                )
            return state
        if paths:
            raise InputError(
                f"{self.folder}: none of {', '.join(path.name for path in paths)} can be read; "
                "put a complete one there, or start over with resume=false, which removes them"
            )
        return None

    def clear(self) -> None:
        """Remove all."""
        (self.folder / BEST).unlink(missing_ok=True)
        for path in self.paths():
            path.unlink()


def pack(state: dict[str, Any]) -> bytes:
    """A copy of a training state, as its file holds it; later steps do not change it."""
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def stage_settings(config: TrainConfig, name: str, weights: str | None) -> dict[str, Any]:
    """The settings of one stage, as stored with its results.

    Args:
        weights: digest of those that it starts from.
    """
    whole = asdict(config)
    settings = {key: whole[key] for key in SETTINGS}
    return settings | {"weights": weights, "stage": whole["stages"][name]}


def new_length(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes to the stage's length, a line for each."""
    old, new = ({key: each["stage"].get(key) for key in LENGTH} for each in (before, now))
    return differences(old, new, path="stage.")


class StageFolder:
    """Where its files are, and what earlier starts have left.

    Args:
        keep: newest checkpoints to hold.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.weights = path / "weights.safetensors"
        self.best_weights = path / "best.safetensors"
        self.mark = path / RECORD  # of a finished stage
        self.checkpoints = Checkpoints(path / "checkpoints", keep, STATE)

    def finished_settings(self) -> dict[str, Any] | None:
        """The settings of a finished stage; None if it is not finished.

        Raises:
            InputError: the end mark is damaged.
        """
        try:
            record = read_record(self.mark) if self.weights.is_file() else None
        except InputError as error:
            raise InputError(
                f"{error}; remove it, and the stage continues from its newest checkpoint, or {OVER}"
            ) from error
        return None if record is None else record.identity

    def begun(self) -> dict[str, Any] | None:
        """The newest checkpoint, whose tensors stay on disk; None if there is none.

        Raises:
            InputError: none of the checkpoints can be read.
        """
        return self.checkpoints.load_newest(mapped=True)

    def check_settings(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        """Check that a stage with other settings is the same one; datasets may have moved, and
        leave out other clips.

        Raises:
            InputError: names the settings that differ.
        """
        if found := differences(theirs, ours, ignored=(*FREE, *(f"stage.{key}" for key in LENGTH))):
            raise InputError(
                f"{self.path}: holds another run's result; give another output, or {OVER}\n  "
                + "\n  ".join(found)
            )

    def finish(self, settings: dict[str, Any]) -> None:
        """Mark the stage as finished."""
        with full_disks_told(self.mark):
            Record(STAGE, settings, done=True).write(self.mark)

    def clear(self) -> None:
        """Remove everything that could be mistaken for the state or result of a new start."""
        self.mark.unlink(missing_ok=True)
        self.checkpoints.clear()
        self.weights.unlink(missing_ok=True)
        self.best_weights.unlink(missing_ok=True)
        (self.path / RUN_ID).unlink(missing_ok=True)
