from pathlib import Path

import numpy as np
import pytest
from conftest import random_frame
from PIL import Image
from test_sources import video

from stma.data.checking import check_dataset
from stma.data.config import DatasetConfig
from stma.data.pictures import save_clip, save_mask
from stma.data.sources import FileSource
from stma.data.video_folder import Problem
from stma.errors import InputError


def said(root: Path, **settings) -> dict[str, tuple[str, bool]]:
    """What is wrong, by the path below the root."""
    _, problems = check_dataset(DatasetConfig(root=str(root), **settings), workers=1)
    return {str(p.path.relative_to(root)): (p.message, p.error) for p in problems}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "ab":
        save_clip(tmp_path, name, *video(4), ".jpg")
    return tmp_path


def test_nothing_is_wrong_with_a_good_set(root: Path) -> None:
    assert said(root) == {}
    videos, problems = check_dataset(DatasetConfig(root=str(root)), workers=2)
    assert ([video.name for video in videos], problems) == (["a", "b"], [])


def mask_of(root: Path, clip: str = "a", number: int = 1) -> Path:
    return root / "Annotations" / clip / f"{number:05d}.png"


def frame_of(root: Path, clip: str = "a", number: int = 1) -> Path:
    return root / "JPEGImages" / clip / f"{number:05d}.jpg"


def test_every_fault_of_a_file_is_named_with_its_path(root: Path) -> None:
    for number in (2, 3):
        save_clip(root, f"c{number}", *video(4), ".jpg")
    frame_of(root, "a", 0).write_bytes(frame_of(root, "a", 0).read_bytes()[:-300])
    frame_of(root, "a", 1).write_bytes(b"")
    Image.fromarray(random_frame(np.random.default_rng(0), 48, 64)).save(mask_of(root, "a", 2))
    save_mask(mask_of(root, "a", 3), np.ones((30, 30), np.uint8))
    mask_of(root, "b", 0).unlink()
    frame_of(root, "b", 1).unlink()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(frame_of(root, "b", 2))
    soft = Image.fromarray(video(1)[1][0] * 100).resize((16, 12), Image.Resampling.BILINEAR)
    save_mask(mask_of(root, "c2"), np.asarray(soft.resize((64, 48), Image.Resampling.BILINEAR)))
    for number in range(4):
        save_mask(mask_of(root, "c3", number), np.zeros((48, 64), np.uint8))
    (root / "JPEGImages" / "b" / ".DS_Store").touch()
    (root / "JPEGImages" / "._b").touch()
    (root / "Annotations" / "b" / "notes.txt").touch()
    found = said(root)
    for path, message, error in (
        ("JPEGImages/a/00000.jpg", "cannot be read as an image", True),
        ("JPEGImages/a/00001.jpg", "cannot be read as an image", True),
        ("Annotations/a/00002.png", "the mask is RGB", True),
        ("Annotations/a/00003.png", "30 x 30 pixels, its frame 64 x 48", True),
        ("JPEGImages/b/00000.jpg", "no mask of this name", True),
        ("Annotations/b/00001.png", "no frame of this name", True),
        ("JPEGImages/b/00002.jpg", "20 x 20 pixels, but 64 x 48 in 00000", True),
        ("Annotations/c2/00001.png", "antialiased", True),
        ("Annotations/c3", "no mask holds an object", True),
        ("Annotations/b/notes.txt", "a stray file", False),
    ):
        assert message in found[path][0], path
        assert found[path][1] is error, path
    assert "64 x 48 pixels, its frame 20 x 20" in found["Annotations/b/00002.png"][0]
    assert len(found) == 11


def test_whole_clips_that_are_missing_or_empty(root: Path) -> None:
    for path in list((root / "JPEGImages" / "a").iterdir()):
        path.unlink()
    (root / "JPEGImages" / "only-frames").mkdir()
    found = said(root)
    assert found["JPEGImages/a"][0] == "no frames (JPEG or PNG)"
    assert "no such folder" in found["Annotations/only-frames"][0]


def test_a_pixel_of_rounding_is_a_warning_and_exif_turns_the_frame(root: Path) -> None:
    save_mask(mask_of(root, "b"), np.ones((48, 63), np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(video(1)[0][0]).save(frame_of(root), exif=exif)
    found = said(root)
    assert "63 x 48 pixels" in found["Annotations/b/00001.png"][0]
    assert not found["Annotations/b/00001.png"][1]
    assert "64 x 48 pixels, its frame 48 x 64" in found["Annotations/a/00001.png"][0]


def test_the_odd_one_out_is_blamed_even_if_it_is_the_first(root: Path) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(frame_of(root, number=0))
    found = said(root)
    assert sorted(found) == ["Annotations/a/00000.png", "JPEGImages/a/00000.jpg"]


def test_training_stops_with_the_words_of_the_check(root: Path) -> None:
    mask_of(root, "b").unlink()
    _, (problem,) = check_dataset(DatasetConfig(root=str(root)), workers=1)
    with pytest.raises(InputError) as caught:
        FileSource("mine", DatasetConfig(root=str(root)), 3)
    assert str(caught.value) == str(problem)


def test_problems_say_where() -> None:
    assert str(Problem(Path("a/b.png"), "is wrong")) == "a/b.png: is wrong"


def test_an_empty_set_is_no_success(tmp_path) -> None:
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=": no clips"):
        check_dataset(DatasetConfig(root=str(tmp_path)), workers=1)
