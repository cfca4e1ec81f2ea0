"""Which clips or images a dataset has, and what is wrong with their file names."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stma.data.config import DatasetConfig
from stma.data.image_folder import ImagePair, find_layout, list_pairs
from stma.data.problems import Problem, count_message
from stma.data.video_folder import (
    VideoFolder,
    find_split,
    hidden_files,
    list_video,
    missing_clips,
    missing_masks,
    read_split,
    subfolders,
    video_folders,
)
from stma.errors import InputError

MANY = 2000  # clips whose listing takes long enough for a progress bar


@dataclass(frozen=True, eq=False)
class Frames:
    """Files of one clip, or of one still image; paths are made on demand, to save memory.

    Attributes:
        image_files, mask_files: relative to their folders.
    """

    name: str
    image_folder: Path
    mask_folder: Path
    image_files: np.ndarray | list[str]
    mask_files: np.ndarray | list[str]

    @classmethod
    def of_pair(cls, root: Path, pair: ImagePair) -> "Frames":
        return cls(pair.name, root, root, [pair.image], [pair.mask])

    @classmethod
    def of_video(cls, video: VideoFolder, indices: np.ndarray | slice) -> "Frames":
        """Some frames of a video, and those of their masks that exist."""
        masks = video.mask_files[indices]
        return cls(
            video.name,
            video.image_folder,
            video.mask_folder,
            video.frame_files[indices],
            masks[masks != b""],
        )

    def image(self, index: int) -> Path:
        return self.image_folder / os.fsdecode(self.image_files[index])

    def mask(self, index: int) -> Path:
        return self.mask_folder / os.fsdecode(self.mask_files[index])


@dataclass(frozen=True)
class DatasetFiles:
    """What a dataset has, before any file is read; one of the first two lists is empty.

    Attributes:
        problems: with file names and counts.
    """

    videos: list[VideoFolder]
    pairs: list[ImagePair]
    problems: list[Problem]


def list_dataset(config: DatasetConfig) -> DatasetFiles:
    """List a dataset on disk as its YAML block describes it, without what it excludes.

    Raises:
        InputError: there is nothing to list: no such folder, no such split.
    """
    root = Path(config.root)
    videos: list[VideoFolder] = []
    pairs: list[ImagePair] = []
    problems: list[Problem] = []
    if config.kind == "images":
        pairs, problems = list_pairs(root, find_layout(root, config.layouts))
        names = [pair.name for pair in pairs]
    else:
        folders = list(_clip_folders(root, config, problems))
        names = [images.name for images, _ in folders]
        for images, masks in tqdm(
            folders, f"list {root}", unit="clip", disable=len(folders) < MANY
        ):
            if not excluded(images.name, config.exclude):
                video, found = list_video(images, masks)
                videos += [video] if video is not None else []
                problems += found + (missing_masks(video) if video is not None else [])
    if not names and not any(problem.error for problem in problems):
        raise InputError(f"{root}: no clips")
    if unknown := [e for e in config.exclude if not any(excluded(name, [e]) for name in names)]:
        raise InputError(f"{root}: exclude names {', '.join(unknown)}, which does not exist")
    if config.published is not None and (wrong := count_message(config.published, len(names))):
        problems.insert(0, Problem(root, wrong))
    pairs = [pair for pair in pairs if not excluded(pair.name, config.exclude)]
    return DatasetFiles(videos, pairs, problems)


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
        for folder in (images, masks):
            problems += hidden_files(folder)
        there = set(subfolders(images))
        if config.split is None:
            names = sorted({*there, *subfolders(masks)})
        else:
            path = find_split(root / part / "ImageSets", config.split)
            names = read_split(path)
            problems += missing_clips(path, names, images, there)
            names = [name for name in names if name in there]
        for name in names:
            yield images / name, masks / name
