import numpy as np
import pytest

from stma.data.procedural import ProceduralScene, procedural_clip, random_texture
from stma.data.scene import SceneConfig
from stma.errors import InputError


def clip(seed: int, frames: int = 6, **settings) -> tuple[np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(seed)
    return procedural_clip(SceneConfig(**settings), (64, 96), np.arange(float(frames)), rng)


def test_equal_seeds_give_equal_clips_and_others_do_not() -> None:
    frames, masks, count = clip(3)
    again_frames, again_masks, again_count = clip(3)
    assert np.array_equal(frames, again_frames)
    assert np.array_equal(masks, again_masks)
    assert count == again_count
    assert not np.array_equal(frames, clip(4)[0])


def test_a_frame_does_not_depend_on_which_others_are_drawn() -> None:
    dense, sparse = (
        procedural_clip(SceneConfig(), (64, 64), times, np.random.default_rng(0))
        for times in (np.arange(5.0), np.array([0.0, 4.0]))
    )
    assert np.array_equal(dense[0][4], sparse[0][1])


@pytest.mark.parametrize("seed", range(20))
def test_objects_are_numbered_from_1_and_all_visible_at_first(seed: int) -> None:
    frames, masks, count = clip(seed, frames=3)
    assert frames.shape == (3, 64, 96, 3)
    assert frames.dtype == masks.dtype == np.uint8
    ids, areas = np.unique(masks[0], return_counts=True)
    assert set(ids) - {0} == set(range(1, count + 1))
    assert all(area >= 40 for area in areas)
    assert masks.max() <= count


def test_objects_move() -> None:
    changed = [(masks[0] != masks[-1]).mean() for _, masks, _ in map(clip, range(10))]
    assert np.mean(changed) > 0.02


def test_objects_occlude_one_another() -> None:
    """Drawn alone, the shapes of a scene would cover more than they do together."""
    config = SceneConfig(min_objects=3, max_objects=3, max_distractors=0)
    hidden = 0
    for seed in range(10):
        scene = ProceduralScene(config, (64, 64), np.random.default_rng(seed))
        _, together = scene.render(0.0)
        labels = scene.labels
        for index in range(3):
            scene.labels = [0] * 3
            scene.labels[index] = 1
            order, scene.depth_order = scene.depth_order, np.array([index])
            hidden += int(scene.render(0.0)[1].sum() > (together == index + 1).sum())
            scene.depth_order = order
        scene.labels = labels
    assert hidden > 5


def test_distractors_are_drawn_and_never_annotated() -> None:
    config = SceneConfig(min_objects=1, max_objects=1, max_distractors=2)
    scene = next(
        scene
        for scene in (
            ProceduralScene(config, (64, 64), np.random.default_rng(seed)) for seed in range(50)
        )
        if len(scene.shapes) == 3
    )
    assert scene.labels == [1, 0, 0]
    with_them, mask = scene.render(0.0)
    scene.depth_order = np.array([0])
    without, _ = scene.render(0.0)
    assert not np.array_equal(with_them, without)
    assert set(np.unique(mask)) <= {0, 1}


def test_scenes_that_never_show_an_object_end_with_an_error(monkeypatch) -> None:
    config = SceneConfig(max_radius=1.0)
    monkeypatch.setattr("stma.data.scene.MIN_PIXELS", 32 * 32 + 1)
    monkeypatch.setattr("stma.data.scene.MAX_SCENES", 50)
    with pytest.raises(InputError, match="50 scenes"):
        procedural_clip(config, (32, 32), np.arange(2.0), np.random.default_rng(0))


def test_textures_differ() -> None:
    rng = np.random.default_rng(0)
    textures = [random_texture(rng) for _ in range(4)]
    assert all(texture.shape == (96, 96, 3) and texture.std() > 2 for texture in textures)
    assert not np.array_equal(textures[0], textures[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_objects": 6}, "max_objects is 5; give 6 to 255"),
        ({"min_radius": 0.0}, "min_radius"),
        ({"max_distractors": -1}, "max_distractors"),
        ({"speed": -1}, "speed is -1"),
        ({"blur": 2}, "blur is 2"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneConfig(**settings)


def test_frames_too_small_for_an_object() -> None:
    with pytest.raises(ValueError, match="16 pixels"):
        SceneConfig().check_size((8, 64))
    with pytest.raises(ValueError, match=r"max_radius 0.03.*40"):
        SceneConfig(min_radius=0.02, max_radius=0.03).check_size((64, 64))


def area_of_objects(seed: int, frames: int, **settings) -> np.ndarray:
    """``(T, N)``: pixels of every object in every frame."""
    rng = np.random.default_rng(seed)
    config = SceneConfig(blur=0.0, light=0.0, **settings)
    _, masks, count = procedural_clip(config, (48, 64), np.arange(float(frames)), rng)
    return np.stack([(masks == i).sum((1, 2)) for i in range(1, count + 1)], axis=1)


def test_objects_leave_the_frame_and_come_back() -> None:
    """Alone, with the camera still, so that nothing else hides them."""
    still = {"max_objects": 1, "max_distractors": 0, "speed": 0.0, "camera_speed": 0.0}
    returned = 0
    for seed in range(20):
        area = area_of_objects(seed, 40, leave=1.0, **still)[:, 0]
        gone = np.flatnonzero(area == 0)
        returned += bool(len(gone) and area[gone[0] :].any())
        assert (area_of_objects(seed, 40, leave=0.0, **still) > 0).all()
    assert returned > 12


def test_motion_blur_smears_edges_and_leaves_masks() -> None:
    """Against the same scene with an instantaneous shutter: equal masks, and less contrast."""
    for seed in range(5):
        scene = ProceduralScene(
            SceneConfig(blur=1.0, light=0.0), (64, 64), np.random.default_rng(seed)
        )
        assert scene.shutter > 0
        blurred, mask = scene.render(3.0)
        scene.shutter = 0.0
        sharp, same = scene.render(3.0)
        assert np.array_equal(mask, same)
        assert not np.array_equal(blurred, sharp)
        assert (
            np.abs(np.diff(blurred.astype(int), axis=1)).mean()
            < np.abs(np.diff(sharp.astype(int), axis=1)).mean()
        )


def test_light_changes_colours_and_not_masks() -> None:
    changes = []
    for seed in range(10):
        scene = ProceduralScene(
            SceneConfig(blur=0.0, light=1.0), (64, 64), np.random.default_rng(seed)
        )
        lit, mask = scene.render(8.0)
        light, scene.light = scene.light, None
        plain, same = scene.render(8.0)
        assert light is not None
        assert np.array_equal(mask, same)
        changes.append(np.abs(lit.astype(int) - plain).mean())
    assert np.mean(changes) > 5


def test_long_clips_do_not_empty_themselves() -> None:
    shown = []
    for seed in range(10):
        scene = ProceduralScene(
            SceneConfig(leave=0.0, blur=0.0), (48, 64), np.random.default_rng(seed)
        )
        first, late = (len(np.unique(scene.render(t)[1])) - 1 for t in (0.0, 900.0))
        shown.append(late / max(first, 1))
    assert np.mean(shown) > 0.6


def test_shapes_vary() -> None:
    """Outlines of fifty seeds: some nearly round, some with corners far out."""
    from stma.data.procedural import _random_base

    bases = [_random_base(np.random.default_rng(seed)) for seed in range(50)]
    assert all(base.shape == (72, 2) for base in bases)
    spread = [np.ptp(np.hypot(*base.T)) for base in bases]
    assert min(spread) < 0.01
    assert max(spread) > 0.5
