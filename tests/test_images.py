import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stma.data.images import (
    check_ids,
    count_ids,
    fit_mask,
    image_size,
    interpolated_ids,
    read_binary_mask,
    read_image,
    read_mask,
)
from stma.data.pictures import save_mask, save_picture
from stma.errors import InputError


def test_an_unreadable_or_truncated_image_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"broken\.jpg: cannot be read"):
        read_image(broken)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    save_picture(tmp_path / "cut.jpg", noise)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.jpg: cannot be read"):
        read_image(tmp_path / "cut.jpg")


def test_masks_keep_their_ids_and_palette(tmp_path: Path) -> None:
    mask = np.array([[0, 3], [255, 7]], np.uint8)
    palette = bytes(range(256)) * 3
    save_mask(tmp_path / "p.png", mask, palette)
    read, read_palette = read_mask(tmp_path / "p.png")
    assert np.array_equal(read, mask)
    assert read_palette == palette
    Image.fromarray(mask).save(tmp_path / "grey.png")
    read, read_palette = read_mask(tmp_path / "grey.png")
    assert np.array_equal(read, mask)
    assert read_palette is None
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "16.png")
    assert np.array_equal(read_mask(tmp_path / "16.png")[0], mask)


def test_a_mask_one_pixel_off_is_resized_and_said_so(caplog) -> None:
    frame = np.zeros((8, 10, 3), np.uint8)
    mask = np.full((8, 9), 7, np.uint8)
    fitted = fit_mask(mask, frame, Path("late.png"))
    assert fitted.shape == (8, 10)
    assert (fitted == 7).all()
    assert "late.png: 9 x 8, its frame 10 x 8" in caplog.text
    assert fit_mask(mask[:, :8], frame, Path("other.png")).shape == (8, 8)


def test_masks_that_are_no_index_images_are_refused(tmp_path: Path) -> None:
    save_picture(tmp_path / "rgb.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"rgb\.png: the mask is RGB"):
        read_mask(tmp_path / "rgb.png")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "many.png")
    with pytest.raises(InputError, match=r"many\.png: holds IDs from 300 to 300"):
        read_mask(tmp_path / "many.png")


def test_a_short_palette_loses_no_id(tmp_path: Path) -> None:
    """As optimised PNGs have; with two colours, Pillow would write one bit to a pixel."""
    mask = np.array([[0, 1], [0, 1]], np.uint8)
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "two.png")
    _, palette = read_mask(tmp_path / "two.png")
    save_mask(tmp_path / "many.png", np.array([[0, 1], [44, 200]], np.uint8), palette)
    read, _ = read_mask(tmp_path / "many.png")
    assert read.tolist() == [[0, 1], [44, 200]]
    with Image.open(tmp_path / "many.png") as written:
        assert written.convert("RGB").getpixel((1, 0)) == (255, 0, 0)


def test_cmyk_and_exif_rotation(tmp_path: Path) -> None:
    """As in files of photographers: read as RGB, upright."""
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :30] = (200, 50, 20)
    picture[:, 30:] = (10, 180, 90)
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - picture).mean() < 3
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned: the picture is to be turned clockwise
    for name in ("turned.jpg", "turned.png"):
        Image.fromarray(picture).save(tmp_path / name, exif=exif)
        for reduce in (1, 2):
            upright = read_image(tmp_path / name, reduce)
            assert upright.shape == (60 // reduce, 40 // reduce, 3)
            assert np.abs(upright[0, 0].astype(int) - (200, 50, 20)).max() < 12


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_images_are_means(tmp_path: Path, suffix: str, reduce: int) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 67), np.linspace(0, 255, 45))
    picture = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / f"x{suffix}", quality=95)
    small = read_image(tmp_path / f"x{suffix}", reduce)
    assert small.shape[:2] == (-(-45 // reduce), -(-67 // reduce))
    height, width = 45 // reduce, 67 // reduce
    whole = picture[: height * reduce, : width * reduce]
    blocks = whole.reshape(height, reduce, width, reduce, 3).mean((1, 3))
    assert np.abs(small[:height, :width] - blocks).mean() < 3


def test_16_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: an image of mode I;16; convert it to 8"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1", "I;16", "RGBA", "LA"])
def test_binary_masks_of_every_kind(tmp_path: Path, mode: str) -> None:
    truth = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    path = tmp_path / "mask.png"
    if mode == "P":
        save_mask(path, 5 * truth)
    elif mode == "I;16":
        Image.fromarray(truth.astype(np.uint16) * 65535).save(path)
    else:
        Image.fromarray(truth * 255).convert(mode).save(path)
    assert np.array_equal(read_binary_mask(path), truth)


