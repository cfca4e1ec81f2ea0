"""Everything that can be wrong with a dataset on disk, found before anyone trains on it."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from stma.data.config import DatasetConfig
from stma.data.images import ORIENTATION, almost_equal_sizes, read_image, size_message
from stma.data.listing import Frames, list_dataset
from stma.data.problems import Problem
from stma.data.sources import empty_clip, other_size_message, read_training_mask, void_message
from stma.data.video_folder import (
    find_split,
    hidden_files,
    missing_clips,
    read_split,
    splits,
    subfolders,
    video_folders,
)
from stma.errors import InputError
from stma.runtime.workers import worker_map


@dataclass
class Check:
    """What was checked and what was found.

    Attributes:
        clips: or images.
        files: read.
    """

    root: Path
    clips: int = 0
    files: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(problem.error for problem in self.problems)

    def to_json(self) -> dict[str, object]:
        return {
            "root": str(self.root),
            "errors": self.errors,
            "clips": self.clips,
            "files": self.files,
            "problems": [
                {
                    "path": str(problem.path),
                    "message": problem.message,
                    "severity": "error" if problem.error else "warning",
                }
                for problem in self.problems
            ],
        }


def check_dataset(config: DatasetConfig, workers: int) -> Check:
    """Check all files of one dataset.

    Raises:
        InputError: there is nothing to check.
    """
    root = Path(config.root)
    listing = list_dataset(config)
    check = Check(root)
    check.problems += listing.problems
    check.clips = len(listing.videos) + len(listing.pairs)
    if config.kind == "videos":
        check.problems += _check_lists(root, config)
    items = [Frames.of_pair(root, pair) for pair in listing.pairs]
    items += [Frames.of_video(video, slice(None)) for video in listing.videos]
    counts = [len(frames.image_files) + len(frames.mask_files) for frames in items]
    check.files = sum(counts)
    work = partial(check_frames, config=config)
    progress = tqdm(total=check.files, desc=f"check {root}", unit="file")
    with progress, worker_map(workers) as spread:
        chunk = max(1, min(16, len(items) // (4 * workers)))
        for count, problems in zip(counts, spread(work, items, chunksize=chunk), strict=True):
            check.problems += problems
            progress.update(count)
    return check


def check_frames(frames: Frames, config: DatasetConfig) -> list[Problem]:
    """Read all images and masks of a clip, or one image and its mask."""
    problems: list[Problem] = []
    sizes: dict[str, tuple[int, ...]] = {}
    for path in map(frames.image, range(len(frames.image_files))):
        try:
            shape = sizes[path.stem] = read_image(path).shape[:2]
        except InputError as error:
            problems.append(_as_problem(path, error))
            continue
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
        if orientation != 1:
            message = f"EXIF orientation {orientation}: turned upright when read"
            problems.append(Problem(path, message, error=False))
    problems += _other_sizes(frames, sizes)
    empty = True
    for path in map(frames.mask, range(len(frames.mask_files))):
        try:
            mask = read_training_mask(path, config)
        except InputError as error:
            problems.append(_as_problem(path, error))
            empty = False  # unknown
            continue
        if (warning := void_message(mask)) is not None:
            problems.append(Problem(path, warning, error=False))
        empty = empty and not mask.any()
        shape = sizes.get(path.stem) or sizes.get(frames.image(0).stem, mask.shape)
        if mask.shape != shape:
            small = almost_equal_sizes(mask.shape, shape)
            problems.append(Problem(path, size_message(mask.shape, shape), error=not small))
    return problems + ([empty_clip(frames)] if empty else [])


def _other_sizes(frames: Frames, sizes: dict[str, tuple[int, ...]]) -> Iterator[Problem]:
    """Frames whose size differs from most of their clip."""
    if not sizes:
        return
    usual = Counter(sizes.values()).most_common(1)[0][0]
    example = next(stem for stem, size in sizes.items() if size == usual)
    for path in map(frames.image, range(len(frames.image_files))):
        message = other_size_message(sizes.get(path.stem, usual), usual, example)
        if message is not None:
            yield Problem(path, message)


def _check_lists(root: Path, config: DatasetConfig) -> Iterator[Problem]:
    """Lists in ``ImageSets`` and ``meta.json`` must name existing clips."""
    parts = [root / part for part in config.parts] or [root]
    for part in parts:
        image_root, _ = video_folders(part, config.images, config.masks)
        there = set(subfolders(image_root))
        folder = part / "ImageSets"
        if folder.is_dir():
            for inner in (folder, *(path for path in folder.iterdir() if path.is_dir())):
                yield from hidden_files(inner)
        for split in splits(folder):
            path = folder / f"{split}.txt"
            if config.split is not None and path == find_split(folder, config.split):
                continue  # list_dataset has checked it
            try:
                names = read_split(path)
            except InputError as error:
                yield _as_problem(path, error)
                continue
            if not names:
                yield Problem(path, "an empty list", error=False)
            yield from missing_clips(path, names, image_root, there)
        meta = part / "meta.json"
        if meta.is_file():
            yield from _check_meta(meta, image_root, there)


def _check_meta(meta: Path, image_root: Path, there: set[str]) -> Iterator[Problem]:
    try:
        names = sorted(json.loads(meta.read_text(encoding="utf-8"))["videos"])
    except (ValueError, KeyError, TypeError) as error:
        yield Problem(meta, f'not a JSON file with "videos" ({error})')
        return
    yield from missing_clips(meta, names, image_root, there)


def _as_problem(path: Path, error: InputError) -> Problem:
    return Problem(path, str(error).removeprefix(f"{path}: "))
