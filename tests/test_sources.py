from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import random_frame
from PIL import Image

from stma.data.config import DatasetConfig
from stma.data.image_folder import Layout
from stma.data.pictures import save_clip, save_mask
from stma.data.sources import ClipSpec, FileSource, build_source, walk_from
from stma.data.transforms import ColourConfig, TransformConfig
from stma.errors import InputError

SPEC = ClipSpec(
    num_frames=3, size=(32, 32), max_objects=3, max_gap=2, reverse=0.5, num_references=2
)
PLAIN = TransformConfig(rotate=0.0, shear=0.0, greyscale=0.0)


def video(frames: int, size: tuple[int, int] = (48, 64), ids: tuple[int, ...] = (1, 2)):
    """Frames whose red channel is their number; a square for every ID, in a grid."""
    images = np.zeros((frames, *size, 3), np.uint8)
    images[..., 0] = 10 * np.arange(frames)[:, None, None]
    masks = np.zeros((frames, *size), np.uint8)
    for place, value in enumerate(ids):
        row, column = divmod(place, 4)
        masks[:, 4 + 10 * row : 12 + 10 * row, 4 + 14 * column : 14 + 14 * column] = value
    return images, masks


def source(root: Path, num_frames: int = 3, **settings) -> FileSource:
    config = DatasetConfig(root=str(root), **({"transform": PLAIN} | settings))
    return FileSource("mine", config, num_frames)


def draw(source: FileSource, seed: int = 0, item: int = 0, spec: ClipSpec = SPEC):
    return source.sample(item, spec, np.random.default_rng(seed))


def test_clips_of_videos_keep_to_the_gap_and_run_both_ways(tmp_path: Path) -> None:
    save_clip(tmp_path, "a", *video(9), ".png")
    colourless = TransformConfig(
        rotate=0.0, shear=0.0, greyscale=0.0, colour=ColourConfig(), frame_colour=ColourConfig()
    )
    mine = source(tmp_path, transform=colourless)
    steps = set()
    for seed in range(60):
        clip = draw(mine, seed)
        assert clip.frames.shape == (3, 32, 32, 3)
        numbers = clip.frames[:, 16, 16, 0].astype(int) // 10
        steps |= set(np.diff(numbers).tolist())
        assert clip.name == f"mine: a ({', '.join(f'{n:05d}' for n in numbers)})"
        assert set(np.unique(clip.masks[0])) - {0} == set(range(1, clip.num_objects + 1))
    assert steps == {-2, -1, 1, 2}


def test_equal_chance_gives_equal_clips(tmp_path: Path) -> None:
    save_clip(tmp_path, "a", *video(9), ".jpg")
    mine = source(tmp_path)
    for seed in range(5):
        one, two = draw(mine, seed), draw(mine, seed)
        assert np.array_equal(one.frames, two.frames)
        assert np.array_equal(one.masks, two.masks)
        assert np.array_equal(one.references, two.references)


def test_the_gap_counts_frames_of_the_video_and_only_annotated_ones_are_taken(tmp_path) -> None:
    images, masks = video(21)
    save_clip(tmp_path, "a", images, masks, ".png")
    for number in range(21):
        if number % 5:
            (tmp_path / "Annotations" / "a" / f"{number:05d}.png").unlink()
    mine = source(tmp_path, annotation_stride=5)
    for gap, expected in ((3, {5}), (10, {5, 10})):
        spec = ClipSpec(3, (32, 32), 3, gap, 0.0, 2)
        names = [draw(mine, seed, spec=spec).name for seed in range(30)]
        numbers = [[int(n) for n in name[name.index("(") + 1 : -1].split(",")] for name in names]
        assert set(np.diff(numbers).ravel().tolist()) == expected


def test_more_objects_than_are_sampled(tmp_path: Path) -> None:
    save_clip(tmp_path, "a", *video(4, ids=(3, 9, 40, 41, 200, 255)), ".png")
    clips = [draw(source(tmp_path), seed) for seed in range(20)]
    assert all(1 <= clip.num_objects <= 3 for clip in clips)
    assert all(clip.masks.max() <= 3 for clip in clips)
    assert any(clip.num_objects == 3 for clip in clips)


def test_objects_come_from_the_first_sampled_frame(tmp_path: Path) -> None:
    """Object 2 appears in the last frame only: it is an object where the clip runs backwards."""
    images, masks = video(3)
    masks[:2][masks[:2] == 2] = 0
    save_clip(tmp_path, "a", images, masks, ".png")
    mine = source(tmp_path)
    for seed in range(20):
        clip = draw(mine, seed)
        forward = clip.name.endswith("00002)")
        assert clip.masks[0].max() == clip.num_objects
        if forward:
            assert clip.masks.max() == 1


def test_an_object_that_shows_seldom_is_found(tmp_path: Path) -> None:
    """One pixel in one frame of forty, larger than the output: no drawn crop will show it."""
    images, masks = video(40, size=(200, 200), ids=())
    masks[17, 150, 30] = 6
    save_clip(tmp_path, "a", images, masks, ".png")
    mine = source(tmp_path, min_pixels=50)
    for seed in range(3):
        clip = draw(mine, seed)
        assert clip.num_objects == 1
        assert (clip.masks[0] == 1).sum() == 1
        assert "00017" in clip.name


