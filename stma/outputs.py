"""The folder that a command writes to, and files that are whole or not there."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stma.errors import InputError

PARTIAL = ".partial"  # what a file is called until it is whole
FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"


class _OutputLog(logging.FileHandler):
    """Ours, so that a second call in one process replaces it and nobody else's."""


def prepare_output(folder: Path, log_name: str) -> None:
    """Make the folder, and write the log there too.

    Raises:
        InputError: a file is in the way, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _OutputLog(folder / log_name)
    except OSError as error:
        raise InputError(f"output: {folder} cannot be written to ({error})") from error
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.getLogger("stma").setLevel(logging.INFO)
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _OutputLog)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Write to the path that this gives; it gets its name when all is written, else it goes.

    Args:
        flush: to the disk before it is renamed, so that a power cut leaves the old or the new one.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        if flush:
            _flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if flush:
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
