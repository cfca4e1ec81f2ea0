import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sources import video

from stma.data.checking import check_dataset, check_root, recognise
from stma.data.config import DatasetConfig
from stma.data.image_folder import Layout
from stma.data.pictures import save_clip, save_mask
from stma.data.problems import Problem
from stma.data.sources import FileSource
from stma.errors import InputError

LAYOUTS = [
    Layout("images/*.jpg", "masks/*.png"),
    Layout("*/*.jpg", "*/*.png"),
    Layout("*.jpg", "*.png"),
]


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
    check = check_root(root, LAYOUTS, workers=2)[0]
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
    Image.fromarray(video(1)[0][0]).save(mask_of(root, "a", 2))
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
        ("Annotations/a/00003.png", "30 x 30 pixels, its frame 48 x 64", True),
        ("JPEGImages/b/00000.jpg", "no mask of this name", True),
        ("Annotations/b/00001.png", "no frame of this name", True),
        ("JPEGImages/b/00002.jpg", "20 x 20 pixels, but 48 x 64 in 00000", True),
        ("Annotations/c2/00001.png", "the mask was antialiased or resized as a picture", True),
        ("Annotations/c3", "no mask holds an object", True),
        ("JPEGImages/b/.DS_Store", "a hidden file", False),
        ("JPEGImages/._b", "a hidden file", False),
        ("Annotations/b/notes.txt", "a stray file", False),
    ):
        assert message in found[path][0], path
        assert found[path][1] is error, path
    assert "48 x 64 pixels, its frame 20 x 20" in found["Annotations/b/00002.png"][0]
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
    assert "48 x 63 pixels" in found["Annotations/b/00001.png"][0]
    assert not found["Annotations/b/00001.png"][1]
    exif[0x112] = 6
    Image.fromarray(video(1)[0][0]).save(frame_of(root), exif=exif)
    assert "48 x 64 pixels, its frame 64 x 48" in said(root)["Annotations/a/00001.png"][0]


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


def test_counts_of_published_sets(root: Path) -> None:
    davis = root.rename(root.parent / "DAVIS")
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    (davis / "ImageSets" / "2017" / "train.txt").write_text("a\nb\n")
    message = said(davis)["ImageSets/2017/train.txt"][0]
    assert message.startswith("2 clips or images, but davis2017:train was published with 60")
    youtube = davis.rename(davis.parent / "YouTubeVOS2018")
    (youtube / "valid").mkdir()
    for kind in ("JPEGImages", "Annotations", "ImageSets"):
        (youtube / kind).rename(youtube / "valid" / kind)
    (check,) = check_root(youtube, LAYOUTS, workers=1)
    assert "youtubevos2018:valid was published with 474" in check.problems[0].message
    assert check.problems[0].path == youtube / "valid"


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("YouTubeVOS2019/train_480p", ["youtubevos2019:train"]),
        ("YouTube/valid", ["youtubevos2019:valid", "youtubevos2018:valid"]),
        ("youtube-vos/2018/all_frames/valid_all_frames", ["youtubevos2018:valid"]),
        ("LVOS/val", ["lvos:valid", "lvos_v2:valid"]),
        ("MOSE/train", ["mose:train"]),
        ("moses/train", []),
        ("my_youtube_videos/train", []),
        ("YouTube/training_run", []),
        ("big/clips", []),
        ("BL30K", ["bl30k:all"]),
    ],
)
def test_known_names_of_videos(path: str, known: list[str]) -> None:
    assert recognise(Path("/data") / path, "videos") == known


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("static/fss", ["fss1000:all"]),
        ("static/BIG_small", []),
        ("static/HRSOD_small", []),
        ("DUTS-TE", ["duts_te:all"]),
        ("mine", []),
    ],
)
def test_known_names_of_images(path: str, known: list[str]) -> None:
    assert recognise(Path("/data") / path, "images") == known


def test_the_publishers_folders_of_hrsod(tmp_path: Path) -> None:
    save_pair(tmp_path / "HRSOD_small", "HRSOD_train/1.jpg", "HRSOD_train_mask/1.png")
    layouts = [Layout("HRSOD_*/*.jpg", "HRSOD_*_mask/*.png"), *LAYOUTS]
    (check,) = check_root(tmp_path / "HRSOD_small", layouts, workers=1)
    assert (check.clips, check.errors) == (1, 0)


def test_one_broken_set_does_not_keep_the_others_from_being_checked(tmp_path: Path) -> None:
    for name in ("bad", "good", "good2"):
        save_clip(tmp_path / name, "a", *video(3), ".jpg")
    (tmp_path / "bad" / "Annotations").rename(tmp_path / "bad" / "Masks")
    frame_of(tmp_path / "good").write_bytes(b"")
    (tmp_path / "papers").mkdir()
    checks = check_root(tmp_path, LAYOUTS, workers=1)
    assert [check.errors for check in checks] == [1, 1, 0, 0]
    assert "bad/Annotations: no such folder" in str(checks[0].problems[0])
    assert checks[3].problems[0].path == tmp_path / "papers"


def test_images_without_any_mask(tmp_path: Path) -> None:
    save_pair(tmp_path, "images/1.jpg", "masks/1.png")
    (tmp_path / "masks" / "1.png").unlink()
    (check,) = check_root(tmp_path, LAYOUTS, workers=1)
    assert "no mask of this name" in check.problems[0].message


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


def save_pair(root: Path, image: str, mask: str) -> None:
    for path in (root / image, root / mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    frames, masks = video(1)
    Image.fromarray(frames[0]).save(root / image)
    Image.fromarray(255 * (masks[0] > 0).astype(np.uint8)).save(root / mask)


def test_folders_of_sets_are_told_apart(tmp_path: Path) -> None:
    """One level down: classes of one set, or sets of their own where names are known."""
    save_pair(tmp_path / "classes", "cat/1.jpg", "cat/1.png")
    save_pair(tmp_path / "classes", "dog/1.jpg", "dog/1.png")
    (classes,) = check_root(tmp_path / "classes", LAYOUTS, workers=1)
    assert classes.clips == 2
    save_pair(tmp_path / "static", "ecssd/images/1.jpg", "ecssd/masks/1.png")
    save_pair(tmp_path / "static", "fss/cat/1.jpg", "fss/cat/1.png")
    save_pair(tmp_path / "static", "BIG_small/1.jpg", "BIG_small/1.png")
    checks = check_root(tmp_path / "static", LAYOUTS, workers=1)
    assert [check.root.name for check in checks] == ["BIG_small", "ecssd", "fss"]
    assert [check.errors for check in checks] == [0, 1, 1]  # counts
    parts = tmp_path / "parts"
    for part in ("a/BL", "b/BL"):
        save_clip(parts / part, f"clip-{part[0]}", *video(3), ".jpg")
    assert len(check_root(parts, LAYOUTS, workers=1)) == 2
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="nothing: neither clips"):
        check_root(tmp_path / "nothing", LAYOUTS, workers=1)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        check_root(tmp_path / "nowhere", LAYOUTS, workers=1)


def test_archives_of_all_frames_have_their_masks_next_door(tmp_path: Path) -> None:
    save_clip(tmp_path / "valid", "x", *video(4), ".jpg")
    frames = tmp_path / "valid_all_frames" / "JPEGImages"
    frames.parent.mkdir()
    (tmp_path / "valid" / "JPEGImages").rename(frames)
    (check,) = check_root(tmp_path / "valid_all_frames", LAYOUTS, workers=1)
    assert (check.clips, check.files, check.errors) == (1, 8, 0)


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