def test_colours_change_for_the_clip_and_a_little_for_each_frame(tmp_path: Path) -> None:
    images, masks = video(3)
    images[:] = (60, 120, 180)
    save_clip(tmp_path, "a", images, masks, ".png")

    def tones(**settings) -> np.ndarray:
        plain = {"colour": ColourConfig(), "frame_colour": ColourConfig(), "greyscale": 0.0}
        transform = TransformConfig(rotate=0.0, shear=0.0, **(plain | settings))
        return draw(source(tmp_path, transform=transform)).frames[:, 16, 16].astype(int)

    assert (tones() == (60, 120, 180)).all()
    whole = tones(colour=ColourConfig(brightness=0.5))
    assert (whole == whole[0]).all()
    assert (whole != (60, 120, 180)).all()
    frames = tones(frame_colour=ColourConfig(brightness=0.5))
    assert len({tuple(tone) for tone in frames}) == 3
    grey = tones(greyscale=1.0)
    assert (grey == grey[:, :1]).all()


def test_sizes_are_compared_in_full_where_frames_are_read_smaller(tmp_path: Path) -> None:
    images, masks = video(3, size=(400, 400))
    save_clip(tmp_path, "a", images[:, :392], masks, ".jpg")
    with pytest.raises(InputError, match="400 x 400 pixels, its frame 400 x 392"):
        draw(source(tmp_path), spec=ClipSpec(3, (32, 32), 3, 2, 0.5, 2))


def test_walks_turn_at_the_ends() -> None:
    assert walk_from(2, 5, 5) == [2, 3, 4, 3, 2]
    assert walk_from(0, 2, 4) == [0, 1, 0, 1]
    assert walk_from(0, 1, 3) == [0, 0, 0]


def test_short_clips_are_left_out_and_counted(tmp_path: Path) -> None:
    for name, length in (("long", 5), ("short", 2), ("tiny", 1)):
        save_clip(tmp_path, name, *video(length), ".png")
    mine = source(tmp_path)
    assert mine.size == 1
    assert mine.notes == [
        "mine: left out 2 of 3 clips, with fewer than 3 annotated frames: short, tiny"
    ]
    with pytest.raises(InputError, match="none of its 3 clips has 6 annotated frames"):
        source(tmp_path, num_frames=6)


