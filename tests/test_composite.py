from pathlib import Path

import numpy as np
import pytest

from stma.data.composite import (
    Bend,
    CompositeConfig,
    CompositeScene,
    cut_sprites,
    paste,
    random_bend,
    shrunk,
)
from stma.data.config import DatasetConfig
from stma.data.image_folder import Layout
from stma.data.pictures import save_clip, save_mask, save_picture
from stma.data.sources import ClipSpec, build_source
from stma.errors import InputError
from stma.structures import Clip

SPEC = ClipSpec(
    num_frames=4, size=(64, 80), max_objects=9, max_gap=3, reverse=0.0, num_references=2
)
STILL = dict.fromkeys(
    ("speed", "spin", "growth", "camera_speed", "leave", "blur", "light", "bend"), 0.0
) | {"min_cut": 50}
ALONE = {"min_objects": 1, "max_objects": 1, "max_distractors": 0}
GREY = 90


class Squares:
    """Pictures of one colour with a square of another, object 3, in the middle; frames of a video
    get lighter by 10 each."""

    def __init__(self, colour: int = 200, ground: int = GREY, objects: bool = True) -> None:
        self.colour, self.ground, self.objects = colour, ground, objects
        self.asked: list[list[float]] = []

    def pictures(self, times, rng):
        self.asked.append(list(times))
        images, masks = [], []
        for step in range(len(times)):
            image = np.full((60, 60, 3), self.ground, np.uint8)
            mask = np.zeros((60, 60), np.uint8)
            if self.objects:
                image[20:40, 20:40] = self.colour - 10 * step
                mask[20:40, 20:40] = 3
            images.append(image)
            masks.append(mask)
        return images, masks


def scene(seed: int = 0, cut=None, ground=None, times=(0.0, 2.0), **settings) -> CompositeScene:
    config = CompositeConfig(**(STILL | settings))
    config.colour.brightness = config.colour.contrast = config.colour.saturation = 0.0
    config.colour.hue = 0.0
    pool = [cut or Squares()]
    return CompositeScene(
        config,
        (64, 80),
        np.array(times),
        pool,
        [ground or Squares(objects=False)],
        np.random.default_rng(seed),
    )


def test_the_object_alone_is_pasted_and_the_mask_says_where() -> None:
    """No pixel of the cut-out's surroundings comes along, except at the soft edge."""
    for seed in range(10):
        cut = Squares(200, ground=0)
        one = scene(seed, cut=cut, **ALONE, min_radius=0.2, max_radius=0.3, play=0.0)
        frame, mask = one.draw_at(0.0)
        assert set(np.unique(mask)) == {0, 1}
        inside = frame[..., 0][mask == 1].astype(int)
        outside = frame[..., 0][mask == 0].astype(int)
        assert np.median(inside) == pytest.approx(200, abs=1)
        assert np.median(outside) == pytest.approx(GREY, abs=1)
        assert ((frame < GREY - 5).any(-1)).mean() < 0.1  # what a hard cut would bring: none


def test_objects_grow_as_far_as_growth_allows() -> None:
    def ratio(seed: int, growth: float) -> float:
        motion = scene(seed, growth=growth, max_objects=1, max_distractors=0).layers[0].motion
        sizes = [np.linalg.det(motion.transform(t, 64.0)) ** 0.5 for t in np.arange(60.0)]
        return max(sizes) / min(sizes)

    assert all(ratio(seed, 0.0) == pytest.approx(1.0) for seed in range(5))
    ratios = [ratio(seed, 0.7) for seed in range(40)]
    assert 2.5 < max(ratios) < np.exp(2 * 0.7) + 1e-9


