"""Masks in every form that a tool may write: compared with the truth by IoU."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stma.data.masks import (
    blended_ids,
    check_ids,
    count_ids,
    fit_mask,
    has_void,
    read_mask,
    white_id,
)
from stma.data.pictures import save_mask
from stma.errors import InputError

SIZE = (90, 120)


def ellipse(size: tuple[int, int] = SIZE, radius: int = 24) -> np.ndarray:
    """The truth: one object, ``(H, W)`` of 0 and 1."""
    mask = np.zeros(size, np.uint8)
    cv2.ellipse(mask, (size[1] // 3, size[0] // 2), (radius, radius * 2 // 3), 20, 0, 360, 1, -1)
    return mask


def iou(mask: np.ndarray, truth: np.ndarray, value: int = 1) -> float:
    return ((mask == value) & (truth > 0)).sum() / ((mask == value) | (truth > 0)).sum()


def of_palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def painted(colour: tuple[int, ...], ground: tuple[int, ...]) -> np.ndarray:
    """The truth in colours, ``(H, W, C)``."""
    return np.where(ellipse()[..., None] > 0, np.uint8(colour), np.uint8(ground))


def opacity(mode: str = "LA") -> Image.Image:
    """A white picture whose transparency shows the object."""
    white = np.full((*SIZE, len(mode) - 1), 255, np.uint8)
    return Image.fromarray(np.dstack([white, 255 * ellipse()]), mode)


WHITE, BLACK, RED, PURPLE, YELLOW = (
    (255, 255, 255),
    (0, 0, 0),
    (255, 0, 0),
    (68, 1, 84),
    (253, 231, 37),
)
BLACK_AND_WHITE = Image.fromarray(255 * ellipse())
ONE_OBJECT = {
    "1 bit": lambda: BLACK_AND_WHITE.convert("1"),
    "0 and 1": lambda: Image.fromarray(ellipse()),
    "0 and 255": lambda: BLACK_AND_WHITE,
    "0 and 65535": lambda: Image.fromarray(ellipse().astype(np.uint16) * 65535),
    "quantize(2)": lambda: BLACK_AND_WHITE.convert("RGB").quantize(2),
    "adaptive palette": lambda: BLACK_AND_WHITE.convert("P", palette=Image.Palette.ADAPTIVE),
    "grey palette": lambda: BLACK_AND_WHITE.convert("P"),
    "palette, white first": lambda: of_palette(1 - ellipse(), WHITE, BLACK),
    "palette, red first": lambda: of_palette(1 - ellipse(), RED, BLACK),
    "palette, transparent white first": lambda: of_palette(ellipse(), WHITE, RED),
    "palette, transparent last": lambda: of_palette(1 - ellipse(), BLACK, WHITE),
    "quantized red": lambda: Image.fromarray(painted(RED, BLACK)).quantize(2),
    "RGB": lambda: BLACK_AND_WHITE.convert("RGB"),
    "RGB, red on black": lambda: Image.fromarray(painted(RED, BLACK)),
    "RGB, yellow on purple": lambda: Image.fromarray(painted(YELLOW, PURPLE)),
    "RGBA": lambda: BLACK_AND_WHITE.convert("RGBA"),
    "RGBA, transparent": lambda: opacity("RGBA"),
    "RGBA, black on transparent": lambda: Image.fromarray(painted((*BLACK, 255), (9, 9, 9, 0))),
    "LA": lambda: BLACK_AND_WHITE.convert("LA"),
    "LA, transparent": opacity,
}
TRANSPARENT = {"palette, transparent white first": 0, "palette, transparent last": 1}


@pytest.mark.parametrize("kind", ONE_OBJECT)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_of_two_colours_is_object_1(tmp_path: Path, kind: str, suffix: str) -> None:
    options = {"transparency": TRANSPARENT[kind]} if kind in TRANSPARENT else {}
    if options and suffix == ".tif":
        pytest.skip("TIFF has no transparent index")
    path = tmp_path / f"mask{suffix}"
    ONE_OBJECT[kind]().save(path, **options)
    mask, palette = read_mask(path)
    assert iou(mask, ellipse()) == 1.0
    assert set(np.unique(mask)) == {0, 1}
    # What we write with its palette, we read as it was, whatever other objects come.
    later = mask.copy()
    later[:4] = 3
    for each in (mask, later):
        save_mask(tmp_path / "again.png", each, palette)
        assert np.array_equal(read_mask(tmp_path / "again.png")[0], each)


@pytest.mark.parametrize("kind", ["1 bit", "0 and 255", "quantize(2)", "RGB", "LA, transparent"])
def test_white_may_have_another_number(tmp_path: Path, kind: str) -> None:
    ONE_OBJECT[kind]().save(tmp_path / "mask.png")
    mask, _ = read_mask(tmp_path / "mask.png", white=255)
    assert iou(mask, ellipse(), 255) == 1.0


def test_white_alone_is_the_white_object_of_the_other_masks(tmp_path: Path) -> None:
    two = 255 * ellipse()
    two[:10] = 128
    Image.fromarray(two).save(tmp_path / "two.png")
    BLACK_AND_WHITE.save(tmp_path / "one.png")
    assert white_id([tmp_path / "one.png"]) == 1
    assert white_id([tmp_path / "one.png", tmp_path / "two.png"]) == 255


def test_a_picture_of_one_colour(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    for colour, value in ((BLACK, 0), (WHITE, 1), (RED, 1)):
        Image.fromarray(np.full((*SIZE, 3), colour, np.uint8)).save(path)
        assert (read_mask(path)[0] == value).all()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (
            lambda: of_palette(ellipse() + ellipse(radius=9), WHITE, RED, BLACK),
            "index 0",
        ),
        (lambda: of_palette(ellipse(), WHITE, RED), "index 0"),  # which of the two?
        (lambda: of_palette(ellipse() + 1, WHITE, RED, BLACK), "index 0"),
        (lambda: Image.fromarray(painted(RED, WHITE)), "not of one colour on black"),
        (
            lambda: Image.fromarray(np.maximum(painted(RED, BLACK), 9 * ellipse()[:, ::-1, None])),
            "not of one colour on black",
        ),
        (lambda: Image.fromarray(np.full(SIZE, 300, np.uint16)), "IDs from 300 to 300"),
        (lambda: Image.fromarray(np.zeros(SIZE, np.float32), "F"), "the mask is F"),
    ],
)
def test_what_leaves_the_objects_open_is_refused(tmp_path: Path, image, reason: str) -> None:
    image().save(tmp_path / "mask.tif")
    with pytest.raises(InputError, match=rf"mask\.tif: .*{reason}"):
        read_mask(tmp_path / "mask.tif")


def test_ids_and_colours_are_kept(tmp_path: Path) -> None:
    mask = np.array([[0, 3], [255, 7]], np.uint8)
    palette = bytes(3) + bytes(range(1, 256)) * 3
    save_mask(tmp_path / "p.png", mask, palette)
    read, colours = read_mask(tmp_path / "p.png")
    assert np.array_equal(read, mask)
    assert colours == palette[:768]
    for name, content in (("grey", mask), ("16 bits", mask.astype(np.uint16))):
        Image.fromarray(content).save(tmp_path / f"{name}.png")
        read, colours = read_mask(tmp_path / f"{name}.png")
        assert np.array_equal(read, mask)
        assert colours is None


def test_index_images_that_show_one_object_keep_its_id(tmp_path: Path) -> None:
    """White as the third of several colours, or an index whose palette says nothing of it."""
    of_palette(3 * ellipse(), BLACK, RED, YELLOW, WHITE).save(tmp_path / "white.png")
    assert iou(read_mask(tmp_path / "white.png")[0], ellipse(), 3) == 1.0
    of_palette(5 * ellipse(), *[BLACK] * 256).save(tmp_path / "black.png")
    assert iou(read_mask(tmp_path / "black.png")[0], ellipse(), 5) == 1.0
    of_palette(2 * ellipse(), PURPLE, RED, YELLOW).save(tmp_path / "purple.png")
    assert iou(read_mask(tmp_path / "purple.png")[0], ellipse(), 2) == 1.0


def test_a_short_palette_loses_no_id(tmp_path: Path) -> None:
    """As optimised PNGs have; with two colours, Pillow would write one bit to a pixel."""
    of_palette(np.array([[0, 1], [0, 1]], np.uint8), BLACK, RED).save(tmp_path / "two.png")
    _, palette = read_mask(tmp_path / "two.png")
    save_mask(tmp_path / "many.png", np.array([[0, 1], [44, 200]], np.uint8), palette)
    read, _ = read_mask(tmp_path / "many.png")
    assert read.tolist() == [[0, 1], [44, 200]]
    with Image.open(tmp_path / "many.png") as written:
        assert written.convert("RGB").getpixel((1, 0)) == RED


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_lossy_files_are_refused_whatever_their_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    BLACK_AND_WHITE.save(path, format="WEBP" if suffix == ".webp" else "JPEG", quality=80)
    with pytest.raises(InputError, match=rf"mask\{suffix}: a (JPEG|WEBP) file"):
        read_mask(path)
    if suffix != ".webp":  # which is coloured
        assert iou(read_mask(path, "binary")[0], ellipse()) > 0.99


def test_void(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    mask = ellipse()
    border = cv2.dilate(mask, np.ones((5, 5), np.uint8)) - mask
    for indices in (mask + 255 * border, 255 * border):  # one without any object, too
        Image.fromarray(indices).save(path)
        assert np.array_equal(read_mask(path, void=255)[0], indices % 255)
    Image.fromarray(mask).convert("1").save(path)
    assert iou(read_mask(path, void=255, white=255)[0], mask, 255) == 0  # 0 and 1: no white
    BLACK_AND_WHITE.convert("1").save(path)
    assert iou(read_mask(path, void=255, white=255)[0], mask, 255) == 1.0
    assert has_void(mask + 255 * border)
    assert not has_void(255 * mask)
    assert not has_void(200 * mask + 255 * border)


@pytest.mark.parametrize("kind", [kind for kind in ONE_OBJECT if kind != "0 and 1"])
def test_binary_masks_of_every_kind(tmp_path: Path, kind: str) -> None:
    options = {"transparency": TRANSPARENT[kind]} if kind in TRANSPARENT else {}
    ONE_OBJECT[kind]().save(tmp_path / "mask.png", **options)
    assert iou(read_mask(tmp_path / "mask.png", "binary")[0], ellipse()) == 1.0


def test_grey_palettes_mean_their_greys_and_coloured_ones_their_indices(tmp_path: Path) -> None:
    """As optimisers write 0 and 255: in any order, and with soft edges."""
    path = tmp_path / "mask.png"
    indices = np.array([[0, 1, 2, 3]], np.uint8)
    of_palette(indices, WHITE, BLACK, (100,) * 3, (200,) * 3).save(path)
    assert read_mask(path, "binary")[0].tolist() == [[1, 0, 0, 1]]
    of_palette(indices, BLACK, (20, 0, 0), (0, 20, 0), (0, 0, 20)).save(path)
    assert read_mask(path, "binary")[0].tolist() == [[0, 1, 1, 1]]


def test_binary_masks_with_soft_edges_and_those_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 100, 127, 128, 255]], np.uint8)).save(path)
    assert read_mask(path, "binary")[0].tolist() == [[0, 0, 0, 1, 1]]
    Image.fromarray(ellipse()).save(path)
    with pytest.raises(InputError, match=r"mask\.png: no pixel is brighter.*mask_values=index"):
        read_mask(path, "binary")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(path)
    with pytest.raises(InputError, match=r"mask\.png: the mask is RGB"):
        read_mask(path, "binary")


def objects(*ids: int, seed: int = 0) -> np.ndarray:
    """Ellipses at random places, which may hide one another."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((120, 160), np.uint8)
    for value in ids:
        centre = rng.integers(22, (138, 98)).tolist()
        cv2.ellipse(mask, centre, (22, 15), int(rng.uniform(0, 180)), 0, 360, value, -1)
    return mask


