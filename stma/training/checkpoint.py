"""Training state on disk: written completely or not at all, and read back to the last bit."""

import logging
import pickle
import re
import zipfile
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stma.errors import InputError
from stma.runtime.outputs import replacing

log = logging.getLogger(__name__)

SUFFIX = ".pt"
BEST = "best.pt"
UNREADABLE = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, OSError)
NAME = re.compile(r"(\d{8})\.pt")


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

    def save(self, iteration: int, state: dict[str, Any]) -> Path:
        """Write the training state after this many iterations.

        Raises:
            InputError: it cannot be written (for example, the disk is full); the message names the
                last complete one.
        """
        path = self.folder / f"{iteration:08d}{SUFFIX}"
        self._write(path, state)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        buffer = BytesIO()
        torch.save(state, buffer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_bytes(buffer.getbuffer())
        except OSError as error:
            last = next(reversed(self.paths()), None)
            raise InputError(
                f"{path}: the checkpoint cannot be written ({error}); the last complete one is "
                f"{last or 'none'}. Make room and run the same command again to resume from it"
            ) from error

    def save_best(self, state: dict[str, Any]) -> None:
        """Path of the best one: beside the newest, and not counted among them."""
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


def seed_generators(seed: int, rank: int, iteration: int) -> None:
    """Seed torch, in this process: every process draws different numbers."""
    words = np.random.SeedSequence((seed, rank, iteration)).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that training on a device draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
