"""Which clips or images a dataset has, and what is wrong with their file names."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

from stma.data.config import DatasetConfig
from stma.data.image_folder import find_layout, list_images
from stma.data.video_folder import (
    Problem,
    VideoFolder,
    count_message,
    find_split,
    list_video,
    missing_clips,
    missing_masks,
    read_split,
    subfolders,
    video_folders,
)
from stma.errors import InputError

MANY = 2000  # clips whose listing takes long enough for a progress bar


def list_dataset(config: DatasetConfig) -> tuple[list[VideoFolder], list[Problem]]:
    """A dataset on disk as its YAML block describes it, without what it excludes, before any file
    is read; and the problems with file names and counts.

    Raises:
        InputError: there is nothing to list: no such folder, no such split.
    """
    root = Path(config.root)
    videos: list[VideoFolder] = []
    problems: list[Problem] = []
    if config.kind == "images":
        found, problems = list_images(root, find_layout(root, config.layouts))
        names = [image.name for image in found]
        videos = [image for image in found if not excluded(image.name, config.exclude)]
    else:
        folders = list(_clip_folders(root, config, problems))
        names = [images.name for images, _ in folders]
        kept = [each for each in folders if not excluded(each[0].name, config.exclude)]
        for images, masks in tqdm(kept, f"list {root}", unit="clip", disable=len(kept) < MANY):
            video, wrong = list_video(images, masks)
            videos += [video] if video is not None else []
            problems += wrong + (missing_masks(video) if video is not None else [])
    if not names and not any(problem.error for problem in problems):
        raise InputError(f"{root}: no clips")
    if unknown := [e for e in config.exclude if not any(excluded(name, [e]) for name in names)]:
        raise InputError(f"{root}: exclude names {', '.join(unknown)}, which does not exist")
    if message := count_message(config.published, len(names)):
        problems.insert(0, Problem(root, message))
    return videos, problems


def excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether a clip or an image is to be left out."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def _clip_folders(
    root: Path, config: DatasetConfig, problems: list[Problem]
) -> Iterator[tuple[Path, Path]]:
    """The folders of frames and masks of every clip. Without a split, a clip found in only one of
    the two is listed too, to be reported."""
    for part in config.parts or [""]:
        images, masks = video_folders(root / part, config.images, config.masks)
        there = set(subfolders(images))
        if config.split is None:
            names = sorted({*there, *subfolders(masks)})
        else:
            path = find_split(root / part / "ImageSets", config.split)
            names = read_split(path)
            problems += missing_clips(path, names, images)
            names = [name for name in names if name in there]
        for name in names:
            yield images / name, masks / name
