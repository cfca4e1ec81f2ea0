import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sources import video

from stma.data import preparing
from stma.data.checking import check_dataset
from stma.data.config import DatasetConfig
from stma.data.images import read_image, read_mask
from stma.data.pictures import save_clip, save_mask
from stma.data.preparing import prepare, resized
from stma.errors import InputError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two large clips, a small one, a list and a description."""
    root = tmp_path / "train"
    for name in ("a", "b"):
        frames, masks = video(3, size=(96, 130))
        save_clip(root, name, frames, masks, ".jpg")
    save_clip(root, "small", *video(2), ".png")
    (root / "meta.json").write_text('{"videos": {"a": {}, "b": {}}}')
    (root / "JPEGImages" / ".DS_Store").touch()
    return root


def test_an_empty_folder_is_no_success(tmp_path) -> None:
    (tmp_path / "source" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "source" / ".DS_Store").touch()
    with pytest.raises(InputError, match="source: holds no files"):
        prepare(tmp_path / "source", tmp_path / "target", 480, workers=1)
    assert not (tmp_path / "target").exists()


def test_a_pipe_is_left_out(tmp_path) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "00000.png")
    done = prepare(tmp_path / "source", tmp_path / "target", 480, workers=1)
    assert [problem.message for problem in done.problems] == ["not a regular file; left out"]


def test_sizes() -> None:
    assert resized((1280, 720), 480) == (853, 480)
    assert resized((720, 1280), 480) == (480, 853)
    assert resized((854, 480), 480) == (854, 480)
    assert resized((300, 200), 480) == (300, 200)


def test_a_smaller_copy(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "train_48p"
    done = prepare(source, target, 48, workers=2)
    assert (done.written, done.kept, done.problems) == (17, 0, [])
    frame = read_image(target / "JPEGImages" / "a" / "00001.jpg")
    mask, palette = read_mask(target / "Annotations" / "a" / "00001.png")
    assert frame.shape == (48, 65, 3)
    assert mask.shape == (48, 65)
    assert set(np.unique(mask)) == {0, 1, 2}  # nearest: no ID in between
    assert palette == read_mask(source / "Annotations" / "a" / "00001.png")[1]
    small = "JPEGImages/small/00000.png"
    assert (target / small).read_bytes() == (source / small).read_bytes()
    assert (target / "meta.json").read_text() == (source / "meta.json").read_text()
    assert not (target / "JPEGImages" / ".DS_Store").exists()
    assert check_dataset(DatasetConfig(root=str(target)), workers=1).errors == 0


def test_what_is_there_is_kept_and_what_is_missing_made(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    prepare(source, target, 48, workers=1)
    kept = target / "JPEGImages" / "a" / "00000.jpg"
    before = kept.stat().st_mtime_ns
    missing = target / "Annotations" / "b" / "00002.png"
    content = missing.read_bytes()
    missing.unlink()
    leftover = target / "JPEGImages" / "b" / "00001.jpg.123.partial"
    leftover.write_bytes(b"half")
    done = prepare(source, target, 48, workers=1)
    assert (done.written, done.kept) == (1, 16)
    assert kept.stat().st_mtime_ns == before
    assert missing.read_bytes() == content
    assert not leftover.exists()


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_made(
    source: Path, tmp_path: Path
) -> None:
    broken = source / "JPEGImages" / "a" / "00001.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    cut = source / "JPEGImages" / "small" / "00000.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    done = prepare(source, tmp_path / "small", 48, workers=1)
    assert sorted(problem.path for problem in done.problems) == [broken, cut]
    assert "cannot be read" in done.problems[0].message
    assert done.written == 15
    assert not (tmp_path / "small" / "JPEGImages" / "a" / "00001.jpg").exists()


def test_folders_that_will_not_do(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "x", 48, 1)
    with pytest.raises(InputError, match="is inside"):
        prepare(source, source / "small", 48, 1)
    prepare(source, tmp_path / "small", 48, 1)
    with pytest.raises(InputError, match=r"was made with .*'short_side': 48.*not with.*60"):
        prepare(source, tmp_path / "small", 60, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not empty"):
        prepare(source, tmp_path / "mine", 48, 1)
    (tmp_path / "small" / "prepared.json").write_text("{")
    with pytest.raises(InputError, match=r"prepared\.json: cannot be read"):
        prepare(source, tmp_path / "small", 48, 1)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    def full(self: Path, data: bytes) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    job = preparing.Job(source / "JPEGImages" / "a" / "00000.jpg", tmp_path / "t" / "0.jpg")
    with pytest.raises(InputError, match=r"0\.jpg: cannot be written .*No space left.*continue"):
        preparing._do(job, 48)
    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_turned_frames_stay_turned(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    frames, masks = video(2, size=(96, 130))
    save_clip(tmp_path / "in", "a", frames, np.rot90(masks, 3, axes=(1, 2)), suffix)
    for number in range(2):
        path = tmp_path / "in" / "JPEGImages" / "a" / f"{number:05d}{suffix}"
        Image.fromarray(frames[number]).save(path, exif=exif)
    prepare(tmp_path / "in", tmp_path / "out", 48, 1)
    assert check_dataset(DatasetConfig(root=str(tmp_path / "out")), workers=1).errors == 0


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK"])
def test_content_that_does_not_fit_its_suffix_is_kept_as_it_is(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    picture = Image.fromarray(video(1, size=(96, 130))[0][0]).convert(mode)
    picture.save(source / "x.jpg", format="JPEG" if mode == "CMYK" else "PNG")
    done = prepare(source, tmp_path / "out", 48, 1)
    assert (done.written, done.problems) == (1, [])
    assert read_image(tmp_path / "out" / "x.jpg").shape == (48, 65, 3)


def test_links_in_circles_are_followed_once(source: Path, tmp_path: Path) -> None:
    (source / "JPEGImages" / "again").symlink_to(source)
    assert prepare(source, tmp_path / "out", 48, 1).written == 17


def test_exif_and_depth_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(video(1, size=(96, 130))[0][0]).save(source / "turned.jpg", exif=exif)
    Image.fromarray(np.full((96, 130), 700, np.uint16)).save(source / "deep.png")
    prepare(source, tmp_path / "out", 48, 1)
    assert read_image(tmp_path / "out" / "turned.jpg").shape == (65, 48, 3)
    with Image.open(tmp_path / "out" / "deep.png") as image:
        assert np.asarray(image).max() == 700


def test_a_mask_of_another_size_stays_at_fault(tmp_path: Path) -> None:
    source = tmp_path / "in"
    frames, masks = video(2, size=(96, 130))
    save_clip(source, "a", frames, masks, ".jpg")
    save_mask(source / "Annotations" / "a" / "00001.png", np.ones((96, 100), np.uint8))
    prepare(source, tmp_path / "out", 48, 1)
    (problem,) = check_dataset(DatasetConfig(root=str(tmp_path / "out")), workers=1).problems
    assert problem.path.name == "00001.png"


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL while files are written: no name holds half a file, and the next run ends it."""
    source, target = tmp_path / "in", tmp_path / "out"
    for number in range(8):
        save_clip(source, f"clip{number}", *video(10, size=(400, 600)), ".jpg")
    script = Path(__file__).parent.parent / "scripts" / "prepare_data.py"
    command = [sys.executable, str(script), str(source), str(target), "--short-side=200"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and len(list(target.rglob("*.jpg"))) < 5:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = list(target.rglob("*.jpg"))
    assert 5 <= len(done) < 80
    assert all(read_image(path).shape == (200, 300, 3) for path in done)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "files written" in again.stdout
    assert json.loads((target / "prepared.json").read_text())["short_side"] == 200
    check = check_dataset(DatasetConfig(root=str(target)), workers=1)
    assert (check.clips, check.files, check.problems) == (8, 160, [])