def test_layers_in_front_hide_those_behind_and_their_masks() -> None:
    one = scene(
        min_objects=2,
        max_objects=2,
        max_distractors=0,
        min_radius=0.3,
        max_radius=0.3,
        look_alike=0.0,
    )
    for layer in one.layers:
        layer.motion.position = np.array([0.6, 0.5])
    one.depth_order = np.array([0, 1])
    assert set(np.unique(one.draw_at(0.0)[1])) >= {2}
    behind = (one.draw_at(0.0)[1] == 1).sum()
    one.depth_order = np.array([1, 0])
    assert (one.draw_at(0.0)[1] == 1).sum() > behind


def test_what_comes_from_a_video_plays_on_with_the_clip() -> None:
    cut = Squares(200)
    sized = {"min_radius": 0.25, "max_radius": 0.25}
    one = scene(cut=cut, play=1.0, **ALONE, **sized, times=(0.0, 3.0, 5.0))
    assert cut.asked == [[0.0, 3.0, 5.0]]
    shades = []
    for t in one.times:
        frame, mask = one.draw_at(t)
        shades.append(int(np.median(frame[..., 0][mask == 1])))
    assert shades == pytest.approx([200, 190, 180], abs=1)
    standing = Squares()
    scene(cut=standing, play=0.0, **ALONE)
    assert standing.asked == [[0.0]]


def test_the_grounds_own_objects_are_followed_or_not() -> None:
    for share, expected in ((1.0, {0, 1, 2}), (0.0, {0, 1})):
        sized = {"min_radius": 0.1, "max_radius": 0.1}
        one = scene(ground=Squares(250), follow_ground=share, **ALONE, **sized)
        one.layers[0].motion.position = np.array([0.1, 0.1])
        frame, mask = one.draw_at(0.0)
        assert set(np.unique(mask)) <= expected
        if share:
            assert np.median(frame[..., 0][mask == 2]) == pytest.approx(250, abs=1)


def test_distractors_look_like_objects_and_are_never_annotated() -> None:
    for seed in range(20):
        one = scene(seed, max_objects=1, max_distractors=3)
        if len(one.layers) > 1:
            break
    assert one.labels[1:] == [0] * (len(one.layers) - 1)
    one.depth_order = np.arange(1, len(one.layers))
    assert one.draw_at(0.0)[1].max() == 0


def test_a_cut_outs_edge_is_soft_where_the_object_ends_and_not_where_the_picture_does() -> None:
    image = np.full((30, 30, 3), 200, np.uint8)
    mask = np.zeros((30, 30), np.uint8)
    mask[10:20, :15] = 7
    (sprite,) = cut_sprites([image], [mask], 7, edge=1.0)
    alpha = sprite.pixels[..., 3]
    row = alpha[alpha.shape[0] // 2]
    assert row[0] == 255  # at the border of the picture
    assert 0 < row[14] < 255  # at the end of the object
    assert (np.diff(row[5:].astype(int)) <= 0).all()
    assert (sprite.pixels[..., 0] <= alpha).all()  # premultiplied
    assert sprite.radius == pytest.approx(np.sqrt(150 / np.pi))
    (hard,) = cut_sprites([image], [mask], 7, edge=0.0)
    assert set(np.unique(hard.pixels[..., 3])) == {0, 255}


def test_frames_without_the_object_are_left_out_of_a_cut_out() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    full, empty = np.zeros((2, 20, 20), np.uint8)
    full[5:15, 5:15] = 1
    assert len(cut_sprites([image] * 3, [full, empty, full], 1, 0.8)) == 2


def test_pasting_unmoved_gives_the_pixels_back() -> None:
    pixels = np.zeros((6, 8, 4), np.uint8)
    pixels[1:5, 1:7] = (10, 20, 30, 255)
    frame = np.full((20, 20, 4), 99, np.uint8)
    mask = np.zeros((20, 20), np.uint8)
    matrix = np.array([[1.0, 0, 5], [0, 1, 3], [0, 0, 1]])
    paste(frame, mask, pixels, matrix, None, 0.0, label=4)
    assert (frame[4:8, 6:12, :3] == (10, 20, 30)).all()
    assert (mask[4:8, 6:12] == 4).all()
    assert (mask == 4).sum() == 24
    frame[4:8, 6:12] = 99
    assert (frame == 99).all()
    matrix[0, 2] = 105
    paste(frame, mask, pixels, matrix, None, 0.0, label=5)
    assert mask.max() == 4  # outside of the frame


def test_a_bend_of_nothing_changes_nothing_and_others_are_smooth_in_time() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (30, 2))
    zero = np.zeros((9, 9, 2), np.float32)
    assert not Bend((zero, zero), np.ones(2), np.zeros(2))(points, 3.0).any()
    bend = random_bend(0.05, rng)
    at, soon, late = (bend(points, t) for t in (2.0, 2.01, 8.0))
    assert np.abs(at - soon).max() < 0.01 < np.abs(at - late).max()
    pixels = np.full((12, 12, 4), 255, np.uint8)
    drawn = []
    for each in (None, Bend((zero, zero), np.ones(2), np.zeros(2)), bend):
        frame, mask = np.zeros((40, 40, 4), np.uint8), np.zeros((40, 40), np.uint8)
        paste(frame, mask, pixels, np.array([[2.0, 0, 8], [0, 2, 8], [0, 0, 1]]), each, 2.0, 1)
        drawn.append(mask)
    assert (drawn[0] != drawn[1]).sum() <= 4
    assert (drawn[0] != drawn[2]).any()


