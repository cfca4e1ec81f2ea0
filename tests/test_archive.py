import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import box, write_clip
from PIL import Image

from stma.data.pictures import save_mask
from stma.errors import InputError
from stma.evaluation import archive
from stma.evaluation.archive import check_archive, write_archive
from stma.evaluation.benchmarks import BenchmarkConfig, list_clips

BOX = box(10, 10, 12, 12, 3)


@pytest.fixture(params=["", "Annotations"])
def clips(request, tmp_path) -> list:
    """Two clips of 5 frames, and good results of them below ``masks``."""
    for name in ("a", "b"):
        write_clip(tmp_path, name, {0: BOX})
        (tmp_path / "masks" / name).mkdir(parents=True)
        for number in range(5):
            save_mask(tmp_path / "masks" / name / f"{number:05d}.png", BOX)
    return list_clips(BenchmarkConfig(archive=request.param), tmp_path).clips


def repacked(path: Path, change) -> Path:
    """As another tool would write it: ``change`` maps the entries, by name."""
    with zipfile.ZipFile(path) as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    other = path.with_name("other.zip")
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in change(entries).items():
            opened.writestr(name, data)
    return other


def png(mask: np.ndarray, tmp_path: Path, mode: str | None = None) -> bytes:
    image = Image.fromarray(mask)
    (image.convert(mode) if mode else image).save(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


def test_what_is_written_is_sorted_whole_and_equal_to_the_byte(clips, tmp_path) -> None:
    paths = [tmp_path / "1.zip", tmp_path / "2.zip"]
    write_archive(paths[0], clips, tmp_path / "masks")
    for mask in (tmp_path / "masks").rglob("*.png"):
        mask.touch()  # another time
    write_archive(paths[1], clips[::-1], tmp_path / "masks")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    prefix = f"{clips[0].rules.archive}/".lstrip("/")
    with zipfile.ZipFile(paths[0]) as opened:
        assert opened.namelist() == [
            f"{prefix}{name}/{number:05d}.png" for name in "ab" for number in range(5)
        ]
        assert opened.testzip() is None
    assert check_archive(paths[0], clips) == []


def test_a_missing_mask_or_a_full_disk_is_told(clips, tmp_path) -> None:
    (tmp_path / "masks/b/00002.png").unlink()
    with pytest.raises(InputError, match=r"1\.zip: the archive cannot be written .*00002"):
        write_archive(tmp_path / "1.zip", clips, tmp_path / "masks")
    assert not list(tmp_path.glob("*.zip*"))


def test_archives_of_others_are_taken(clips, tmp_path) -> None:
    """Compressed, with entries for folders, in any order."""
    path = tmp_path / "1.zip"
    write_archive(path, clips, tmp_path / "masks")
    folder = f"{clips[0].rules.archive}/a/".lstrip("/")

    def other_way(entries: dict) -> dict:
        return {folder: b"", **dict(reversed(entries.items()))}

    assert check_archive(repacked(path, other_way), clips) == []


def test_all_that_is_wrong_is_named(clips, tmp_path, monkeypatch) -> None:
    path = tmp_path / "1.zip"
    write_archive(path, clips, tmp_path / "masks")
    a, b = (f"{clips[0].rules.archive}/{name}".lstrip("/") for name in "ab")
    whole = (tmp_path / "masks/a/00000.png").read_bytes()

    def problems(change) -> str:
        return "\n".join(check_archive(repacked(path, change), clips))

    def without(*names):
        return lambda entries: {k: v for k, v in entries.items() if k not in names}

    def with_entry(name: str, data: bytes):
        return lambda entries: {**entries, name: data}

    assert problems(without(f"{a}/00002.png")) == f"{a}/00002.png: missing"
    gone = without(*(f"{b}/{i:05d}.png" for i in range(5)))
    assert problems(gone).count("missing") == 5
    for name in (f"{a}/00009.png", "__MACOSX/._00000.png", "results.csv"):
        assert problems(with_entry(name, whole)) == f"{name}: not a mask that is asked for"
    deep = problems(lambda entries: {f"480p/{k}": v for k, v in entries.items()})
    assert f"480p/{a}/00000.png: not a mask" in deep
    assert f"{a}/00000.png: missing" in deep
    for data, message in (
        (png(np.dstack([BOX] * 3), tmp_path), "a PNG of RGB; it must be an index PNG"),
        (png(BOX[:20], tmp_path), "56 x 20 pixels; the frames have 56 x 40"),
        (png(BOX + 4, tmp_path), "holds the IDs 4, 7; only 3 were given"),
        (whole[: len(whole) // 2], "cannot be read"),
        (b"\xff\xd8\xff", "cannot be read"),
    ):
        assert f"{a}/00001.png: {message}" in problems(with_entry(f"{a}/00001.png", data))
    monkeypatch.setattr(archive, "SHOWN", 3)
    many = problems(lambda entries: {k: png(BOX + 4, tmp_path) for k in entries})
    assert many.count("holds the IDs") == 3
    assert "and 7 more" in many


def test_what_is_no_archive(clips, tmp_path) -> None:
    with pytest.raises(InputError, match=r"none\.zip: not a complete zip"):
        check_archive(tmp_path / "none.zip", clips)
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 not one")
    with pytest.raises(InputError, match="not a complete zip"):
        check_archive(tmp_path / "bad.zip", clips)
    write_archive(tmp_path / "1.zip", clips, tmp_path / "masks")
    cut = (tmp_path / "1.zip").read_bytes()[:-40]
    (tmp_path / "bad.zip").write_bytes(cut)
    with pytest.raises(InputError, match="not a complete zip"):
        check_archive(tmp_path / "bad.zip", clips)


def test_a_damaged_entry_is_told(clips, tmp_path) -> None:
    path = tmp_path / "1.zip"
    write_archive(path, clips, tmp_path / "masks")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 0xFF
    path.write_bytes(data)
    (problem,) = check_archive(path, clips)
    assert "a/00000.png: cannot be read" in problem
