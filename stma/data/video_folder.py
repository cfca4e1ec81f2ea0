"""Videos on disk in the DAVIS layout, and reading their frames and masks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stma.errors import InputError

log = logging.getLogger(__name__)

MASK_SUFFIXES = (".png",)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
RESOLUTIONS = ("480p", "Full-Resolution")
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class VideoFolder:
    """One video: its frames in order, and the masks that exist, by the stem of their frame."""

    name: str
    frames: list[Path]
    masks: dict[str, Path]
    mask_folder: Path

    @property
    def fully_annotated(self) -> bool:
        """Every frame has a mask, so that results can be scored."""
        return all(frame.stem in self.masks for frame in self.frames)


def read_image(path: Path) -> np.ndarray:
    """``(H, W, 3)`` uint8, RGB.

    Raises:
        InputError: the file is not a whole image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error


def read_mask(path: Path) -> tuple[np.ndarray, bytes | None]:
    """An index mask ``(H, W)`` uint8, and its palette if it has one.

    Raises:
        InputError: the file is not a whole image, or not one channel of IDs up to 255.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode not in ("P", "L", "1") and not mode.startswith("I"):
                raise InputError(
                    f"{path}: the mask is {mode}; masks are index images of one channel "
                    "(palette or greyscale PNG), where a pixel holds the ID of its object"
                )
            mask = np.asarray(image)
            palette = bytes(image.getpalette("RGB") or []) if mode == "P" else None
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as a mask ({error})") from error
    if mask.min(initial=0) < 0 or mask.max(initial=0) > 255:
        raise InputError(f"{path}: holds IDs from {mask.min()} to {mask.max()}; they go up to 255")
    return mask.astype(np.uint8), palette


def fit_mask(mask: np.ndarray, frame: np.ndarray, path: Path) -> np.ndarray:
    """A mask that is one pixel off its frame's size, resized (nearest) to it, with a warning.

    Frames and masks that were scaled apart round differently. Any larger difference means another
    frame, and is left for the method to refuse.

    Args:
        mask: ``(H', W')``.
        frame: ``(H, W)`` or ``(H, W, 3)``.
        path: of the mask, for the warning.
    """
    size, own = frame.shape[:2], mask.shape
    if own == size or max(abs(own[0] - size[0]), abs(own[1] - size[1])) > 1:
        return mask
    log.warning("%s: %d x %d, its frame %d x %d; resized", path, *own, *size)
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized)


def find_videos(
    root: str | Path, split: str | None = None, names: Sequence[str] | None = None
) -> list[VideoFolder]:
    """The videos of a root in the DAVIS layout.

    ``JPEGImages/<video>/*.jpg`` and ``Annotations/<video>/*.png``, with or without a folder
    ``480p`` or ``Full-Resolution`` between; a split is a list of names in ``ImageSets``.

    Args:
        split: name or path of a list below ``ImageSets`` (``val``, ``2017/val``); None takes
            every video that has a mask.
        names: keep only these videos.

    Raises:
        InputError: names what is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    image_root, mask_root = _resolution_folders(root / "JPEGImages", root / "Annotations")
    if split is not None:
        listed = _read_split(root / "ImageSets", split)
    else:
        listed = sorted(folder.name for folder in mask_root.iterdir() if folder.is_dir())
    if names is not None:
        if not names:
            raise InputError("clips is empty; leave it out (null) to take all")
        if unknown := sorted(set(names) - set(listed)):
            where = f"split {split}" if split is not None else str(mask_root)
            raise InputError(f"{', '.join(unknown)}: not in {where}; it has {', '.join(listed)}")
        listed = [name for name in listed if name in set(names)]
    if not listed:
        raise InputError(f"{root}: no videos in split {split}" if split else f"{root}: no videos")
    return [_video(image_root / name, mask_root / name) for name in listed]


def _resolution_folders(images: Path, masks: Path) -> tuple[Path, Path]:
    """The folders of the videos, both at the same resolution where there are several."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; see datasets/README.md for the layout")
    for resolution in RESOLUTIONS:
        found = [(folder / resolution).is_dir() for folder in (images, masks)]
        if all(found):
            return images / resolution, masks / resolution
        if any(found):
            raise InputError(f"{images}, {masks}: only one of them has a folder {resolution}")
    return images, masks


def _read_split(folder: Path, split: str) -> list[str]:
    names = f"{split}.txt"
    found = sorted(folder.rglob(names)) if "/" not in split else [folder / names]
    found = [path for path in found if path.is_file()]
    if len(found) != 1:
        available = sorted(
            str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.txt")
        )
        problem = "is in several folders" if found else "does not exist"
        raise InputError(
            f"{folder}: the split {split} {problem}; it has {', '.join(available) or 'none'}"
        )
    try:
        lines = [line.strip() for line in found[0].read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{found[0]}: not a text file ({error})") from error
    return [line for line in lines if line]


def _video(image_folder: Path, mask_folder: Path) -> VideoFolder:
    for folder in (image_folder, mask_folder):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder, though the split names this video")

    def images(folder: Path, suffixes: Sequence[str]) -> list[Path]:
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in suffixes and not path.name.startswith(".")
        )
        for path, following in pairwise(found):
            if path.stem == following.stem:
                raise InputError(f"{path}: a second file of this frame, {following.name}")
        return found

    frames = images(image_folder, IMAGE_SUFFIXES)
    if not frames:
        raise InputError(f"{image_folder}: no frames (JPEG or PNG)")
    masks = {path.stem: path for path in images(mask_folder, MASK_SUFFIXES)}
    if not masks:
        raise InputError(f"{mask_folder}: no masks (PNG)")
    if strangers := sorted(set(masks) - {frame.stem for frame in frames}):
        raise InputError(f"{masks[strangers[0]]}: no frame of this name in {image_folder}")
    return VideoFolder(image_folder.name, frames, masks, mask_folder)
