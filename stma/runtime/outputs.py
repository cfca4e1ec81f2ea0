"""The folder that a command writes to, and files that are either complete or absent."""

import errno
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from stma.errors import InputError

log = logging.getLogger(__name__)

PARTIAL = ".partial"  # suffix of a file until it is complete
LOCK = ".lock"
FILE_ONLY = "stma.file"  # a logger: what goes to it is in the output's log, and not printed
FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"


class _OutputLog(logging.FileHandler):
    """Our own class, so that a second call in a process replaces only this handler."""


def check_path(path: Path) -> None:
    """Refuse a path that no file can have, or that libraries and messages cannot take.

    Raises:
        InputError: it is not UTF-8, too long, or a loop of links.
    """
    try:
        str(path).encode()
        path.stat()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!a}: the name is not UTF-8; rename it") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise InputError(f"{path}: {error.strerror}") from error


def prepare_output(folder: Path, log_name: str) -> None:
    """Make the folder, and write the log there too.

    Raises:
        InputError: a file is in the way, or the folder cannot be made.
    """
    check_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _OutputLog(folder / log_name, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"output: {folder} cannot be written to ({error})") from error
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.getLogger("stma").setLevel(logging.INFO)
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _OutputLog)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    file_only = logging.getLogger(FILE_ONLY)
    file_only.propagate = False
    file_only.handlers = [handler]


def check_apart(output: Path, folders: Iterable[Path]) -> None:
    """Refuse an output at, above or below a folder that is read, even through links: results and
    data would be mixed.

    Raises:
        InputError: names both.
    """
    for path in (output, *(folders := list(folders))):
        check_path(path)
    own = output.resolve()
    for folder in folders:
        data = folder.resolve()
        if own.is_relative_to(data):
            raise InputError(
                f"output: {output} is inside the data ({folder}); choose one outside of them"
            )
        if data.is_relative_to(own):
            raise InputError(f"output: {output} holds the data ({folder}); choose another one")


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock the folder, creating it if needed, so that no other process writes to it.

    The lock ends with the process that holds it, however it ends. On a disk without locks (some
    Lustre and NFS), there is only a warning.

    Raises:
        InputError: another process holds it, or the folder cannot be made.
    """
    check_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise InputError(f"output: {folder} cannot be written to ({error})") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"output: {folder} is in use by a live run ({file.read().strip() or 'starting'}); "
                "wait for it, end it, or choose another output"
            ) from error
        except OSError as error:
            log.warning("%s: its disk has no locks (%s): start no other run there", folder, error)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except OSError as error:
            raise InputError(f"output: {folder} cannot be written to ({error})") from error
        yield


def _lock(file: TextIO) -> None:
    """Raises BlockingIOError if another process has locked the file, OSError if none can."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(1 << 30)  # a byte that is never read or written
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def full_disks_told(folder: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into an :class:`InputError` instead of a traceback.

    Args:
        folder: to name if the error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise InputError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); make room and run "
            "the same command again"
        ) from error


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left behind, in all subfolders too."""
    for leftover in folder.rglob(f"*{PARTIAL}"):
        leftover.unlink()


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write to; it gets its final name on success, else is removed.

    Args:
        flush: to disk before renaming, so that a power cut leaves either the old or the new file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        if flush:
            _flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if flush and sys.platform != "win32":  # which opens no folders
        _flush(path.parent, os.O_RDONLY)


def _flush(path: Path, mode: int = os.O_RDWR) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
