import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stma.data.images import image_size, natural_order, read_image
from stma.data.masks import read_mask
from stma.data.pictures import save_picture
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


def test_frames_come_in_the_order_of_their_numbers() -> None:
    for names in (
        ["img_0", "img_2", "img_10", "img_11"],
        ["9", "10", "11"],
        ["00098", "99", "100"],
        ["a1_2", "a1_10", "a2_1"],
        ["a", "b", "b1"],
    ):
        assert sorted(reversed(names), key=natural_order) == names


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
    for read in (read_image, read_mask, image_size):
        with suppress(InputError):  # some of it is read all the same
            read(path)


def test_sizes_from_headers_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 8
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
    assert image_size(tmp_path / "x.jpg") == (6, 4) == read_image(tmp_path / "x.jpg").shape[:2]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, make) -> None:
    path = tmp_path / "frame.png"
    make(path)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=r"frame\.png: cannot be read"):
            read(path)
