"""What can be wrong with a dataset, reported in the same words by the checker and by training; and
how many clips or images each has as published (datasets/README.md has the sources)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stma.errors import InputError

PUBLISHED: dict[str, dict[str, int]] = {
    "davis2016": {"train": 30, "val": 20},
    "davis2017": {"train": 60, "val": 30, "test-dev": 30, "test-challenge": 30},
    "youtubevos2018": {"train": 3471, "valid": 474, "test": 508},
    "youtubevos2019": {"train": 3471, "valid": 507, "test": 541},
    "lvos": {"train": 120, "valid": 50, "test": 50},
    "lvos_v2": {"train": 420, "valid": 140, "test": 160},
    "mose": {"train": 1507, "valid": 311, "test": 331},
    "bl30k": {"all": 29_989},
    "ecssd": {"all": 1000},
    "fss1000": {"all": 10_000},
    "hrsod": {"all": 2010},
    "big": {"all": 150},
    "duts_tr": {"all": 10_553},
    "duts_te": {"all": 5019},
}


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


def published_count(key: str) -> int:
    """Of ``dataset:split``, such as ``davis2017:train``.

    Raises:
        InputError: there is no such dataset or split.
    """
    dataset, _, split = key.partition(":")
    if dataset not in PUBLISHED:
        raise InputError(f"published: no dataset {dataset!r}; there are {', '.join(PUBLISHED)}")
    splits = PUBLISHED[dataset]
    if split not in splits:
        raise InputError(f"published: {dataset} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def count_message(key: str, found: int) -> str | None:
    """The message for a count that differs from the published one; None if it does not."""
    expected = published_count(key)
    if found == expected:
        return None
    return (
        f"{found} clips or images, but {key} was published with {expected}: the download or "
        "extraction is incomplete, or this is another version or a part (which published=null in "
        "its block, or --dataset folder, allows)"
    )