def test_grey_palettes_mean_their_greys_and_coloured_ones_their_indices(tmp_path: Path) -> None:
    """As optimisers write 0 and 255: in any order, and with soft edges."""
    path = tmp_path / "mask.png"
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    image.putpalette([255] * 3 + [0] * 3 + [100] * 3 + [200] * 3)
    image.save(path)
    assert read_binary_mask(path).tolist() == [[1, 0, 0, 1]]
    image.putpalette([0, 0, 0, 20, 0, 0, 0, 20, 0, 0, 0, 20])
    image.save(path)
    assert read_binary_mask(path).tolist() == [[0, 1, 1, 1]]


def damaged_files() -> dict[str, bytes]:
    """Broken in places where Pillow raises something other than OSError."""
    picture, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture, "JPEG", exif=exif)
    jpeg = picture.getvalue()
    place = jpeg.index(b"Exif") + 14
    tiff = b"II*\0\x08\0\0\0" + b"\x02\0" + b"\0\1\4\0\1\0\0\0\0\0\0\0" * 2
    return {
        "exif.jpg": jpeg[:place] + b"\xff" * 12 + jpeg[place + 12 :],
        "ihdr.png": b"\x89PNG\r\n\x1a\n\0\0\0\x05IHDR\0\0\0\x08\0" + b"\0" * 4,
        "tiff.png": tiff,
        "start.jpg": jpeg[:3],
    }


@pytest.mark.parametrize("name", damaged_files())
def test_no_damage_ends_in_a_traceback(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged_files()[name])
    for read in (read_image, read_mask, read_binary_mask, image_size):
        with suppress(InputError):  # some of it is read all the same
            read(path)


def test_sizes_from_headers_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 8
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
    assert image_size(tmp_path / "x.jpg") == (6, 4) == read_image(tmp_path / "x.jpg").shape[:2]


def test_binary_masks_with_soft_edges_and_those_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 100, 127, 128, 255]], np.uint8)).save(path)
    assert read_binary_mask(path).tolist() == [[0, 0, 0, 1, 1]]
    Image.fromarray(np.array([[0, 1, 1]], np.uint8)).save(path)
    with pytest.raises(InputError, match=r"mask\.png: no pixel is brighter.*mask_values=index"):
        read_binary_mask(path)
    save_picture(path, np.full((2, 2, 3), (200, 10, 10), np.uint8))
    with pytest.raises(InputError, match=r"mask\.png: the mask is coloured"):
        read_binary_mask(path)


def disc(radius: int = 20) -> np.ndarray:
    y, x = np.mgrid[-32:32, -32:32]
    return (x * x + y * y < radius * radius).astype(np.uint8)


@pytest.mark.parametrize("value", [5, 38, 255])
def test_masks_that_were_resized_as_pictures(tmp_path: Path, value: int) -> None:
    blurred = Image.fromarray(disc() * value).resize((100, 90), Image.Resampling.BILINEAR)
    mask = np.asarray(blurred)
    assert set(interpolated_ids(mask)) == set(np.unique(mask)) - {0, value}
    with pytest.raises(InputError, match=r"m\.png: .*antialiased or resized"):
        check_ids(mask, tmp_path / "m.png")
    nearest = Image.fromarray(disc() * value).resize((100, 90), Image.Resampling.NEAREST)
    check_ids(np.asarray(nearest), tmp_path / "m.png")


def test_honest_masks_are_not_suspected() -> None:
    """Many objects, one of them thin, side by side and inside one another."""
    mask = np.zeros((64, 64), np.uint8)
    for value in range(1, 45):
        row, column = divmod(value, 8)
        mask[row * 8 : row * 8 + 6, column * 8 : column * 8 + 6] = value
    mask[:, 33] = 60
    mask[40:44, 40:44] = 70
    mask[41, 41] = 50
    assert interpolated_ids(mask) == []


def test_counting_ids() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (33, 17), dtype=np.uint8)
    assert np.array_equal(count_ids(mask), np.bincount(mask.ravel(), minlength=256))
    assert count_ids(np.zeros((0, 4), np.uint8)).sum() == 0


def test_many_thin_objects_are_not_told_to_be_antialiased() -> None:
    """252 lines side by side: each lies between a smaller and a larger ID."""
    mask = np.zeros((64, 300), np.uint8)
    mask[8:56, 20:272] = np.arange(1, 253)
    assert interpolated_ids(mask) == []
    mask[8:56, 272:290] = 253  # and one that is not thin
    assert interpolated_ids(mask) == []
    mask[8:30, 20:272] = 0
    mask[8:30, 20:272] = np.arange(252, 0, -1)  # nobody draws so: every one in two pieces
    assert len(interpolated_ids(mask)) > 200


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, make) -> None:
    path = tmp_path / "frame.png"
    make(path)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=r"frame\.png: cannot be read"):
            read(path)
