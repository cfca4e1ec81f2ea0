from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stma.data.images import fit_mask, read_image, read_mask
from stma.errors import InputError
from stma.pictures import save_mask, save_picture


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
    assert "late.png: 8 x 9, its frame 8 x 10" in caplog.text
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