@pytest.mark.parametrize("ids", [(3,), (5,), (255,), (1, 2), (1, 3), (7, 3), (1, 2, 3)])
@pytest.mark.parametrize("scale", [0.5, 0.7, 0.9, 1.1, 1.5, 2, 2.25, 3])
def test_masks_that_were_scaled_as_pictures(tmp_path: Path, ids, scale: float) -> None:
    size = int(160 * scale), int(120 * scale)
    for seed in range(4):
        image = Image.fromarray(objects(*ids, seed=seed))
        with pytest.raises(InputError, match=r"m\.png: the IDs .* nearest neighbours"):
            check_ids(np.asarray(image.resize(size, Image.Resampling.BILINEAR)), Path("m.png"))
        check_ids(np.asarray(image.resize(size, Image.Resampling.NEAREST)), Path("m.png"))


@pytest.mark.parametrize("ids", [(255,), (2,), (1, 2, 3), (50, 100, 200)])
@pytest.mark.parametrize("quality", [60, 75, 90, 95])
def test_masks_that_were_jpegs(ids, quality: int) -> None:
    content = io.BytesIO()
    Image.fromarray(objects(*ids)).save(content, "JPEG", quality=quality)
    assert blended_ids(np.asarray(Image.open(content)))


def nested(rng: np.random.Generator) -> np.ndarray:
    """One object inside another, sometimes near its edge."""
    mask = np.zeros((120, 160), np.uint8)
    outer, inner = rng.permutation([1, 2, 3, 4])[:2].tolist()
    radius = int(rng.integers(15, 50))
    small = int(radius * rng.uniform(0.3, 0.85))
    shift = rng.uniform(0, radius - small) * np.array([1, 0])
    cv2.circle(mask, (80, 60), radius, outer, -1)
    cv2.circle(mask, (int(80 + shift[0]), 60), small, inner, -1)
    return mask


