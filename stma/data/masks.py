"""Reading masks: one function for every reader, so that a file means the same objects everywhere.

A mask is an index image: a pixel holds the ID of its object, and 0 is the background. A picture of
two colours is a mask of one object, 1, in whatever way its file stores the colours.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from stma.data.images import UNREADABLE, almost_equal_sizes, open_image
from stma.errors import InputError
from stma.runtime.opencv import cv2

log = logging.getLogger(__name__)

MASK_SUFFIXES = (".png",)
MASK_VALUES = ("index", "binary")
LOSSLESS = ("PNG", "BMP", "GIF", "PPM", "TIFF")
WHITE = (255, 65535)  # the largest value of 8 and of 16 bits
BLACK = 32  # no colour brighter than this is taken for black
TRANSPARENT = -1
VOID = 255  # what many sets give to pixels without a label
BESIDE_VOID = 128  # with IDs below this, 255 is hardly one of them
SQUARE = {side: np.ones((side, side), np.uint8) for side in (3, 5, 15)}
MIN_SEAM = 16  # pixels


def read_mask(
    path: Path, values: str = "index", void: int | None = None, white: int = 1
) -> tuple[np.ndarray, bytes | None]:
    """A mask ``(H, W)`` uint8 of IDs, and a palette to write it with (RGB triples from ID 0 on),
    None if its file has no colours.

    A picture of two colours is object 1 before the background, which is the transparent one, else
    the black one, else the darker one, as long as most of the picture's border is of that colour.
    A greyscale image (or one with a grey palette) of black and white alone is such a picture, too.
    Otherwise index 0 of a palette has to be black or transparent.

    Args:
        values: ``index``; with ``binary``, object 1 is what is brighter than mid-grey or, in an
            image with colours, what has an ID, and soft edges and JPEGs do no harm.
        void: an ID of pixels that belong to no object; they become background.
        white: the ID of the object in a picture of two colours, if not 1; see :func:`white_id`.

    Raises:
        InputError: the file is not a complete image, or not one of IDs up to 255, or was saved
            with losses, or leaves open which colour is the background.
    """
    try:
        with open_image(path) as image:
            image.load()
            tiff_with_loss = "jpeg" in str(image.info.get("compression"))
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as a mask ({error})") from error
    if values == "binary" and (grey := _grey(image)) is not None:
        return _bright(grey, path), None
    if image.format not in LOSSLESS or tiff_with_loss:
        raise InputError(
            f"{path}: a {image.format} file, whose compression changes IDs; save the mask as PNG"
        )
    palette = None
    if image.mode == "P":
        mask, is_index, palette = _read_palette(image, path, void)
    elif image.mode in ("RGB", "RGBA", "LA"):
        mask, is_index, palette = _read_colours(image, path)
    else:
        mask, is_index = _read_grey(image, path, void)
    if values == "binary":
        mask = (mask > 0).view(np.uint8)
    elif not is_index:
        mask = white * mask
    elif void is not None:
        mask = np.where(mask == void, np.uint8(0), mask)
    return mask, palette


def white_id(paths: Iterable[Path], void: int | None = None) -> int:
    """For :func:`read_mask`: what white means in one video. 255 if one of its masks holds 255
    beside others, so that white alone is the same object; else 1.

    Raises:
        InputError: see :func:`read_mask`.
    """
    return VOID if any((read_mask(path, void=void)[0] == VOID).any() for path in paths) else 1


def _read_grey(image: Image.Image, path: Path, void: int | None) -> tuple[np.ndarray, bool]:
    """The mask, and whether its values are IDs: not if it is black and white."""
    if image.mode not in ("1", "L") and not image.mode.startswith("I"):
        raise InputError(f"{path}: the mask is {image.mode}; save it as an 8-bit greyscale PNG")
    pixels = np.asarray(image)
    if image.mode == "1":
        return pixels.astype(np.uint8), False
    white = WHITE[pixels.dtype != np.uint8]
    low, high = pixels.min(initial=0), pixels.max(initial=0)
    if high == white != void and not ((pixels > 0) & (pixels < white)).any():
        return (pixels > 0).view(np.uint8), False
    if low < 0 or high > 255:
        raise InputError(f"{path}: holds IDs from {pixels.min()} to {high}; they go up to 255")
    return pixels.astype(np.uint8, copy=False), True


def _read_palette(
    image: Image.Image, path: Path, void: int | None
) -> tuple[np.ndarray, bool, bytes | None]:
    """The mask, whether its values are IDs, and the palette."""
    mask, colours = np.asarray(image), _palette(image)
    used = np.flatnonzero(count_ids(mask))
    transparent = colours[:, 3] == 0
    stored = bytes(image.getpalette("RGB") or bytes(3))
    palette = bytes(3) + stored[3:]  # index 0 is black in what we write
    if (transparent[0] or not colours[0, :3].any()) and not transparent[used[used > 0]].any():
        entries = colours[: len(stored) // 3, :3]
        if (entries != entries[:, :1]).any():
            return mask, True, palette
        # The greys of a grey palette may be those of a picture, and are no use in an overlay.
        is_white = len(used) <= 2 and used[-1] != void and colours[used[-1], 0] == WHITE[0]
        return ((mask > 0).view(np.uint8), False, None) if is_white else (mask, True, None)
    found = _two_colours(colours[mask])
    if found is None or used[0] != 0:
        raise InputError(
            f"{path}: index 0 of its palette, which means background, is RGB "
            f"{tuple(colours[0, :3].tolist())}; give index 0 to a black background"
        )
    return (
        (mask, True, palette) if np.array_equal(found[0], mask > 0) else (found[0], False, found[1])
    )


def _read_colours(image: Image.Image, path: Path) -> tuple[np.ndarray, bool, bytes | None]:
    """As :func:`_read_palette`."""
    found = _two_colours(np.asarray(image.convert("RGBA")))
    if found is None:
        raise InputError(
            f"{path}: the mask is {image.mode}, and not of one colour on black; save it as an "
            "index image of one channel (palette or greyscale PNG), where a pixel holds the ID of "
            "its object"
        )
    return found[0], False, found[1]


def _palette(image: Image.Image) -> np.ndarray:
    """``(256, 4)`` uint8: RGB and opacity; black where the file says nothing."""
    colours = np.zeros((256, 4), np.uint8)
    stored = np.frombuffer(bytes(image.getpalette("RGB") or []), np.uint8).reshape(-1, 3)
    colours[: len(stored), :3] = stored
    colours[:, 3] = 255
    transparent = image.info.get("transparency")
    if isinstance(transparent, bytes):  # the opacity of the first indices
        colours[: len(transparent), 3] = np.frombuffer(transparent, np.uint8)[:256]
    elif transparent is not None:
        colours[transparent, 3] = 0
    return colours


def _two_colours(pixels: np.ndarray) -> tuple[np.ndarray, bytes | None] | None:
    """Object 1 of a picture, and a palette that keeps its colour; None unless the picture has two
    colours (or one: then the other is black or white), one of them plainly the background.

    Args:
        pixels: ``(H, W, 4)`` uint8, RGB and opacity; what is transparent may have any colour.
    """
    opacity = pixels[..., 3]
    colours = pixels[..., :3] @ np.array([1 << 16, 1 << 8, 1])
    colours = np.where(2 * opacity.astype(int) < opacity.max(initial=1), TRANSPARENT, colours)
    first = int(colours.flat[0])
    second = next(
        iter(colours[colours != first].tolist()), 0 if _brightness(first) > BLACK else 0xFFFFFF
    )
    if not ((colours == first) | (colours == second)).all():
        return None
    background, colour = sorted((first, second), key=_brightness)
    if _brightness(background) > BLACK:
        border = np.concatenate([colours[[0, -1]].ravel(), colours[:, [0, -1]].ravel()])
        if 2 * np.count_nonzero(border == background) <= len(border):
            return None
    palette = None if colour == 0xFFFFFF else bytes(3) + colour.to_bytes(3, "big")
    return (colours == colour).view(np.uint8), palette


def _brightness(colour: int) -> float:
    """Of an RGB triple; what is transparent is darker than black."""
    if colour == TRANSPARENT:
        return -1.0
    return float(np.dot(list(colour.to_bytes(3, "big")), (0.299, 0.587, 0.114)))


def _grey(image: Image.Image) -> np.ndarray | None:
    """The brightness of an image without colours, black where it is transparent (of a black object
    on nothing: its opacity); None if it has colours."""
    if image.mode in ("1", "L") or image.mode.startswith("I"):
        return np.asarray(image.convert("L") if image.mode == "1" else image)
    if image.mode == "P":
        mask, colours = np.asarray(image), _palette(image)
        used = colours[np.flatnonzero(count_ids(mask))]
        pixels = colours[mask] if (used[:, :3] == used[:, :1]).all() else None
    elif image.mode in ("RGB", "RGBA", "LA"):
        pixels = np.asarray(image.convert("RGBA"))
    else:
        pixels = None
    if pixels is None or (pixels[..., :3] != pixels[..., :1]).any():
        return None
    opacity = pixels[..., 3]
    grey = (pixels[..., 0].astype(np.uint16) * opacity // 255).astype(np.uint8)
    return grey if grey.any() or opacity.all() else opacity


def _bright(grey: np.ndarray, path: Path) -> np.ndarray:
    """1 where an image is brighter than mid-grey.

    Raises:
        InputError: nothing is, though not all is black.
    """
    middle = WHITE[grey.dtype != np.uint8] // 2
    if 0 < grey.max(initial=0) <= middle:
        raise InputError(
            f"{path}: no pixel is brighter than {middle}; the largest value is {grey.max()}; "
            "masks that hold IDs need mask_values=index"
        )
    return (grey > middle).view(np.uint8)


def fit_mask(mask: np.ndarray, size: tuple[int, ...], path: Path) -> np.ndarray:
    """A mask that is one pixel off its frame's size, resized (nearest) to it, with a warning.

    Frames and masks that were scaled separately may be rounded differently. Any larger difference
    means another frame, and is left for the caller to refuse.

    Args:
        mask: ``(H', W')``.
        size: height and width of the frame.
        path: of the mask, for the warning.
    """
    if mask.shape == size or not almost_equal_sizes(mask.shape, size):
        return mask
    log.warning("%s: %d x %d, its frame %d x %d; resized", path, *mask.shape[::-1], *size[::-1])
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def count_ids(mask: np.ndarray) -> np.ndarray:
    """``(256,)``: the number of pixels of every ID in a uint8 mask of any shape."""
    # Three times as fast as numpy's bincount, which converts to int64 first.
    counts = cv2.calcHist([np.ascontiguousarray(mask).reshape(-1, 1)], [0], None, [256], [0, 256])
    return counts.ravel().astype(np.int64)


def has_void(mask: np.ndarray) -> bool:
    """Whether 255 stands beside small IDs, and so probably for pixels without a label."""
    ids = np.flatnonzero(count_ids(mask)[1:]) + 1
    return len(ids) > 1 and ids[-1] == VOID and ids[-2] < BESIDE_VOID


def check_ids(mask: np.ndarray, path: Path, hint: str = "") -> None:
    """Refuse a mask that was scaled or compressed as if it were a picture.

    Args:
        mask: ``(H, W)`` uint8.
        hint: what else to do, for the message.

    Raises:
        InputError: see :func:`blended_ids`.
    """
    if found := blended_ids(mask):
        listed = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
        raise InputError(
            f"{path}: the IDs {listed} lie like seams or specks between others: the mask was "
            "antialiased, scaled or compressed as a picture; make it again with nearest "
            f"neighbours, and save it as PNG{hint}"
        )


def blended_ids(mask: np.ndarray) -> list[int]:
    """IDs that come from blending others: by interpolation, or by lossy compression.

    Between objects whose IDs differ by two or more, interpolation leaves seams, at most two pixels
    wide, of the IDs in between. So a mask is suspected if seams are about as long as the borders
    where such objects touch, and near them all along. A seam is told from a thin object by coming
    in pieces, being part of an ID that has a body elsewhere, closing to a ring of one pixel, or by
    lying beside many others whose IDs, unlike those that people give, leave gaps.
    Compression leaves specks: IDs that have no 3 x 3 block anywhere, but many pieces.

    Args:
        mask: ``(H, W)`` uint8.
    """
    if mask.max(initial=0) <= 1:
        return []
    low, high = cv2.erode(mask, SQUARE[3]), cv2.dilate(mask, SQUARE[3])
    inside = low == high
    thin = cv2.dilate(inside.view(np.uint8), SQUARE[3]) == 0  # in no 3 x 3 block of its ID
    return _seams(mask, low, thin) or _specks(mask, inside)


def _seams(mask: np.ndarray, low: np.ndarray, thin: np.ndarray) -> list[int]:
    """See :func:`blended_ids`.

    Args:
        low: the smallest ID in the 3 x 3 pixels around each.
        thin: where a pixel is in no 3 x 3 block of its ID.
    """
    seam = thin & (cv2.erode(mask, SQUARE[5]) < mask) & (mask < cv2.dilate(mask, SQUARE[5]))
    length = np.count_nonzero(seam)
    if length < MIN_SEAM or 2 * length < np.count_nonzero(thin):
        return []
    away = cv2.dilate(seam.view(np.uint8), SQUARE[3]) == 0
    step = mask - low
    touching = (step >= 2) & away
    far = touching & (cv2.dilate(seam.view(np.uint8), SQUARE[15]) == 0)
    if np.count_nonzero(far) > length / 5:
        return []
    touching_length = np.count_nonzero(touching)
    plain_length = np.count_nonzero((step == 1) & (mask >= 2) & away)
    ids = np.flatnonzero(count_ids(mask)[1:]) + 1
    found, lines, certain, attached = [], {}, 0, 0
    for value in np.flatnonzero(count_ids(mask[seam])).tolist():
        region = (mask == value).view(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        seams = np.bincount(labels[seam & (mask == value)], minlength=count)[1:]
        pieces = seams >= 0.6 * sizes
        if pieces.sum() > 1 or 0 < pieces.sum() < count - 1 or (pieces.all() and _is_ring(region)):
            found.append(value)
            certain += seams[pieces].sum()
        elif pieces.all():
            lines[value] = seams.sum()
        bodies = sizes >= 5 * seams
        if seams[bodies].any():
            attached += seams[bodies].sum()
            found.append(value)
    if 2 * len(lines) > len(ids) > 4 and ids[-1] > len(ids):
        found += lines
        certain += sum(lines.values())
    enough = certain >= max(MIN_SEAM, touching_length / 2)
    enough |= certain + attached >= max(MIN_SEAM, (touching_length + plain_length) / 2)
    return sorted(set(found)) if enough else []


def _is_ring(region: np.ndarray) -> bool:
    """Whether one piece ``(H, W)`` of 0 and 1 is a closed line, one pixel wide."""
    _, hierarchy = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    area, around = region.sum(), cv2.dilate(region, SQUARE[3]).sum()
    return bool((hierarchy[0][:, 3] >= 0).any() and area < 0.75 * (around - area))


def _specks(mask: np.ndarray, inside: np.ndarray) -> list[int]:
    """See :func:`blended_ids`.

    Args:
        inside: where a pixel is the centre of a 3 x 3 block of its ID.
    """
    ids = np.flatnonzero(count_ids(mask)[1:]) + 1
    blocks = count_ids(mask[inside])
    without = [value for value in ids.tolist() if blocks[value] == 0]
    if len(without) < 3 or 2 * len(without) <= len(ids):
        return []
    specks = [
        value for value in without if cv2.connectedComponents((mask == value).view(np.uint8))[0] > 3
    ]
    return specks if len(specks) >= 3 and 2 * len(specks) > len(ids) else []
