"""Videos on disk in the DAVIS layout."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from stma.data.images import IMAGE_SUFFIXES, natural_order
from stma.data.masks import MASK_SUFFIXES
from stma.errors import InputError
from stma.runtime.outputs import check_path

RESOLUTIONS = ("480p", "Full-Resolution")


@dataclass(frozen=True)
class Problem:
    """One fault of one file or folder: what is wrong and what to do.

    Attributes:
        error: False if it is corrected or ignored without harm.
    """

    path: Path
    message: str
    error: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def raise_first(problems: Iterable[Problem]) -> None:
    """Raise the first error, if there is one, and say how many there are."""
    errors = [problem for problem in problems if problem.error]
    if errors:
        more = f" (and {len(errors) - 1} more; see scripts/check_data.py)" if errors[1:] else ""
        raise InputError(f"{errors[0]}{more}")


def count_message(published: int | None, found: int) -> str | None:
    """The message for a number of clips or images that is not the published one."""
    if published in (None, found):
        return None
    return (
        f"{found} clips or images, but {published} were published: the download or extraction is "
        "incomplete, or this is another version or a part (which published=null allows)"
    )


@dataclass(frozen=True, eq=False)
class VideoFolder:
    """One video: its frames in order, and the masks that exist. A still image is one of one frame.

    File names are kept as arrays of bytes, so that the millions of files of BL30K take megabytes.

    Attributes:
        frame_files: ``(T,)``, file names of the frames, sorted.
        mask_files: ``(T,)``, file name of each frame's mask, empty if there is none.
    """

    name: str
    image_folder: Path
    mask_folder: Path
    frame_files: np.ndarray
    mask_files: np.ndarray

    def __len__(self) -> int:
        return len(self.frame_files)

    def frame(self, index: int) -> Path:
        return self.image_folder / os.fsdecode(self.frame_files[index])

    def mask(self, index: int) -> Path:
        """Only for the frames in :attr:`annotated`."""
        return self.mask_folder / os.fsdecode(self.mask_files[index])

    @property
    def annotated(self) -> np.ndarray:
        """Indices of the frames that have a mask."""
        return np.flatnonzero(self.mask_files != b"")

    @property
    def fully_annotated(self) -> bool:
        """Every frame has a mask, so that results can be scored."""
        return bool((self.mask_files != b"").all())

    def only_annotated(self) -> "VideoFolder":
        """Without the frames that have no mask."""
        kept = self.annotated
        return replace(self, frame_files=self.frame_files[kept], mask_files=self.mask_files[kept])

    @cached_property
    def frames(self) -> list[Path]:
        return [self.frame(index) for index in range(len(self))]

    @cached_property
    def masks(self) -> dict[str, Path]:
        """Keyed by the stem of the frame."""
        return {self.frame(index).stem: self.mask(index) for index in self.annotated}


def video_names(root: Path, mask_root: Path, split: str | None) -> list[str]:
    """The videos of a split; without a split, all that have a folder of masks.

    Raises:
        InputError: there is no such split, or no video.
    """
    if split is None:
        listed = subfolders(mask_root)
    else:
        listed = read_split(find_split(root / "ImageSets", split))
    if not listed:
        raise InputError(f"{root}: no videos in split {split}" if split else f"{root}: no videos")
    return listed


def select_names(listed: Sequence[str], names: Sequence[str], where: str) -> list[str]:
    """Those of a list that the user asks for.

    Raises:
        InputError: none are asked for, or some that are not listed.
    """
    if not names:
        raise InputError("clips is empty; leave it out (null) to take all")
    if unknown := sorted(set(names) - set(listed)):
        raise InputError(f"{', '.join(unknown)}: not in {where}; it has {', '.join(listed)}")
    return [name for name in listed if name in set(names)]


def video_folders(root: Path, images: str, masks: str) -> tuple[Path, Path]:
    """The folders of frames and masks, at the same resolution if there are several."""
    check_path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; see datasets/README.md for where data goes")
    image_root, mask_root = root / images, root / masks
    for folder in (image_root, mask_root):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; see datasets/README.md for the layout")
    for resolution in RESOLUTIONS:
        found = [(folder / resolution).is_dir() for folder in (image_root, mask_root)]
        if all(found):
            return image_root / resolution, mask_root / resolution
        if any(found):
            raise InputError(f"{image_root}, {mask_root}: only one has a folder {resolution}")
    return image_root, mask_root


def subfolders(folder: Path) -> list[str]:
    """Sorted names, without hidden ones. A link that leads nowhere counts, to be reported."""
    with os.scandir(folder) as entries:
        found = [
            e.name for e in entries if (e.is_symlink() and not os.path.isfile(e.path)) or e.is_dir()
        ]
    return sorted(name for name in found if not is_hidden(name))


def find_split(folder: Path, split: str) -> Path:
    """The list of this name (or path, without ``.txt``) in ``ImageSets``.

    Raises:
        InputError: there is none, or there are several; the message names those that exist.
    """
    lists = sorted([*folder.glob("*.txt"), *folder.glob("*/*.txt")])
    known = {path.relative_to(folder).with_suffix("").as_posix(): path for path in lists}
    found = [path for name, path in known.items() if split in (name, path.stem)]
    if len(found) != 1:
        problem = "is in several folders" if found else "does not exist"
        raise InputError(
            f"{folder}: the split {split} {problem}; it has {', '.join(known) or 'none'}"
        )
    return found[0]


def read_split(path: Path) -> list[str]:
    """The names in a list, one a line; in DAVIS 2016's own lists, a line has the paths of a frame
    and its mask, and the video is the folder that holds them.

    Raises:
        InputError: it is not a text file, or a line names no clip.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error})") from error
    videos = []
    for number, line in enumerate(lines, 1):
        video = line.split()[0].split("/")[-2] if "/" in line else line
        if video in (".", "..") or ("/" in line and not video):
            raise InputError(f"{path}, line {number}: {line!r} names no clip")
        if video:
            videos.append(video)
    return list(dict.fromkeys(videos))


