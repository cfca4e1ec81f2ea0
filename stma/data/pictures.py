"""Pictures of results: overlays, contact sheets and videos."""

import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import IO

import av
import numpy as np
from PIL import Image

from stma.runtime.opencv import cv2

GAP = 2  # pixels between the pictures of a sheet


@cache
def davis_palette() -> np.ndarray:
    """``(256, 3)`` uint8: the colour map of PASCAL VOC, which DAVIS uses."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return palette


def save_mask(path: Path | IO[bytes], mask: np.ndarray, palette: bytes | None = None) -> None:
    """Write ``(H, W)`` uint8 as a palette PNG, in DAVIS's colours where the palette has none.

    Args:
        palette: RGB triples from ID 0 on, at most 256.
    """
    image = Image.fromarray(mask)
    # Always 256 colours: with fewer, Pillow writes fewer bits and larger IDs are lost.
    colours = (palette or b"") + davis_palette().tobytes()[len(palette or b"") :]
    image.putpalette(colours)
    # As small as by Pillow's default, in less than half the time: masks are runs of equal pixels.
    image.save(path, "PNG", compress_type=zlib.Z_RLE, compress_level=1)


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write ``(H, W, 3)`` uint8 RGB."""
    Image.fromarray(picture).save(path)


def save_clip(
    root: Path, name: str, frames: Iterable[np.ndarray], masks: Iterable[np.ndarray], suffix: str
) -> None:
    """Write a clip in the DAVIS layout, numbered from 00000.

    Args:
        suffix: of the frames, ``.jpg`` (quality 95) or ``.png``.
    """
    image_folder, mask_folder = (root / kind / name for kind in ("JPEGImages", "Annotations"))
    for folder in (image_folder, mask_folder):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        Image.fromarray(frame).save(image_folder / f"{number:05d}{suffix}", quality=95)
        save_mask(mask_folder / f"{number:05d}.png", mask)


def draw_overlay(
    frame: np.ndarray, mask: np.ndarray, opacity: float = 0.5, out: np.ndarray | None = None
) -> np.ndarray:
    """Tint every object in its colour and outline it; ``(H, W, 3)`` uint8.

    Args:
        out: where to draw; None makes a new array, which takes as long as all the rest.
    """
    drawn = np.empty(frame.shape, np.uint8) if out is None else out
    np.copyto(drawn, frame)
    left, top, width, height = cv2.boundingRect(mask)
    if width == 0:
        return drawn
    # In integers, by OpenCV, and only around the objects: a tenth of the time.
    rows = slice(max(0, top - 1), top + height + 1)
    columns = slice(max(0, left - 1), left + width + 1)
    part, mask = drawn[rows, columns], mask[rows, columns].copy()
    tint = cv2.applyColorMap(mask, bright_palette()[:, None])
    cv2.copyTo(cv2.addWeighted(part, 1 - opacity, tint, opacity, 0), mask, part)
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    cv2.copyTo(np.full_like(part, 255), edge, part)
    return drawn


@cache
def bright_palette() -> np.ndarray:
    """The palette is dark; twice as bright, it is easier to see on a picture."""
    return np.minimum(2 * davis_palette().astype(int), 255).astype(np.uint8)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], height: int = 160
) -> np.ndarray:
    """Rows of pictures of equal size, each under its title; ``(H, W, 3)`` uint8."""
    drawn = []
    for title, pictures in rows:
        scaled = [_scale_to_height(picture, height) for picture in pictures]
        spaced = [np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for p in scaled]
        row = np.concatenate(spaced, axis=1)
        header = np.full((22, row.shape[1], 3), 255, np.uint8)
        cv2.putText(
            header, title, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
        )
        drawn += [header, row]
    width = max(part.shape[1] for part in drawn)
    padded = [
        np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255)
        for part in drawn
    ]
    return np.concatenate(padded)


def _scale_to_height(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinking = height < picture.shape[0]
    return cv2.resize(
        picture,
        (width, height),
        interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_NEAREST,
    )


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int = 12) -> None:
    """Write an H.264 video that browsers play; odd sizes lose their last row or column.

    Args:
        frames: ``(H, W, 3)`` uint8, RGB, all of one size.
    """
    with av.open(str(path), mode="w") as container:
        stream = None
        for frame in frames:
            height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame[:height, :width]), format="rgb24"
            )
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode())