def test_a_shrunk_sprite_keeps_its_place_and_relative_size() -> None:
    image = np.full((60, 60, 3), 200, np.uint8)
    mask = np.zeros((60, 60), np.uint8)
    mask[10:50, 10:50] = 1
    (sprite,) = cut_sprites([image], [mask], 1, 0.8)
    small = shrunk(sprite, 2)
    assert small.pixels.shape == (23, 23, 4)
    ratio = small.radius / sprite.radius
    assert ratio == pytest.approx(0.5, abs=0.01)
    assert small.centre + 0.5 == pytest.approx((sprite.centre + 0.5) * ratio)
    assert shrunk(sprite, 1) is sprite


def test_an_object_too_small_to_cut_is_told() -> None:
    with pytest.raises(InputError, match=r"no object of 401 pixels in 50 pictures.*min_cut"):
        scene(min_cut=401)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_cut": 0}, "min_cut is 0"),
        ({"tilt": 4.0}, "tilt is 4.0; give 0 to 3.14"),
        ({"edge": -1.0}, "edge is -1.0"),
        ({"bend": 1.5}, "bend is 1.5"),
        ({"play": -0.1}, "play is -0.1"),
        ({"min_objects": 0}, "min_objects is 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompositeConfig(**settings)


# The source: files in, clips out.


def files(tmp_path: Path) -> dict[str, DatasetConfig]:
    """A video of two objects and three pictures of one."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    masks = np.zeros((6, 48, 64), np.uint8)
    masks[:, 8:28, 8:28] = 2
    masks[:, 28:46, 36:60] = 5
    save_clip(tmp_path / "videos", "a", images, masks, ".png")
    (tmp_path / "pictures").mkdir()
    for n in range(3):
        save_picture(tmp_path / "pictures" / f"{n}.jpg", images[n])
        save_mask(tmp_path / "pictures" / f"{n}.png", (masks[n] == 5).astype(np.uint8))
    layouts = [Layout("*.jpg", "*.png")]
    return {
        "videos": DatasetConfig(root=str(tmp_path / "videos")),
        "pictures": DatasetConfig(kind="images", root=str(tmp_path / "pictures"), layouts=layouts),
    }


def sample(block: DatasetConfig, seed: int, spec: ClipSpec = SPEC) -> Clip:
    source = build_source("composite", block, spec.num_frames)
    return source.sample(0, spec, np.random.default_rng(seed))


def test_clips_depend_on_the_seed_alone_and_every_object_shows_first(tmp_path: Path) -> None:
    block = DatasetConfig(
        kind="composite", cut_from=files(tmp_path), composite=CompositeConfig(min_cut=50)
    )
    counts = set()
    for seed in range(12):
        one, again = sample(block, seed), sample(block, seed)
        assert np.array_equal(one.frames, again.frames)
        assert np.array_equal(one.masks, again.masks)
        assert one.frames.shape == (4, 64, 80, 3)
        assert set(np.unique(one.masks[0])) - {0} == set(range(1, one.num_objects + 1))
        assert one.masks.max() <= one.num_objects
        counts.add(one.num_objects)
    assert len(counts) > 2
    few = ClipSpec(4, (64, 80), 1, 3, 0.0, 2)
    assert sample(block, 0, few).num_objects == 1


def test_grounds_may_be_others_than_what_is_cut_from(tmp_path: Path) -> None:
    blocks = files(tmp_path)
    grey = np.full((1, 48, 64, 3), GREY, np.uint8)
    save_clip(tmp_path / "grounds", "g", grey, np.zeros((1, 48, 64), np.uint8), ".png")
    config = CompositeConfig(**STILL, max_distractors=0, max_objects=1)
    block = DatasetConfig(
        kind="composite",
        composite=config,
        cut_from=blocks,
        grounds={"grey": DatasetConfig(root=str(tmp_path / "grounds"))},
    )
    clip = sample(block, 1)
    away = clip.frames[0][clip.masks[0] == 0]
    assert np.ptp(np.median(away, axis=0)) <= 3  # grey in grey, but for its colour's change


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cut_from": {"a": DatasetConfig(kind="procedural")}}, "cut_from.a is procedural"),
    ],
)
def test_blocks_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DatasetConfig(kind="composite", **settings)


def test_a_source_that_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sources.composite.cut_from is empty.*cut_from.mine"):
        build_source("composite", DatasetConfig(kind="composite"), 3)
    missing = DatasetConfig(
        kind="composite", cut_from={"gone": DatasetConfig(root=str(tmp_path / "x"))}
    )
    with pytest.raises(InputError, match="x: no such folder"):
        build_source("composite", missing, 3)
    block = DatasetConfig(
        kind="composite",
        composite=CompositeConfig(min_cut=50),
        cut_from={"videos": files(tmp_path)["videos"]},
    )
    for path in (tmp_path / "videos" / "JPEGImages" / "a").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"JPEGImages/a/0000\d.png: cannot be read"):
        sample(block, 0)


def test_large_pictures_are_read_at_a_size_that_is_enough(tmp_path: Path) -> None:
    from stma.data.sources import FileSource

    mask = np.zeros((1100, 1200), np.uint8)
    mask[100:300, 400:900] = 3
    save_clip(tmp_path, "a", np.zeros((1, 1100, 1200, 3), np.uint8), mask[None], ".jpg")
    source = FileSource("mine", DatasetConfig(root=str(tmp_path)), 1)
    images, masks = source.pictures(np.zeros(1), np.random.default_rng(0))
    assert images[0].shape == (550, 600, 3)
    assert (masks[0] == 3).sum() == pytest.approx(100 * 250, rel=0.02)


def test_a_video_plays_by_its_own_frames_to_and_fro(tmp_path: Path) -> None:
    """Five frames, the number of each in red, annotated every 2nd frame of the video."""
    from stma.data.sources import FileSource

    images = np.zeros((5, 20, 20, 3), np.uint8)
    images[..., 0] = 40 * np.arange(5)[:, None, None]
    save_clip(tmp_path, "a", images, np.ones((5, 20, 20), np.uint8), ".png")
    source = FileSource("mine", DatasetConfig(root=str(tmp_path), annotation_stride=2), 1)
    for seed in range(10):
        found, _ = source.pictures(np.array([0.0, 2.0, 6.0]), np.random.default_rng(seed))
        numbers = [int(image[0, 0, 0]) // 40 for image in found]
        assert abs(numbers[1] - numbers[0]) == 1
        assert abs(numbers[2] - numbers[1]) in (0, 2)  # turned at an end or not