def thin(rng: np.random.Generator) -> np.ndarray:
    """Ropes, of one to three pixels, across objects."""
    mask = objects(
        *rng.permutation([1, 2, 3, 4])[: rng.integers(1, 4)].tolist(), seed=int(rng.integers(99))
    )
    for _ in range(int(rng.integers(1, 4))):
        ends = rng.integers(0, (160, 120), (2, 2)).tolist()
        cv2.line(mask, *ends, int(rng.integers(1, 6)), int(rng.integers(1, 4)))
    return mask


def ring(rng: np.random.Generator) -> np.ndarray:
    """A tyre around a wheel, three pixels wide."""
    ids = rng.permutation([1, 2, 3, 4]).tolist()
    mask = objects(ids[0], seed=int(rng.integers(99))) if rng.random() < 0.5 else objects()
    centre, radius = rng.integers((40, 40), (120, 80)).tolist(), int(rng.integers(12, 35))
    cv2.circle(mask, centre, radius, ids[1], -1)
    cv2.circle(mask, centre, radius, ids[2], 3)
    return mask


def between(rng: np.random.Generator) -> np.ndarray:
    """A thin object along the border of two others."""
    mask = np.zeros((120, 160), np.uint8)
    mask[10:110, 10:150] = 1
    edge = int(rng.integers(40, 120))
    mask[10:110, edge:150] = 3
    mask[10:110, edge : edge + int(rng.integers(1, 3))] = 2
    return mask


