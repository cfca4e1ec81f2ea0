"""scripts/prepare_data.py."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sources import video

from stma.data.checking import check_dataset
from stma.data.config import DatasetConfig
from stma.data.images import read_image
from stma.data.masks import read_mask
from stma.data.pictures import save_clip, save_mask

SCRIPT = Path(__file__).parent.parent / "scripts" / "prepare_data.py"
CLIP = (96, 130)


def prepare(monkeypatch, *arguments: object) -> int | str | None:
    """The status the script ends with: a number, or the line that it prints."""
    command = [SCRIPT.name, *map(str, arguments), "--short-side=48", "--workers=1"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A large clip, a small one and a description."""
    root = tmp_path / "train"
    save_clip(root, "large", *video(3, size=CLIP), ".jpg")
    save_clip(root, "small", *video(2), ".png")
    (root / "meta.json").write_text('{"videos": {"large": {}}}')
    (root / "JPEGImages" / ".DS_Store").touch()
    return root


def test_a_smaller_copy(monkeypatch, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    (source / "JPEGImages" / "again").symlink_to(source)  # in a circle
    assert prepare(monkeypatch, source, target) == 0
    frame = read_image(target / "JPEGImages" / "large" / "00001.jpg")
    mask, palette = read_mask(target / "Annotations" / "large" / "00001.png")
    assert frame.shape == (48, 65, 3)
    assert mask.shape == (48, 65)
    assert set(np.unique(mask)) == {0, 1, 2}  # nearest: no ID in between
    assert palette == read_mask(source / "Annotations" / "large" / "00001.png")[1]
    for same in ("JPEGImages/small/00000.png", "meta.json"):
        assert (target / same).read_bytes() == (source / same).read_bytes()
    assert not (target / "JPEGImages" / ".DS_Store").exists()
    assert check_dataset(DatasetConfig(root=str(target)), workers=1)[1] == []


def test_what_is_there_is_kept_and_what_is_missing_made(
    monkeypatch, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    prepare(monkeypatch, source, target)
    kept = target / "JPEGImages" / "large" / "00000.jpg"
    before = kept.stat().st_mtime_ns
    missing = target / "Annotations" / "large" / "00002.png"
    content = missing.read_bytes()
    missing.unlink()
    leftover = target / "JPEGImages" / "large" / "00001.jpg.123.partial"
    leftover.write_bytes(b"half")
    assert prepare(monkeypatch, source, target) == 0
    assert kept.stat().st_mtime_ns == before
    assert missing.read_bytes() == content
    assert not leftover.exists()


def test_what_cannot_be_read_is_named_and_the_rest_made(
    monkeypatch, source: Path, tmp_path: Path, capsys
) -> None:
    large = source / "JPEGImages" / "large" / "00001.jpg"
    small = source / "JPEGImages" / "small" / "00000.png"
    for path in (large, small):
        path.write_bytes(path.read_bytes()[:-100])
    pipe = source / "JPEGImages" / "large" / "00009.jpg"
    os.mkfifo(pipe)
    assert prepare(monkeypatch, source, tmp_path / "copy") == 1
    told = capsys.readouterr()
    assert all(str(path) in told.err for path in (large, small, pipe))
    assert told.out.startswith("9 files written")
    assert not (tmp_path / "copy" / "JPEGImages" / "large" / "00001.jpg").exists()


def test_folders_that_will_not_do(monkeypatch, source: Path, tmp_path: Path) -> None:
    assert "nowhere: no such folder" in str(prepare(monkeypatch, tmp_path / "nowhere", "x"))
    assert "small: is inside" in str(prepare(monkeypatch, source, source / "small"))
    (tmp_path / "empty").mkdir()
    assert "empty: holds no files" in str(prepare(monkeypatch, tmp_path / "empty", "x"))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_turned_frames_stay_turned(monkeypatch, tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    frames, masks = video(2, size=CLIP)
    save_clip(tmp_path / "in", "a", frames, np.rot90(masks, 3, axes=(1, 2)), suffix)
    for number in range(2):
        path = tmp_path / "in" / "JPEGImages" / "a" / f"{number:05d}{suffix}"
        Image.fromarray(frames[number]).save(path, exif=exif)
    prepare(monkeypatch, tmp_path / "in", tmp_path / "out")
    assert read_image(tmp_path / f"out/JPEGImages/a/00000{suffix}").shape == (65, 48, 3)
    assert check_dataset(DatasetConfig(root=str(tmp_path / "out")), workers=1)[1] == []


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK"])
def test_content_that_does_not_fit_its_suffix(monkeypatch, tmp_path: Path, mode: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    picture = Image.fromarray(video(1, size=CLIP)[0][0]).convert(mode)
    picture.save(source / "x.jpg", format="JPEG" if mode == "CMYK" else "PNG")
    assert prepare(monkeypatch, source, tmp_path / "out") == 0
    assert read_image(tmp_path / "out" / "x.jpg").shape == (48, 65, 3)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
def test_masks_of_every_kind_keep_their_values(monkeypatch, tmp_path: Path, mode: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    mask = video(1, size=CLIP)[1][0] > 0
    if mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16) * 700)
    else:
        picture = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    picture.save(source / "x.png")
    prepare(monkeypatch, source, tmp_path / "out")
    with Image.open(tmp_path / "out" / "x.png") as copy:
        assert copy.mode == mode
        assert len(np.unique(np.asarray(copy).reshape(48 * 65, -1), axis=0)) == 2


def test_a_mask_of_another_size_stays_at_fault(monkeypatch, tmp_path: Path) -> None:
    source = tmp_path / "in"
    save_clip(source, "a", *video(2, size=CLIP), ".jpg")
    save_mask(source / "Annotations" / "a" / "00001.png", np.ones((96, 100), np.uint8))
    prepare(monkeypatch, source, tmp_path / "out")
    _, (problem,) = check_dataset(DatasetConfig(root=str(tmp_path / "out")), workers=1)
    assert problem.path.name == "00001.png"
