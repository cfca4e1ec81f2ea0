"""What can be wrong with a dataset, reported in the same words by the checker and by training."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stma.errors import InputError


@dataclass(frozen=True)
class Problem:
    """One fault of one file or folder.

    Attributes:
        path: of the file or folder.
        message: what is wrong and what to do.
        error: False if it is corrected or ignored without harm.
    """

    path: Path
    message: str
    error: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def raise_first(problems: Iterable[Problem]) -> None:
    """Raise the first error, and say how many there are.

    Raises:
        InputError: there is one.
    """
    errors = [problem for problem in problems if problem.error]
    if errors:
        more = f" (and {len(errors) - 1} more; see scripts/check_data.py)" if errors[1:] else ""
        raise InputError(f"{errors[0]}{more}")