@pytest.mark.parametrize("make", [nested, thin, ring, between])
def test_thin_objects_are_none_that_were_scaled(make) -> None:
    assert not [seed for seed in range(40) if blended_ids(make(np.random.default_rng(seed)))]


def test_honest_masks_are_not_suspected() -> None:
    """Many objects, one of them thin, side by side and inside one another."""
    mask = np.zeros((64, 64), np.uint8)
    for value in range(1, 45):
        row, column = divmod(value, 8)
        mask[row * 8 : row * 8 + 6, column * 8 : column * 8 + 6] = value
    mask[:, 33] = 60
    mask[40:44, 40:44] = 70
    mask[41, 41] = 50
    assert blended_ids(mask) == []


def test_many_thin_objects_side_by_side() -> None:
    """252 lines: each lies between a smaller and a larger ID."""
    mask = np.zeros((64, 300), np.uint8)
    mask[8:56, 20:272] = np.arange(1, 253)
    assert blended_ids(mask) == []
    mask[8:56, 272:290] = 253  # and one that is not thin
    assert blended_ids(mask) == []
    mask[8:30, 20:272] = np.arange(252, 0, -1)  # nobody draws so: every one in two pieces
    assert len(blended_ids(mask)) > 200


def test_counting_ids() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (33, 17), dtype=np.uint8)
    assert np.array_equal(count_ids(mask), np.bincount(mask.ravel(), minlength=256))
    assert count_ids(np.zeros((0, 4), np.uint8)).sum() == 0


def test_a_mask_one_pixel_off_is_resized_and_said_so(caplog) -> None:
    mask = np.full((8, 9), 7, np.uint8)
    fitted = fit_mask(mask, (8, 10), Path("late.png"))
    assert fitted.shape == (8, 10)
    assert (fitted == 7).all()
    assert "late.png" in caplog.text
    assert fit_mask(mask[:, :8], (8, 10), Path("other.png")).shape == (8, 8)
