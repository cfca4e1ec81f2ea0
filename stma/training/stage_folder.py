"""The folder of a stage, which shows whether it is finished, under way, or not begun."""

import json
from pathlib import Path
from typing import Any

from stma.errors import InputError
from stma.runtime.outputs import full_disks_told, replacing
from stma.training.checkpoint import Checkpoints
from stma.training.learner import STATE as OF_LEARNER

# Attributes of a trainer that a checkpoint stores unchanged.
COUNTS = ("iteration", "seconds", "best", "validated")
STATE = (*COUNTS, *OF_LEARNER, "shown", "settings", "generators")


class StageFolder:
    """Where its files are, and what earlier starts have left.

    Args:
        keep: newest checkpoints to hold.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.weights = path / "weights.safetensors"
        self.best_weights = path / "best.safetensors"
        self.mark = path / "finished.json"
        self.checkpoints = Checkpoints(path / "checkpoints", keep, STATE)

    def finished_settings(self) -> dict[str, Any] | None:
        """The settings of a finished stage; None if it is not finished.

        Raises:
            InputError: the end mark is damaged.
        """
        if not self.mark.is_file() or not self.weights.is_file():
            return None
        try:
            settings = json.loads(self.mark.read_text())
            if not isinstance(settings, dict):
                raise ValueError("no settings in it")
        except ValueError as error:
            raise InputError(
                f"{self.mark}: damaged ({error}); remove it, and the stage continues from its "
                "newest checkpoint, or start over with resume=false"
            ) from error
        return settings

    def begun(self) -> dict[str, Any] | None:
        """The newest checkpoint, whose tensors stay on disk; None if there is none.

        Raises:
            InputError: none of the checkpoints can be read.
        """
        return self.checkpoints.load_newest(mapped=True)

    def finish(self, settings: dict[str, Any]) -> None:
        """Mark the stage as finished."""
        with full_disks_told(self.mark), replacing(self.mark) as unfinished:
            unfinished.write_text(json.dumps(settings))

    def clear(self) -> None:
        """Remove everything that could be mistaken for the state or result of a new start."""
        self.mark.unlink(missing_ok=True)
        self.checkpoints.clear()
        self.weights.unlink(missing_ok=True)
        self.best_weights.unlink(missing_ok=True)