def missing_clips(path: Path, names: Iterable[str], image_root: Path) -> list[Problem]:
    """Clips that a list names but that do not exist."""
    there = set(subfolders(image_root))
    return [
        Problem(path, f"names the clip {name}, which is not in {image_root}")
        for name in names
        if name not in there
    ]


def list_video(image_folder: Path, mask_folder: Path) -> tuple[VideoFolder | None, list[Problem]]:
    """The video, unless it cannot be used, and everything wrong with its file names."""
    message = (
        "no such folder (or a link that leads nowhere), though its counterpart or a list has it"
    )
    problems = [
        Problem(folder, message) for folder in (image_folder, mask_folder) if not folder.is_dir()
    ]
    if problems:
        return None, problems
    frames = _files(image_folder, IMAGE_SUFFIXES, problems)
    masks = {_stem(name): name for name in _files(mask_folder, MASK_SUFFIXES, problems)}
    if not frames:
        problems.append(Problem(image_folder, "no frames (JPEG or PNG)"))
    elif not masks:
        problems.append(Problem(mask_folder, "no masks (PNG)"))
    stems = [_stem(name) for name in frames]
    problems += [
        Problem(mask_folder / masks[stem], f"no frame of this name in {image_folder}")
        for stem in sorted(set(masks) - set(stems))
    ]
    if not frames or not masks:
        return None, problems
    video = VideoFolder(
        image_folder.name,
        image_folder,
        mask_folder,
        np.array([os.fsencode(name) for name in frames]),
        np.array([os.fsencode(masks.get(stem, "")) for stem in stems]),
    )
    return video, problems


def find_video(image_folder: Path, mask_folder: Path) -> VideoFolder:
    """The video.

    Raises:
        InputError: the first error that :func:`list_video` finds.
    """
    video, problems = list_video(image_folder, mask_folder)
    raise_first(problems)
    assert video is not None
    return video


def missing_masks(video: VideoFolder) -> list[Problem]:
    """Frames without a mask, if most frames have one: a training set has a mask for every frame, or
    for at most every second."""
    annotated = len(video.annotated)
    if annotated <= len(video) / 2:
        return []
    return [
        Problem(
            video.frame(index),
            f"no mask of this name in {video.mask_folder}, though most frames have one",
        )
        for index in np.flatnonzero(video.mask_files == b"").tolist()
    ]


def is_hidden(name: str) -> bool:
    """Whether a file manager left it behind."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _files(folder: Path, suffixes: Sequence[str], problems: list[Problem]) -> list[str]:
    """Names of the folder's images in order; anything else in it is a warning."""
    found = []
    for name in sorted(os.listdir(folder)):
        if os.path.splitext(name)[1].lower() in suffixes and not is_hidden(name):
            found.append(name)
        elif not is_hidden(name):
            expected = ", ".join(suffixes)
            problems.append(
                Problem(folder / name, f"a stray file; expected {expected}", error=False)
            )
    found.sort(key=lambda name: natural_order(_stem(name)))
    problems += [
        Problem(folder / name, f"a second file of this frame, {following}")
        for name, following in pairwise(found)
        if _stem(name) == _stem(following)
    ]
    return found
