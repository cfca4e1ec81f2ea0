"""Training state on disk: written whole or not at all, and read back to the last bit."""

import logging
import pickle
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from stma.errors import InputError
from stma.outputs import PARTIAL, replacing

log = logging.getLogger(__name__)

SUFFIX = ".pt"
BEST = "best.pt"
NAME = re.compile(r"(\d{8})\.pt")


class Checkpoints:
    """The newest checkpoints of a run, by iteration.

    Args:
        keep: how many stay; older ones are removed once a newer one is whole.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """Oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    def save(self, iteration: int, state: dict[str, Any]) -> Path:
        """Write the state of training after this many iterations.

        Raises:
            InputError: it cannot be written (a full disk, say); names the last one that is whole.
        """
        path = self.folder / f"{iteration:08d}{SUFFIX}"
        self._write(path, state)
        for old in [*self.paths()[: -self.keep], *self.folder.glob(f"*{PARTIAL}")]:
            old.unlink()
        return path

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        buffer = BytesIO()
        torch.save(state, buffer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_bytes(buffer.getvalue())
        except OSError as error:
            last = next(reversed(self.paths()), None)
            raise InputError(
                f"{path}: the checkpoint cannot be written ({error}); the last whole one is "
                f"{last or 'none'}. Make room and run the same command again to go on from it"
            ) from error

    def save_best(self, state: dict[str, Any]) -> None:
        """Beside the newest, and not counted among them."""
        self._write(self.folder / BEST, state)

    def load_newest(self) -> dict[str, Any] | None:
        """The newest state that can be read; None where there is none.

        A file that cannot be read is passed over for the one before it, with a warning.
        """
        for path in reversed(self.paths()):
            try:
                if not zipfile.is_zipfile(path):  # torch would take it for a bare pickle
                    raise EOFError("not a whole file of torch.save")
                # On the CPU: the optimiser and the generators move what belongs elsewhere.
                return torch.load(path, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
                log.warning("%s: cannot be read (%s); trying the one before", path, error)
        return None

    def clear(self) -> None:
        """Remove all, with what an interrupted write left behind."""
        (self.folder / BEST).unlink(missing_ok=True)
        for path in [*self.paths(), *self.folder.glob(f"*{PARTIAL}")]:
            path.unlink()


def rng_state() -> dict[str, Any]:
    """Of every generator of torch that training may draw from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
