"""What a stage logs about its steps: a line in the log, and a row in a CSV beside it."""

import csv
import logging
from dataclasses import astuple, dataclass, fields
from datetime import timedelta
from pathlib import Path

from stma.runtime.outputs import FILE_ONLY, replacing

log = logging.getLogger(__name__)
to_file = logging.getLogger(FILE_ONLY)


@dataclass
class Row:
    """The row of one step.

    Attributes:
        loss: the mean over all processes.
        speed: iterations per second since the previous row.
        seconds_left: of the stage, at the recent speed.
    """

    stage: str
    iteration: int
    loss: float
    learning_rate: float
    gradient_norm: float
    speed: float
    seconds_left: float

    def __str__(self) -> str:
        left = timedelta(seconds=round(self.seconds_left))
        return (
            f"{self.stage}: iteration {self.iteration}, loss {self.loss:.4f}, learning rate "
            f"{self.learning_rate:.3g}, gradient norm {self.gradient_norm:.3g}, "
            f"{self.speed:.2f} it/s, {left} left"
        )


FILE = "train.csv"  # in the output of the run
HEADER = [field.name for field in fields(Row)]


class StepLog:
    """The rows of one stage, in a CSV shared by all stages. If it cannot be written (for example,
    the disk is full), training continues without it, with a warning.

    Args:
        first: iteration; what an earlier start wrote about later ones is removed.
    """

    def __init__(self, path: Path, stage: str, first: int) -> None:
        self.path: Path | None = path
        try:
            kept = [row for row in _rows(path) if row[0] != stage or int(row[1]) < first]
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, flush=False) as partial, partial.open("w", newline="") as file:
                csv.writer(file).writerows([HEADER, *kept])
        except OSError as error:
            self._give_up(error)

    def write(self, row: Row) -> None:
        to_file.info("%s", row)
        if self.path is None:
            return
        try:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow(astuple(row))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: cannot be written (%s); training continues without it", self.path, error)
        self.path = None


def _rows(path: Path) -> list[list[str]]:
    """Complete rows only; a killed run may have left half of one."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == len(HEADER) and row != HEADER]
