"""The folder of a stage: what its result depends on, and whether it is finished, under way, or not
begun."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stma.errors import InputError
from stma.runtime.outputs import full_disks_told
from stma.runtime.resume import RECORD, STAGE, Record, differences, read_record
from stma.training.checkpoint import Checkpoints
from stma.training.config import TrainConfig
from stma.training.learner import STATE as OF_LEARNER

# Attributes of a trainer that a checkpoint stores unchanged.
COUNTS = ("iteration", "seconds", "best", "validated")
STATE = (*COUNTS, *OF_LEARNER, "shown", "settings", "generators")

# What a result depends on, besides the stage itself and the weights it starts from. The rest may
# change from one start of a run to the next.
SETTINGS = ("seed", "precision", "ema", "strict_weights", "model")
LENGTH = ("iterations", "max_minutes")  # of the stage; these may change as well
OVER = "resume=false to start over"


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
        """Check that a stage with other settings is the same one; datasets may have moved.

        Raises:
            InputError: names the settings that differ.
        """
        if found := differences(
            theirs, ours, ignored=("root", *(f"stage.{key}" for key in LENGTH))
        ):
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