def test_a_still_image_becomes_a_clip(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    cv2.circle(mask, (60, 45), 30, 255, -1)
    Image.fromarray(image).save(tmp_path / "x.jpg")
    Image.fromarray(mask).save(tmp_path / "x.png")
    config = DatasetConfig(
        kind="images",
        root=str(tmp_path),
        layouts=[Layout("*.jpg", "*.png")],
        mask_values="binary",
        transform=TransformConfig(thin_plate=0.02),
    )
    clip = draw(FileSource("still", config, 3))
    assert clip.num_objects == 1
    assert clip.frames.shape == (3, 32, 32, 3)
    assert not np.array_equal(clip.masks[0], clip.masks[1])
    assert clip.name == "still: x (x)"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_large_frames_are_read_smaller_and_show_the_same(tmp_path: Path, suffix: str) -> None:
    images, masks = video(3, size=(400, 520))
    cv2.circle(images[0], (260, 200), 120, (0, 250, 0), -1)
    images[:] = images[0]
    masks[:] = (images[0][..., 1] > 0)[None]
    save_clip(tmp_path, "a", images, masks, suffix)
    clip = draw(source(tmp_path))
    green = clip.frames[..., 1] > 125
    assert (green != (clip.masks > 0)).mean() < 0.02


def test_settings_for_large_enough_objects(tmp_path: Path) -> None:
    images, masks = video(3, ids=())
    masks[:, 4:28, 4:28] = 1
    masks[:, 40:43, 40:43] = 2
    save_clip(tmp_path, "a", images, masks, ".png")
    assert max(draw(source(tmp_path), s).num_objects for s in range(20)) == 2
    assert max(draw(source(tmp_path, min_pixels=40), s).num_objects for s in range(20)) == 1


def replace_mask(root: Path, number: int, mask: np.ndarray) -> Path:
    path = root / "Annotations" / "a" / f"{number:05d}.png"
    save_mask(path, mask)
    return path


def test_faults_of_files_are_named_and_nothing_takes_their_place(tmp_path: Path) -> None:
    images, masks = video(3)

    def fails(message: str) -> None:
        with pytest.raises(InputError, match=message):
            draw(source(tmp_path))
        save_clip(tmp_path, "a", images, masks, ".jpg")

    save_clip(tmp_path, "a", images, masks, ".jpg")
    replace_mask(tmp_path, 1, np.ones((48, 60), np.uint8))
    fails(r"a/0000\d\.png: 6\d x 48 pixels, but 6\d x 48 in 0000\d\.png; all frames of a clip")
    for number in range(3):
        replace_mask(tmp_path, number, np.ones((48, 60), np.uint8))
    fails(r"a/0000\d\.png: 60 x 48 pixels, its frame 64 x 48; a mask has the size")
    Image.fromarray(np.zeros((30, 64, 3), np.uint8)).save(
        tmp_path / "JPEGImages" / "a" / "00001.jpg"
    )
    fails(r"a/00001\.png: 64 x 48 pixels, its frame 64 x 30")
    frame = tmp_path / "JPEGImages" / "a" / "00002.jpg"
    frame.write_bytes(frame.read_bytes()[:-200])
    fails(r"a/00002\.jpg: cannot be read as an image")
    rgb = tmp_path / "Annotations" / "a" / "00000.png"
    Image.fromarray(random_frame(np.random.default_rng(0), 48, 64)).save(rgb)
    fails(r"a/00000\.png: the mask is RGB")
    soft = Image.fromarray(masks[0] * 100).resize((64, 48), Image.Resampling.BILINEAR)
    for number in range(3):
        blurred = cv2.GaussianBlur(np.asarray(soft), (5, 5), 2)
        replace_mask(tmp_path, number, blurred)
    fails(r"a/0000\d\.png: .*antialiased")
    for number in range(3):
        replace_mask(tmp_path, number, np.zeros((48, 64), np.uint8))
    fails(r"Annotations/a: no mask holds an object; leave it out with exclude=\[a\]")


def test_void_is_named_and_becomes_background(tmp_path: Path) -> None:
    images, masks = video(3)
    masks[:, 30:40] = 255
    save_clip(tmp_path, "a", images, masks, ".png")
    plain = source(tmp_path)
    assert any("a/00000.png" in note and "mask_void=255" in note for note in plain.notes)
    assert max(draw(plain, seed).num_objects for seed in range(20)) == 3
    void = source(tmp_path, mask_void=255)
    assert void.notes == []
    assert max(draw(void, seed).num_objects for seed in range(20)) == 2


def test_black_and_white_files_of_a_clip_show_one_object(tmp_path: Path) -> None:
    """One of them has one bit to a pixel, one an object at index 0."""
    images, masks = video(3, ids=(1,))
    save_clip(tmp_path, "a", images, masks, ".png")
    folder = tmp_path / "Annotations" / "a"
    Image.fromarray(255 * masks[0]).save(folder / "00000.png")
    Image.fromarray(masks[1] > 0).save(folder / "00001.png")
    inverted = Image.fromarray(1 - masks[2])
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    inverted.save(folder / "00002.png")
    clip = draw(source(tmp_path))
    assert clip.num_objects == 1
    assert len({mask.tobytes() for mask in clip.masks}) == 1  # it does not move


def test_a_mask_one_pixel_off_is_used(tmp_path: Path) -> None:
    images, masks = video(3)
    save_clip(tmp_path, "a", images, masks[:, :, :63], ".png")
    assert draw(source(tmp_path)).num_objects >= 1


def test_faults_of_the_root_are_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sources\.mine\.root is empty"):
        FileSource("mine", DatasetConfig(), 3)
    with pytest.raises(InputError, match="nowhere: no such folder; see datasets"):
        source(tmp_path / "nowhere")
    save_clip(tmp_path, "a", *video(3), ".png")
    save_clip(tmp_path, "b", *video(3), ".png")
    with pytest.raises(InputError, match="exclude names c, which does not exist"):
        source(tmp_path, exclude=["c"])
    assert source(tmp_path, exclude=["b"]).size == 1
    with pytest.raises(InputError, match=r"2 clips or images, but 60 were published"):
        source(tmp_path, published=60)
    mask = tmp_path / "Annotations" / "b" / "00001.png"
    mask.rename(mask.with_stem("00007"))
    with pytest.raises(InputError, match=r"b/00007\.png: no frame of this name.*and 1 more"):
        source(tmp_path)
    mask.with_stem("00007").unlink()
    with pytest.raises(InputError, match=r"JPEGImages/b/00001\.png: no mask of this name"):
        source(tmp_path)
    (tmp_path / "JPEGImages" / "lonely").mkdir()
    with pytest.raises(InputError, match=r"Annotations/lonely: no such folder"):
        source(tmp_path, exclude=["b"])


def test_two_paths_and_parts(tmp_path: Path) -> None:
    save_clip(tmp_path / "p" / "x", "a", *video(3), ".png")
    save_clip(tmp_path / "p" / "y", "b", *video(3), ".png")
    assert source(tmp_path / "p", parts=["x", "y"]).size == 2
    images, masks = (tmp_path / "p" / "x" / kind for kind in ("JPEGImages", "Annotations"))
    assert source(tmp_path, images=str(images), masks=str(masks)).size == 1


def test_procedural_clips_are_drawn_at_the_size_asked_for() -> None:
    procedural = build_source("made", DatasetConfig(kind="procedural"), 3)
    assert procedural.size is None
    spec = ClipSpec(3, (40, 56), 1, 4, 0.5, 2)
    clip = procedural.sample(7, spec, np.random.default_rng(0))
    assert clip.frames.shape == (3, 40, 56, 3)
    assert clip.num_objects == clip.masks.max() == 1
    assert clip.name == "made: clip 7"
