"""The folder that a command writes to."""

import logging
from pathlib import Path

from stma.errors import InputError

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
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _OutputLog)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
