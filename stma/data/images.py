"""Reading one image, with errors that name the file."""

import re
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from stma.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Everything Pillow has been seen to raise on damaged files. InputError is a ValueError too, so it
# is let through first where these are caught.
UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
ORIENTATION = ExifTags.Base.Orientation


def read_image(path: Path, reduce: int = 1) -> np.ndarray:
    """``(H, W, 3)`` uint8, RGB, upright: turned by its EXIF orientation, as viewers show it.

    Args:
        reduce: 2, 4 or 8 reads it that many times smaller (sides rounded up), averaging pixels. A
            JPEG is decoded at that size, which is faster too.

    Raises:
        InputError: the file is not a complete image of 8 bits per channel.
    """
    try:
        with open_image(path) as opened:
            image: Image.Image = opened
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path}: an image of mode {image.mode}; convert it to 8 bits")
            full_width = image.width
            if reduce > 1 and image.format == "JPEG":
                image.draft("RGB", (-(-image.width // reduce), -(-image.height // reduce)))
            remaining = round(reduce * image.width / full_width)
            if image.mode != "RGB":
                image = image.convert("RGB")
            image = image.reduce(remaining) if remaining > 1 else image
            if image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            return np.asarray(image)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error


def open_image(path: Path) -> ImageFile:
    """As ``Image.open``, but only for regular files: a pipe, socket or device could block for ever.

    Raises:
        OSError: it is not a regular file, or cannot be opened; also whatever Pillow raises.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return Image.open(path)


def natural_order(stem: str) -> tuple[list[str | int], str]:
    """The key by which frames are sorted: ``img_2`` before ``img_10``, ``99`` before ``100``."""
    parts = re.split(r"(\d+)", stem)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], stem


def image_size(path: Path) -> tuple[int, int]:
    """Height and width, upright, from the file's header.

    Raises:
        InputError: it has none.
    """
    try:
        with open_image(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return (width, height) if turned else (height, width)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error


def almost_equal_sizes(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Heights and widths differ by at most one pixel."""
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1


def size_message(mask: tuple[int, ...], frame: tuple[int, ...]) -> str:
    """The message for a mask whose size is not its frame's, both ``(H, W)``."""
    return (
        f"{mask[1]} x {mask[0]} pixels, its frame {frame[1]} x {frame[0]}; a mask has the size of "
        "its frame (upright, where the frame has an EXIF rotation)"
    )
