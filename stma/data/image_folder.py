"""Still images with masks on disk, in whatever layout their publisher chose."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stma.data.images import IMAGE_SUFFIXES
from stma.data.video_folder import Problem, VideoFolder, is_hidden
from stma.errors import InputError
from stma.runtime.outputs import check_path


@dataclass
class Layout:
    """Where images and masks are under a root: each ``*`` stands for the same text in both.

    A layout of class folders is ``*/*.jpg`` and ``*/*.png``. Suffixes match in upper and lower
    case.
    """

    images: str
    masks: str

    def __post_init__(self) -> None:
        for pattern in (self.images, self.masks):
            if Path(pattern).suffix not in IMAGE_SUFFIXES or "**" in pattern:
                raise InputError(
                    f"pattern {pattern!r}; it must end in one of {IMAGE_SUFFIXES}, without **"
                )
            if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
                raise InputError(f"pattern {pattern!r}; it must be under the root")
        if self.images.count("*") != self.masks.count("*") or "*" not in self.images:
            raise InputError(
                f"patterns {self.images!r} and {self.masks!r}; both need the same number of *"
            )

    def __str__(self) -> str:
        return f"{self.images} with {self.masks}"


def find_layout(root: Path, layouts: Sequence[Layout]) -> Layout:
    """The first layout that finds an image under the root.

    Raises:
        InputError: there is none, or no such folder.
    """
    check_path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; see datasets/README.md for where data goes")
    for layout in layouts:
        if _matches(root, layout.images):
            return layout
    tried = "; ".join(str(layout) for layout in layouts)
    raise InputError(f"{root}: no images; looked for {tried}")


def list_images(root: Path, layout: Layout) -> tuple[list[VideoFolder], list[Problem]]:
    """All images with their masks, sorted, each as a video of one frame whose name is what the
    stars stand for; and everything wrong with the names."""
    images, masks = _matches(root, layout.images), _matches(root, layout.masks)
    problems = [
        Problem(root / image, f"no mask of this name; {_fill(layout.masks, stars)} is missing")
        for stars, image in images.items()
        if stars not in masks
    ]
    problems += [
        Problem(root / mask, f"no image of this name; {_fill(layout.images, stars)} is missing")
        for stars, mask in masks.items()
        if stars not in images
    ]
    known = {*images.values(), *masks.values()}
    for folder in sorted({*_folders(root, layout.images), *_folders(root, layout.masks)}):
        for name in sorted(os.listdir(root / folder)):
            path = root / folder / name
            if not is_hidden(name) and os.path.join(folder, name) not in known and path.is_file():
                problems.append(Problem(path, f"a stray file; expected {layout}", error=False))
    pairs = [
        VideoFolder(
            "/".join(stars),
            root,
            root,
            np.array([os.fsencode(images[stars])]),
            np.array([os.fsencode(masks[stars])]),
        )
        for stars in sorted(images)
        if stars in masks
    ]
    return pairs, problems


def _fill(pattern: str, stars: tuple[str, ...]) -> str:
    for star in stars:
        pattern = pattern.replace("*", star, 1)
    return pattern


def _folders(root: Path, pattern: str) -> list[str]:
    """Folders under the root that a pattern looks into, relative to it."""
    parent = os.path.dirname(pattern)
    if not parent:
        return [""]
    return sorted(
        str(path.relative_to(root))
        for path in root.glob(parent)
        if path.is_dir() and not is_hidden(path.name)
    )


def _matches(root: Path, pattern: str) -> dict[tuple[str, ...], str]:
    """Matching files, relative to the root, keyed by what the stars stand for."""
    stem, suffix = os.path.splitext(pattern)
    expression = re.compile(
        re.escape(stem).replace(r"\*", "([^/]+)") + rf"(?i:{re.escape(suffix)})"
    )
    found = {}
    for folder in _folders(root, pattern):
        for name in sorted(os.listdir(root / folder)):
            relative = os.path.join(folder, name)
            match = expression.fullmatch(relative.replace(os.sep, "/"))
            if match and not is_hidden(name):
                found[match.groups()] = relative
    return found
