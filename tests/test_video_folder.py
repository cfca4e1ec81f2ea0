import re
from pathlib import Path

import numpy as np
import pytest

from stma.data.config import DatasetConfig
from stma.data.listing import list_dataset
from stma.data.pictures import save_mask, save_picture
from stma.data.video_folder import (
    VideoFolder,
    find_video,
    list_video,
    missing_masks,
    raise_first,
    select_names,
    subfolders,
    video_folders,
)
from stma.errors import InputError


def make_video(root: Path, name: str, frames: int, masks: list[int], middle: str = "") -> None:
    images, annotations = (root / kind / middle / name for kind in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for number in range(frames):
        save_picture(images / f"{number:05d}.jpg", np.zeros((8, 10, 3), np.uint8))
    for number in masks:
        save_mask(annotations / f"{number:05d}.png", np.ones((8, 10), np.uint8))


def find_videos(root: Path, split: str | None = None) -> list[VideoFolder]:
    videos, problems = list_dataset(DatasetConfig(root=str(root), split=split))
    raise_first(problems)
    return videos


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_video(tmp_path, "b", 3, [0], middle="480p")
    make_video(tmp_path, "a", 2, [0, 1], middle="480p")
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("b\na\n\n")
    return tmp_path


def test_videos_of_a_split_in_its_order(root: Path) -> None:
    for split in ("val", "2017/val"):
        first, second = find_videos(root, split)
        assert (first.name, second.name) == ("b", "a")
        assert [path.name for path in first.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
        assert list(first.masks) == ["00000"]
        assert not first.fully_annotated
        assert second.fully_annotated


def test_without_a_split_every_video_and_without_a_resolution_folder(tmp_path: Path) -> None:
    make_video(tmp_path, "x", 2, [1])
    make_video(tmp_path, "y", 2, [0])
    (tmp_path / "JPEGImages" / "x" / ".hidden.jpg").touch()
    assert [video.name for video in find_videos(tmp_path)] == ["x", "y"]
    assert len(find_videos(tmp_path)[0].frames) == 2


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_videos(root / "nowhere")
    with pytest.raises(InputError, match="split train does not exist; it has 2017/val"):
        find_videos(root, "train")
    with pytest.raises(InputError, match="zebra: not in the list; it has b, a"):
        select_names(["b", "a"], ["zebra"], "the list")
    (root / "ImageSets" / "2016").mkdir()
    (root / "ImageSets" / "2016" / "val.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"several folders.*2016/val, 2017/val"):
        find_videos(root, "val")
    assert len(find_videos(root, "2016/val")) == 1
    (root / "ImageSets" / "2017" / "new.txt").write_text("gone\n")
    with pytest.raises(InputError, match=r"new\.txt: names the clip gone, which is not in"):
        find_videos(root, "new")


def test_videos_without_frames_or_masks_and_masks_without_frames(root: Path) -> None:
    stranger = root / "Annotations" / "480p" / "a" / "00009.png"
    save_mask(stranger, np.ones((8, 10), np.uint8))
    with pytest.raises(InputError, match=r"00009\.png: no frame of this name"):
        find_videos(root, "val")
    for path in (root / "Annotations" / "480p" / "b").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="b: no masks"):
        find_videos(root, "val")
    for path in (root / "JPEGImages" / "480p" / "b").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="b: no frames"):
        find_videos(root, "val")


def test_two_files_of_one_frame_and_masks_that_are_no_png(root: Path) -> None:
    frames = root / "JPEGImages" / "480p" / "a"
    save_picture(frames / "00001.png", np.zeros((8, 10, 3), np.uint8))
    with pytest.raises(InputError, match=r"00001\.jpg: a second file of this frame"):
        find_videos(root, "val")
    (frames / "00001.png").unlink()
    masks = root / "Annotations" / "480p" / "a"
    for path in sorted(masks.iterdir()):
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(InputError, match=r"a: no masks \(PNG\)"):
        find_videos(root, "val")


def test_no_clips_a_split_that_is_no_text_and_half_a_resolution(root: Path) -> None:
    with pytest.raises(InputError, match="clips is empty"):
        select_names(["b", "a"], [], "the list")
    (root / "ImageSets" / "2017" / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bad\.txt: not a text file"):
        find_videos(root, "bad")
    (root / "Annotations" / "480p").rename(root / "Annotations" / "original")
    with pytest.raises(InputError, match="only one has a folder 480p"):
        find_videos(root, "val")


def test_the_lists_of_davis_2016(root: Path) -> None:
    """A frame and its mask per line; the folder that holds them is the clip."""
    lines = [
        f"/JPEGImages/480p/{name}/{number:05d}.jpg /Annotations/480p/{name}/{number:05d}.png "
        for name, number in (("b", 0), ("b", 1), ("a", 0))
    ]
    (root / "ImageSets" / "480p").mkdir()
    (root / "ImageSets" / "480p" / "train.txt").write_text("\n".join(lines) + "\n")
    assert [video.name for video in find_videos(root, "480p/train")] == ["b", "a"]


def test_frames_and_masks_by_number(root: Path) -> None:
    video, _ = find_videos(root, "val")
    assert len(video) == 3
    assert video.annotated.tolist() == [0]
    assert video.frame(2) == video.frames[2]
    assert [path.stem for path in video.only_annotated().frames] == ["00000"]
    assert video.mask(0) == video.masks["00000"]


def test_missing_masks_are_faults_only_where_most_are_there(tmp_path: Path) -> None:
    for name, masks in (("most", [0, 1, 3]), ("every-second", [0, 2]), ("first", [0])):
        make_video(tmp_path, name, 4, masks)
    folders = (tmp_path / "JPEGImages", tmp_path / "Annotations")
    videos = [
        find_video(*(f / name for f in folders)) for name in ("most", "every-second", "first")
    ]
    missing = {video.name: missing_masks(video) for video in videos}
    assert [problem.path.name for problem in missing.pop("most")] == ["00002.jpg"]
    assert missing == {"every-second": [], "first": []}


def test_stray_files_are_warnings_and_hidden_ones_ignored(tmp_path: Path) -> None:
    make_video(tmp_path, "a", 2, [0])
    (tmp_path / "JPEGImages" / "a" / "._00000.jpg").touch()
    (tmp_path / "JPEGImages" / "a" / "Thumbs.db").touch()
    (tmp_path / "Annotations" / "a" / "00000.json").touch()
    video, problems = list_video(tmp_path / "JPEGImages" / "a", tmp_path / "Annotations" / "a")
    assert video is not None
    assert len(video) == 2
    assert {p.path.name: p.error for p in problems} == {"00000.json": False}
    (tmp_path / "JPEGImages" / "__MACOSX").mkdir()
    assert subfolders(tmp_path / "JPEGImages") == ["a"]


@pytest.mark.parametrize("prefix", ["", "img_"])
def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path, prefix: str) -> None:
    """As `ffmpeg %d.jpg` names them; 10 comes after 2."""
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (tmp_path / kind / "a").mkdir(parents=True)
        for number in range(1, 12):
            (tmp_path / kind / "a" / f"{prefix}{number}.{suffix}").touch()
    (video,) = find_videos(tmp_path)
    expected = [f"{prefix}{number}" for number in range(1, 12)]
    assert [path.stem for path in video.frames] == expected
    assert [path.stem for path in video.masks.values()] == expected


@pytest.mark.parametrize("line", ["../../etc", "/480p/../00000.jpg", "/00000.jpg", "./00000.jpg"])
def test_a_line_of_a_list_that_names_no_clip_is_named(root: Path, line: str) -> None:
    path = root / "ImageSets" / "2017" / "val.txt"
    path.write_text(f"a\n\n{line}\n")
    with pytest.raises(InputError, match=rf"val\.txt, line 3: '{re.escape(line)}' names no clip"):
        find_videos(root, "val")


def test_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    make_video(tmp_path, "a", 2, [0])
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "loop").symlink_to(tmp_path / kind / "loop")
        (tmp_path / kind / "stray.txt").touch()
        (tmp_path / kind / "to-stray").symlink_to(tmp_path / kind / "stray.txt")
        (tmp_path / kind / "to-a").symlink_to(tmp_path / kind / "a")
        assert subfolders(tmp_path / kind) == ["a", "loop", "to-a"]
    video, problems = list_video(tmp_path / "JPEGImages/loop", tmp_path / "Annotations/loop")
    assert video is None
    assert all("leads nowhere" in problem.message for problem in problems)


def test_a_root_that_no_folder_can_have() -> None:
    with pytest.raises(InputError, match="too long"):
        video_folders(Path("x" * 300), "JPEGImages", "Annotations")
