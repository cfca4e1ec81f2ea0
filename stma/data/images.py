"""Reading one image or one mask, with errors that name the file."""

import logging
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from stma.errors import InputError
from stma.runtime.opencv import cv2

log = logging.getLogger(__name__)

MASK_SUFFIXES = (".png",)
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
MIN_INTERPOLATED = 3  # IDs without an interior, between their neighbours' IDs: nobody draws that


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


def read_mask(path: Path) -> tuple[np.ndarray, bytes | None]:
    """An index mask ``(H, W)`` uint8, and its palette if it has one.

    Raises:
        InputError: the file is not a complete image, or not one channel of IDs up to 255.
    """
    mask, mode, palette = _read_mask_file(path)
    if mode not in ("P", "L", "1") and not mode.startswith("I"):
        raise InputError(
            f"{path}: the mask is {mode}; masks are index images of one channel "
            "(palette or greyscale PNG), where a pixel holds the ID of its object"
        )
    if mask.dtype != np.uint8 and (mask.min(initial=0) < 0 or mask.max(initial=0) > 255):
        raise InputError(f"{path}: holds IDs from {mask.min()} to {mask.max()}; they go up to 255")
    return mask.astype(np.uint8, copy=False), palette


def read_binary_mask(path: Path) -> np.ndarray:
    """A mask of one object, ``(H, W)`` uint8: 1 where the picture is brighter than mid-grey, or, in
    an image with a coloured palette (IDs), where the index is not 0.

    Saliency sets store masks as 0 and 255, often antialiased, sometimes as RGB with equal channels.

    Raises:
        InputError: the file is not a complete image, or is coloured, or nothing in it is bright.
    """
    mask, mode, palette = _read_mask_file(path)
    if palette is not None:
        colours = np.zeros((256, 3), np.uint8)
        colours.ravel()[: len(palette)] = np.frombuffer(palette, np.uint8)
        used = colours[np.flatnonzero(count_ids(mask))]
        if (used == used[:, :1]).all():  # greys: the palette's order means nothing
            mask, mode = colours[mask, 0], "L"
    if mode in ("P", "1"):
        return (mask > 0).astype(np.uint8)
    if mask.ndim == 3:
        colours = mask[..., : 3 if mode.startswith("RGB") else 1]
        if (colours != colours[..., :1]).any():
            raise InputError(
                f"{path}: the mask is coloured ({mode}); a binary mask is grey, and masks with "
                "IDs are index images (mask_values=index)"
            )
        mask = colours[..., 0]
    middle = 32767 if mask.dtype != np.uint8 else 127
    if 0 < mask.max(initial=0) <= middle:
        raise InputError(
            f"{path}: no pixel is brighter than {middle}; the largest value is {mask.max()}; "
            "masks that hold IDs need mask_values=index"
        )
    return (mask > middle).astype(np.uint8)


def _read_mask_file(path: Path) -> tuple[np.ndarray, str, bytes | None]:
    """Pixels as stored, Pillow's mode and the palette."""
    try:
        with open_image(path) as image:
            mode = image.mode
            palette = bytes(image.getpalette("RGB") or []) if mode == "P" else None
            return np.asarray(image), mode, palette
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as a mask ({error})") from error


def fit_mask(mask: np.ndarray, frame: np.ndarray, path: Path) -> np.ndarray:
    """A mask that is one pixel off its frame's size, resized (nearest) to it, with a warning.

    Frames and masks that were scaled separately may be rounded differently. Any larger difference
    means another frame, and is left for the caller to refuse.

    Args:
        mask: ``(H', W')``.
        frame: ``(H, W)`` or ``(H, W, 3)``.
        path: of the mask, for the warning.
    """
    size, own = frame.shape[:2], mask.shape
    if own == size or not almost_equal_sizes(own, size):
        return mask
    log.warning("%s: %d x %d, its frame %d x %d; resized", path, *own[::-1], *size[::-1])
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized)


def almost_equal_sizes(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Heights and widths differ by at most one pixel."""
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1


def size_message(mask: tuple[int, ...], frame: tuple[int, ...]) -> str:
    """The message for a mask whose size is not its frame's, both ``(H, W)``."""
    return (
        f"{mask[1]} x {mask[0]} pixels, its frame {frame[1]} x {frame[0]}; a mask has the size of "
        "its frame (upright, where the frame has an EXIF rotation)"
    )


def count_ids(mask: np.ndarray) -> np.ndarray:
    """``(256,)``: the number of pixels of every ID in a uint8 mask of any shape."""
    # Three times as fast as numpy's bincount, which converts to int64 first.
    counts = cv2.calcHist([np.ascontiguousarray(mask).reshape(-1, 1)], [0], None, [256], [0, 256])
    return counts.ravel().astype(np.int64)


def interpolated_ids(mask: np.ndarray) -> list[int]:
    """IDs that look like the result of interpolation, empty if there are fewer than three.

    Such an ID has no interior (no 3 x 3 block) and is, at most of its pixels, strictly between the
    smallest and the largest ID around it. One or two may be thin objects; more, and more than the
    genuine IDs, mean that the mask was resized or saved as if it were a picture.

    Args:
        mask: ``(H, W)`` uint8.
    """
    if mask.max(initial=0) <= MIN_INTERPOLATED:  # each lies below a larger ID
        return []
    counts = count_ids(mask)
    present = np.flatnonzero(counts)
    kernel = np.ones((3, 3), np.uint8)
    low, high = cv2.erode(mask, kernel), cv2.dilate(mask, kernel)
    inside = count_ids(mask[low == high])
    between = count_ids(mask[(low < mask) & (mask < high)])
    suspects = [int(v) for v in present if v and inside[v] == 0 and 2 * between[v] > counts[v]]
    honest = int((present > 0).sum()) - len(suspects)
    if len(suspects) < MIN_INTERPOLATED or len(suspects) <= honest:
        return []
    # Thin objects side by side are numbered without gaps, and each is a single piece.
    numbered = int(present[-1]) == int((present > 0).sum())
    if numbered and all(_in_one_piece(mask == value) for value in suspects):
        return []
    return suspects


def _in_one_piece(region: np.ndarray) -> bool:
    count, _ = cv2.connectedComponents(region.astype(np.uint8))
    return count == 2  # with the rest


def check_ids(mask: np.ndarray, path: Path, binary: str = "mask_values=binary") -> None:
    """Refuse an index mask whose IDs are not IDs.

    Raises:
        InputError: see :func:`interpolated_ids`.
    """
    if suspects := interpolated_ids(mask):
        listed = ", ".join(map(str, suspects[:8])) + (", ..." if len(suspects) > 8 else "")
        raise InputError(
            f"{path}: {len(suspects)} IDs ({listed}) occur only on edges, between larger and "
            "smaller ones: the mask was antialiased or resized as a picture; make it again with "
            "nearest neighbours (or, if it holds one object in grey, set "
            f"{binary})"
        )
