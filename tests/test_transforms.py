import dataclasses

import cv2
import numpy as np
import pytest

from stma.data.transforms import (
    FILL,
    Colour,
    ColourConfig,
    ThinPlate,
    TransformConfig,
    Warp,
    apply_colours,
    draw_colour,
    draw_warps,
    random_thin_plate,
    window,
)

STILL = TransformConfig(
    crop_scale=[1.0, 1.0], crop_ratio=[0.1, 10.0], flip=0.0, rotate=0.0, shear=0.0
)


def smooth_picture(height: int, width: int, seed: int = 0, cell: int = 8) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (height // cell, width // cell, 3))
    resized = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(resized, 0, 255).astype(np.uint8)


def test_the_identity_changes_no_pixel() -> None:
    picture = smooth_picture(48, 64)
    mask = np.random.default_rng(0).integers(0, 5, (48, 64), dtype=np.uint8)
    flat = ThinPlate(np.array([[0.1, 0.2], [0.8, 0.3], [0.4, 0.9]]), np.zeros((3, 2)))
    for warp, rounding in ((Warp(np.eye(3), (48, 64)), 0), (Warp(np.eye(3), (48, 64), flat), 1)):
        assert np.abs(warp.image(picture).astype(int) - picture).max() <= rounding
        assert np.array_equal(warp.mask(mask), mask)


def test_twice_the_size_repeats_mask_pixels_and_joins_edges() -> None:
    """Pixel edges meet: every mask pixel becomes a block of 2 x 2, none is cut at the border."""
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    enlarged = draw_warps(STILL, (3, 4), (6, 8), 1, np.random.default_rng(0))[0].mask(mask)
    assert np.array_equal(enlarged, mask.repeat(2, 0).repeat(2, 1))


def test_a_flip_mirrors_exactly() -> None:
    picture = smooth_picture(32, 48)
    plain, mirrored = (
        draw_warps(
            dataclasses.replace(STILL, flip=flip), (32, 48), (24, 40), 1, np.random.default_rng(0)
        )[0]
        for flip in (0.0, 1.0)
    )
    difference = plain.image(picture).astype(int) - mirrored.image(picture)[:, ::-1]
    assert np.abs(difference).max() <= 2  # the fixed point of the resampling


@pytest.mark.parametrize("thin_plate", [0.0, 0.02])
def test_image_and_mask_move_together(thin_plate: float) -> None:
    """A mask drawn as a picture and warped as one agrees with the warped mask away from edges."""
    config = TransformConfig(thin_plate=thin_plate, shift=0.1, zoom=[0.8, 1.2])
    mask = np.zeros((96, 128), np.uint8)
    cv2.circle(mask, (60, 50), 30, 1, -1)
    picture = np.repeat(mask[..., None] * 255, 3, 2)
    for seed in range(10):
        for warp in draw_warps(config, (96, 128), (64, 80), 2, np.random.default_rng(seed)):
            outside = warp.image(np.full((96, 128, 3), 255, np.uint8))[..., 0] < 255
            image, warped = warp.image(picture)[..., 0].astype(int), warp.mask(mask)
            sure = (~outside) & ((image < 64) | (image > 191))
            assert np.array_equal(image[sure] > 127, warped[sure] == 1)
            assert sure[~outside].mean() > 0.85


def test_one_resampling_is_sharper_than_a_chain_and_equal_where_the_chain_is_exact() -> None:
    picture = smooth_picture(128, 128)
    config = TransformConfig(flip=0.0)
    one, chain = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        warp = draw_warps(config, (128, 128), (96, 96), 1, rng)[0]
        back = Warp(np.linalg.inv(warp.matrix), (128, 128))
        once = Warp(warp.matrix @ back.matrix, (128, 128)).image(picture)
        twice = back.image(warp.image(picture))
        inside = np.s_[48:80, 48:80]
        one.append(np.abs(once[inside].astype(int) - picture[inside]).mean())
        chain.append(np.abs(twice[inside].astype(int) - picture[inside]).mean())
    assert max(one) < 0.01  # composed, there and back is nothing at all
    assert np.mean(chain) > 0.5


def test_the_coarse_map_of_a_thin_plate_is_that_of_every_pixel() -> None:
    config = TransformConfig(thin_plate=0.02)
    for seed in range(5):
        warp = draw_warps(config, (480, 854), (384, 256), 1, np.random.default_rng(seed))[0]
        assert warp.thin_plate is not None
        x, y = np.meshgrid(np.arange(256.0), np.arange(384.0))
        points = np.stack([x, y], -1).reshape(-1, 2)
        unit = np.array([256, 384])
        points = points + warp.thin_plate((points + 0.5) / unit) * unit
        exact = points @ warp.matrix[:2, :2].T + warp.matrix[:2, 2]
        error = np.abs(warp.map().reshape(-1, 2) - exact)
        assert error.max() < 0.5  # original pixels; the plate is least smooth at its points
        assert error.mean() < 0.05


def test_crops_keep_to_their_scale_and_ratio_and_stay_inside() -> None:
    config = TransformConfig(rotate=0.0, shear=0.0, flip=0.0)
    areas, ratios = [], []
    for seed in range(300):
        warp = draw_warps(config, (480, 854), (384, 384), 1, np.random.default_rng(seed))[0]
        left, top = (warp.matrix @ [-0.5, -0.5, 1])[:2] + 0.5
        right, bottom = (warp.matrix @ [383.5, 383.5, 1])[:2] + 0.5
        assert left >= -1e-6
        assert top >= -1e-6
        assert right <= 854 + 1e-6
        assert bottom <= 480 + 1e-6
        areas.append((right - left) * (bottom - top) / (480 * 854))
        ratios.append((right - left) / (bottom - top))
    assert min(areas) > 0.359
    assert max(areas) > 0.7
    assert 0.749 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.334


def test_a_clip_shares_its_crop_and_its_frames_differ() -> None:
    rotating = draw_warps(TransformConfig(), (96, 96), (64, 64), 3, np.random.default_rng(0))
    assert not np.allclose(rotating[0].matrix, rotating[1].matrix)
    config = TransformConfig(rotate=0.0, shear=0.0)
    still = draw_warps(config, (96, 96), (64, 64), 3, np.random.default_rng(0))
    assert np.allclose(still[0].matrix, still[2].matrix)


def test_around_the_picture_is_the_mean_colour_and_background() -> None:
    outside = Warp(np.array([[1, 0, 1000], [0, 1, 0], [0, 0, 1.0]]), (8, 8))
    assert (outside.image(np.zeros((8, 8, 3), np.uint8)) == FILL).all()
    assert (outside.mask(np.ones((8, 8), np.uint8)) == 0).all()


@pytest.mark.parametrize("point", [(0, 0), (479, 853), (200, 17)])
def test_a_window_shows_its_pixel(point: tuple[int, int]) -> None:
    mask = np.zeros((480, 854), np.uint8)
    mask[point] = 3
    assert (window((480, 854), (384, 384), np.array(point)).mask(mask) == 3).sum() == 1
    small = np.zeros((100, 90), np.uint8)
    small[99, 89] = 3
    assert (window((100, 90), (384, 384), np.array([99, 89])).mask(small) == 3).any()


@pytest.mark.parametrize("reduce", [2, 4])
def test_reading_smaller_shows_the_same_place(reduce: int) -> None:
    """Means of blocks, warped by the adapted matrix, against the original, warped."""
    picture = smooth_picture(256, 256, cell=64)
    blocks = picture.reshape(256 // reduce, reduce, 256 // reduce, reduce, 3).mean((1, 3))
    warp = draw_warps(STILL, (256, 256), (32, 32), 1, np.random.default_rng(0))[0]
    assert warp.shrinking > 7
    reduced = warp.of_reduced(reduce).image(blocks.astype(np.uint8)).astype(int)
    assert np.abs(reduced - warp.image(picture)).mean() < 2


@pytest.mark.parametrize(
    "colour",
    [
        Colour(brightness=1.3),
        Colour(contrast=0.6),
        Colour(saturation=0.4),
        Colour(grey=True),
    ],
)
def test_each_change_of_colour_against_pillow_by_hand(colour: Colour) -> None:
    from PIL import Image, ImageEnhance

    picture = smooth_picture(64, 64) // 2 + 40  # nothing is clipped
    image = Image.fromarray(picture)
    expected = {
        (1.3, 1.0, 1.0, False): lambda: ImageEnhance.Brightness(image).enhance(1.3),
        (1.0, 0.6, 1.0, False): lambda: ImageEnhance.Contrast(image).enhance(0.6),
        (1.0, 1.0, 0.4, False): lambda: ImageEnhance.Color(image).enhance(0.4),
        (1.0, 1.0, 1.0, True): lambda: image.convert("L").convert("RGB"),
    }[colour.brightness, colour.contrast, colour.saturation, colour.grey]()
    difference = apply_colours(picture, colour).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 2  # Pillow rounds in between


def test_hue_turns_colours_and_keeps_greys() -> None:
    picture = np.array([[[200, 50, 50], [90, 90, 90]]], np.uint8)
    third = apply_colours(picture, Colour(hue=1 / 3))
    assert np.abs(third[0, 0].astype(int) - [50, 200, 50]).max() <= 1
    assert np.abs(third[0, 1].astype(int) - 90).max() <= 1


def test_several_changes_at_once_are_one_after_another() -> None:
    picture = smooth_picture(32, 32) // 2 + 50
    a, b = Colour(1.1, 0.9, 0.8, 0.02), Colour(0.9, 1.1, 1.2)
    at_once = apply_colours(picture, a, b).astype(int)
    assert np.abs(at_once - apply_colours(apply_colours(picture, a), b)).max() <= 2


def test_drawn_colours_keep_to_their_limits() -> None:
    config = ColourConfig(0.1, 0.2, 0.0, 0.05)
    drawn = [draw_colour(config, np.random.default_rng(s), greyscale=0.3) for s in range(200)]
    assert all(0.9 <= c.brightness <= 1.1 and abs(c.hue) <= 0.05 for c in drawn)
    assert max(c.contrast for c in drawn) > 1.15
    assert all(c.saturation == 1 for c in drawn)
    assert 30 < sum(c.grey for c in drawn) < 90


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_scale": [0.5, 1.5]}, "crop_scale"),
        ({"crop_ratio": [2.0, 1.0]}, "crop_ratio"),
        ({"zoom": [0.0, 1.0]}, "zoom"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"rotate": -1.0}, "rotate is -1.0"),
        ({"thin_plate": 0.5}, "thin_plate is 0.5"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformConfig(**settings)
    with pytest.raises(ValueError, match=r"hue is 0\.7"):
        ColourConfig(hue=0.7)


def test_control_points_go_where_they_are_told() -> None:
    rng = np.random.default_rng(0)
    points, displacements = rng.uniform(0, 1, (8, 2)), rng.normal(0, 0.05, (8, 2))
    assert np.allclose(ThinPlate(points, displacements)(points), displacements)


@pytest.mark.parametrize("linear", [[[1.1, 0.2], [-0.3, 0.9]], [[1, 0], [0, 1]]])
def test_an_affine_motion_of_the_points_bends_nothing(linear) -> None:
    """The spline has the least bending energy, so it reproduces affine maps."""
    points = np.random.default_rng(1).uniform(0, 1, (6, 2))
    plate = ThinPlate(points, points @ np.array(linear).T + [0.1, -0.2] - points)
    where = np.random.default_rng(2).uniform(-1, 2, (20, 2))
    assert np.allclose(plate(where), where @ np.array(linear).T + [0.1, -0.2] - where)


def test_random_plates_are_seeded_and_as_strong_as_told() -> None:
    where = np.random.default_rng(0).uniform(0, 1, (500, 2))
    plates = [random_thin_plate(0.02, np.random.default_rng(seed)) for seed in range(50)]
    assert np.array_equal(
        plates[3](where), random_thin_plate(0.02, np.random.default_rng(3))(where)
    )
    spread = np.std([plate(where) for plate in plates])
    assert 0.01 < spread < 0.04


def test_random_plates_never_fold() -> None:
    """The map keeps its orientation: neighbouring grid points stay in order."""
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 40)), -1)
    for seed in range(100):
        plate = random_thin_plate(0.02, np.random.default_rng(seed))
        moved = grid + plate(grid.reshape(-1, 2)).reshape(grid.shape)
        right, down = np.diff(moved, axis=1)[:-1], np.diff(moved, axis=0)[:, :-1]
        area = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
        assert (area > 0).mean() > 0.999
