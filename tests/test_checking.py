import json
from pathlib import Path

import numpy as np
import pytest
from conftest import random_frame
from PIL import Image
from test_sources import video

from stma.data.checking import check_dataset
from stma.data.config import DatasetConfig
from stma.data.pictures import save_clip, save_mask
from stma.data.problems import Problem
from stma.data.sources import FileSource
from stma.errors import InputError


def said(root: Path, **settings) -> dict[str, tuple[str, bool]]:
    """What is wrong, by the path below the root."""
    check = check_dataset(DatasetConfig(root=str(root), **settings), workers=1)
    assert check.errors == sum(problem.error for problem in check.problems)
    return {str(p.path.relative_to(root)): (p.message, p.error) for p in check.problems}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "ab":
        save_clip(tmp_path, name, *video(4), ".jpg")
    return tmp_path


def test_nothing_is_wrong_with_a_good_set(root: Path) -> None:
    assert said(root) == {}
    check = check_dataset(DatasetConfig(root=str(root)), workers=2)
    assert (check.clips, check.files) == (2, 16)


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
        ("JPEGImages/b/.DS_Store", "a hidden file", False),
        ("JPEGImages/._b", "a hidden file", False),
        ("Annotations/b/notes.txt", "a stray file", False),
    ):
        assert message in found[path][0], path
        assert found[path][1] is error, path
    assert "64 x 48 pixels, its frame 20 x 20" in found["Annotations/b/00002.png"][0]
    assert len(found) == 13


def test_whole_clips_that_are_missing_or_empty(root: Path) -> None:
    for path in list((root / "JPEGImages" / "a").iterdir()):
        path.unlink()
    (root / "JPEGImages" / "only-frames").mkdir()
    found = said(root)
    assert found["JPEGImages/a"][0] == "no frames (JPEG or PNG)"
    assert "no such folder" in found["Annotations/only-frames"][0]


def test_exif_rotation_and_a_pixel_of_rounding_are_warnings(root: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 3
    Image.fromarray(video(1)[0][0]).save(frame_of(root), exif=exif)
    save_mask(mask_of(root, "b"), np.ones((48, 63), np.uint8))
    found = said(root)
    assert found["JPEGImages/a/00001.jpg"] == (
        "EXIF orientation 3: turned upright when read",
        False,
    )
    assert "63 x 48 pixels" in found["Annotations/b/00001.png"][0]
    assert not found["Annotations/b/00001.png"][1]
    exif[0x112] = 6
    Image.fromarray(video(1)[0][0]).save(frame_of(root), exif=exif)
    assert "64 x 48 pixels, its frame 48 x 64" in said(root)["Annotations/a/00001.png"][0]


def test_lists_and_meta_that_name_missing_clips(root: Path) -> None:
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "val.txt").write_text("a\nghost\n")
    (root / "ImageSets" / "2017" / "val.txt").write_text("b\n")
    (root / "ImageSets" / "2017" / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (root / "meta.json").write_text(json.dumps({"videos": {"a": {}, "phantom": {}}}))
    found = said(root)
    assert "names the clip ghost, which is not in" in found["ImageSets/val.txt"][0]
    assert "not a text file" in found["ImageSets/2017/bad.txt"][0]
    assert "names the clip phantom" in found["meta.json"][0]
    assert len(found) == 3
    (root / "meta.json").write_text("[]")
    assert "not a JSON file" in said(root)["meta.json"][0]


def test_the_odd_one_out_is_blamed_even_if_it_is_the_first(root: Path) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(frame_of(root, number=0))
    found = said(root)
    assert sorted(found) == ["Annotations/a/00000.png", "JPEGImages/a/00000.jpg"]


def test_lists_that_are_empty_start_with_a_mark_or_lie_behind_a_link(root: Path) -> None:
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "none.txt").write_text("\n")
    (root / "ImageSets" / "marked.txt").write_text("a\r\nb\r\n", encoding="utf-8-sig")
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text("a\n")
    (root / "ImageSets" / "2017").symlink_to(root / "lists")
    found = said(root, split="train")
    assert found == {"ImageSets/none.txt": ("an empty list", False)}
    assert len(check_dataset(DatasetConfig(root=str(root), split="marked"), 1).problems) == 1


def test_training_stops_with_the_words_of_the_check(root: Path) -> None:
    mask_of(root, "b").unlink()
    (problem,) = check_dataset(DatasetConfig(root=str(root)), workers=1).problems
    with pytest.raises(InputError) as caught:
        FileSource("mine", DatasetConfig(root=str(root)), 3)
    assert str(caught.value) == str(problem)


def test_the_report_can_be_read_by_machines(root: Path) -> None:
    frame_of(root).write_bytes(b"")
    (root / "JPEGImages" / ".x").touch()
    report = check_dataset(DatasetConfig(root=str(root)), workers=1).to_json()
    again = json.loads(json.dumps(report))
    assert {problem["severity"] for problem in again["problems"]} == {"error", "warning"}
    assert again["clips"] == 2
    assert str(frame_of(root)) in [problem["path"] for problem in again["problems"]]


def test_problems_say_where() -> None:
    assert str(Problem(Path("a/b.png"), "is wrong")) == "a/b.png: is wrong"


def test_an_empty_set_is_no_success(tmp_path) -> None:
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=": no clips"):
        check_dataset(DatasetConfig(root=str(tmp_path)), workers=1)
