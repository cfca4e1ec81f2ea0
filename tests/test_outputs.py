import errno
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stma.errors import InputError
from stma.runtime.outputs import (
    PARTIAL,
    check_apart,
    full_disks_told,
    holding,
    prepare_output,
    replacing,
)


def test_a_folder_is_held_by_one_at_a_time(tmp_path) -> None:
    with holding(tmp_path / "out"):
        with (
            pytest.raises(InputError, match=r"out is in use by a live run \(process \d+ on"),
            holding(tmp_path / "out"),
        ):
            pass
        with holding(tmp_path / "other"):
            pass
    with holding(tmp_path / "out"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"), holding(tmp_path / "file"):
        pass


def test_a_file_is_whole_or_not_there(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_text("ha")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_half()
    assert path.read_text() == "old"
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert not list(tmp_path.glob(f"*{PARTIAL}"))


def test_the_log_goes_to_the_last_folder_alone(tmp_path) -> None:
    for name in ("a", "b"):
        prepare_output(tmp_path / name, "test.log")
        logging.getLogger("stma").info("written to %s", name)
    assert "written to a" in (tmp_path / "a" / "test.log").read_text()
    assert "written to b" not in (tmp_path / "a" / "test.log").read_text()
    assert "written to b" in (tmp_path / "b" / "test.log").read_text()


def test_only_a_full_or_locked_disk_is_told_as_such(tmp_path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        with (
            pytest.raises(InputError, match=rf"{tmp_path}: cannot be written .*make room"),
            full_disks_told(tmp_path),
        ):
            raise OSError(number, "why")
    with pytest.raises(FileNotFoundError), full_disks_told(tmp_path):
        (tmp_path / "none").read_bytes()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("root", "is inside the data"),
        ("root/inside", "is inside the data"),
        ("root/../root/inside/deeper", "is inside the data"),
        ("to-root/inside", "is inside the data"),
        ("frames/out", "is inside the data"),  # to which a folder of the root leads
        (".", "holds the data"),
    ],
)
def test_an_output_at_above_or_below_the_data_is_refused(tmp_path, output, message: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "frames").mkdir()
    (tmp_path / "to-root").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "JPEGImages").symlink_to(tmp_path / "frames")
    read = [tmp_path / "root", tmp_path / "root" / "JPEGImages"]
    with pytest.raises(InputError, match=message):
        check_apart(tmp_path / output, read)
    check_apart(tmp_path / "root-2", read)
    check_apart(tmp_path / "elsewhere", read)


def test_where_a_disk_has_no_locks_there_is_a_warning(tmp_path, monkeypatch, caplog) -> None:
    """As on some Lustre; a run of a week is not refused for that."""

    def unsupported(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with holding(tmp_path / "out"):
        pass
    assert f"{tmp_path / 'out'}: its disk has no locks (" in caplog.text


def test_windows_locks_and_renames(tmp_path, monkeypatch) -> None:
    """It has msvcrt instead of fcntl, whose locks raise PermissionError, and opens no folders."""
    locked: set[int] = set()

    def locking(number: int, mode: int, count: int) -> None:
        assert os.lseek(number, 0, os.SEEK_CUR) > 1 << 20  # others read what is before
        file = os.fstat(number).st_ino
        if file in locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        locked.add(file)

    def only_files(path: Path, mode: int) -> int:
        if path.is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        assert mode == os.O_RDWR  # else it cannot be flushed
        return open_file(path, mode)

    open_file = os.open
    monkeypatch.setitem(sys.modules, "fcntl", None)
    msvcrt = SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    with (
        holding(tmp_path),
        pytest.raises(InputError, match="in use by a live run"),
        holding(tmp_path),
    ):
        pass
    monkeypatch.setattr("stma.runtime.outputs.sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr("os.open", only_files)
    with replacing(tmp_path / "file") as partial:
        partial.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("name", ["loop", "x" * 300, "caf\udce9"])
def test_paths_that_no_folder_can_have(tmp_path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = tmp_path / name
    named = "caf" if name.startswith("caf") else name
    with pytest.raises(InputError, match=named):
        prepare_output(path, "log.txt")
    with pytest.raises(InputError, match=named):
        check_apart(tmp_path, [path])
    with pytest.raises(InputError, match=named), holding(path):
        pass
