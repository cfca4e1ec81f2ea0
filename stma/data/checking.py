"""Everything that can be wrong with a dataset on disk, found before anyone trains on it."""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
from PIL import ExifTags, Image
from tqdm import tqdm

from stma.data.config import DatasetConfig
from stma.data.image_folder import Layout, list_pairs
from stma.data.images import almost_equal_sizes, read_image, size_message
from stma.data.listing import Frames, list_dataset
from stma.data.problems import Problem
from stma.data.published import PUBLISHED, count_message
from stma.data.sources import empty_clip, other_size_message, read_any_mask
from stma.data.video_folder import (
    hidden_files,
    missing_clips,
    read_split,
    splits,
    subfolders,
    video_folders,
)
from stma.errors import InputError

# What a root is, by the names of its folders: the first that fits counts. Where the version does
# not show, each will do. DAVIS keeps its splits in lists, which are compared by themselves.
NAMES = (
    (r"you-?tube.*2018", ("youtubevos2018",)),
    (r"you-?tube.*2019", ("youtubevos2019",)),
    (r"you-?tube", ("youtubevos2019", "youtubevos2018")),
    (r"lvos.*v1", ("lvos",)),
    (r"lvos.*v2", ("lvos_v2",)),
    (r"lvos", ("lvos", "lvos_v2")),
    (r"mose", ("mose",)),
    (r"bl30k", ("bl30k",)),
    (r"ecssd", ("ecssd",)),
    (r"\bfss|fewshot_data", ("fss1000",)),
    (r"hrsod(?!_small)", ("hrsod",)),
    (r"\bbig(?!_small)\b", ("big",)),
    (r"duts[-_]?tr", ("duts_tr",)),
    (r"duts[-_]?te", ("duts_te",)),
)
SPLIT_FOLDERS = {"train": "train", "val": "valid", "test": "test"}  # by how their names start


@dataclass
class Check:
    """What was checked and what was found.

    Attributes:
        name: what it was taken for.
        clips: or images.
        files: read.
    """

    root: Path
    name: str
    clips: int = 0
    files: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(problem.error for problem in self.problems)

    def to_json(self) -> dict[str, object]:
        return {
            "root": str(self.root),
            "name": self.name,
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


def check_root(root: Path, layouts: Sequence[Layout], workers: int) -> list[Check]:
    """Find out what a folder holds and check it all: one set of clips or images, or several below.

    Args:
        layouts: of still images, to be tried.

    Raises:
        InputError: there is nothing that could be a dataset.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    found = list(_find_sets(root, layouts))
    if not found:
        raise InputError(
            f"{root}: neither clips (JPEGImages and Annotations) nor images with masks; see "
            "datasets/README.md for the layouts, and name the dataset with --dataset if it has one"
        )
    return [check_dataset(config, workers) for config in found]


def check_dataset(config: DatasetConfig, workers: int) -> Check:
    """Check all files of one dataset.

    Raises:
        InputError: there is nothing to check.
    """
    root = Path(config.root)
    listing = list_dataset(config)
    known = [config.published] if config.published else recognise(root)
    title = " or ".join(known) if known else "not a published dataset by its name"
    check = Check(root, f"{config.kind}, {title}")
    check.problems += listing.problems
    check.clips = len(listing.videos) + len(listing.pairs)
    if known and not config.published:  # listing has compared it otherwise
        check.problems += _check_count(root, known, check.clips + len(config.exclude))
    if config.kind == "videos":
        check.problems += _check_lists(root, config)
    items = [Frames.of_pair(root, pair) for pair in listing.pairs]
    items += [Frames.of_video(video, slice(None)) for video in listing.videos]
    counts = [len(frames.image_files) + len(frames.mask_files) for frames in items]
    check.files = sum(counts)
    work = partial(check_frames, config=config)
    progress = tqdm(total=check.files, desc=f"check {root}", unit="file")
    with progress, ProcessPoolExecutor(workers, initializer=_one_thread) as pool:
        chunk = max(1, min(16, len(items) // (4 * workers)))
        for count, problems in zip(counts, pool.map(work, items, chunksize=chunk), strict=True):
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
        first = sizes[next(iter(sizes))]
        if message := other_size_message(shape, first, next(iter(sizes))):
            problems.append(Problem(path, message))
        with Image.open(path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation != 1:
            message = f"EXIF orientation {orientation}: it is turned upright when read"
            problems.append(Problem(path, message, error=False))
    empty = True
    for path in map(frames.mask, range(len(frames.mask_files))):
        try:
            mask = read_any_mask(path, config.mask_values)
        except InputError as error:
            problems.append(_as_problem(path, error))
            empty = False  # nobody knows
            continue
        empty = empty and not mask.any()
        shape = sizes.get(path.stem) or sizes.get(frames.image(0).stem, mask.shape)
        if mask.shape != shape:
            small = almost_equal_sizes(mask.shape, shape)
            problems.append(Problem(path, size_message(mask.shape, shape), error=not small))
    return problems + ([empty_clip(frames)] if empty else [])


def recognise(root: Path) -> list[str]:
    """What published set a folder must be, by its own name and its parents', as ``dataset:split``;
    several where the version does not show, none where the names say nothing."""
    tail = _tail(root)
    names = next((names for pattern, names in NAMES if re.search(pattern, tail)), ())
    if names and "all" in PUBLISHED[names[0]]:
        return [f"{names[0]}:all"]
    folder = root.resolve().name.lower()
    split = next((s for start, s in SPLIT_FOLDERS.items() if folder.startswith(start)), None)
    return [f"{name}:{split}" for name in names] if split is not None else []


def _tail(root: Path) -> str:
    """The last names of its path, in lower case; those further up say nothing about it."""
    return "/".join(root.resolve().parts[-4:]).lower()


def _check_count(root: Path, known: Sequence[str], count: int) -> Iterator[Problem]:
    messages = [count_message(key, count) for key in known]
    if None not in messages:
        yield Problem(root, "; ".join(message for message in messages if message))


def _check_lists(root: Path, config: DatasetConfig) -> Iterator[Problem]:
    """Lists of ``ImageSets`` and ``meta.json`` name clips that are there, in published numbers."""
    parts = [root / part for part in config.parts] or [root]
    for part in parts:
        image_root, _ = video_folders(part, config.images, config.masks)
        folder = part / "ImageSets"
        if folder.is_dir():
            for inner in (folder, *(path for path in folder.iterdir() if path.is_dir())):
                yield from hidden_files(inner)
        for split in splits(folder) if folder.is_dir() else []:
            if split == config.split:
                continue  # listing has compared it
            path = folder / f"{split}.txt"
            try:
                names = read_split(path)
            except InputError as error:
                yield _as_problem(path, error)
                continue
            yield from missing_clips(path, names, image_root)
            year, _, last = split.partition("/")
            if "davis" in _tail(root) and last in PUBLISHED.get(f"davis{year}", {}):
                message = count_message(f"davis{year}:{last}", len(names))
                if message is not None:
                    yield Problem(path, message)
        meta = part / "meta.json"
        if meta.is_file():
            yield from _check_meta(meta, image_root)


def _check_meta(meta: Path, image_root: Path) -> Iterator[Problem]:
    try:
        names = sorted(json.loads(meta.read_text(encoding="utf-8"))["videos"])
    except (ValueError, KeyError, TypeError) as error:
        yield Problem(meta, f'not a JSON file with "videos" ({error})')
        return
    yield from missing_clips(meta, names, image_root)


def _find_sets(root: Path, layouts: Sequence[Layout], depth: int = 2) -> Iterator[DatasetConfig]:
    """Sets of clips or images in a folder or else in those below it."""
    if (root / "JPEGImages").is_dir():
        masks = "Annotations"
        partner = root.with_name(root.name.removesuffix("_all_frames")) / masks
        if not (root / masks).is_dir() and partner.is_dir():
            masks = str(partner)  # as YouTube-VOS's archives of all frames
        yield DatasetConfig(root=str(root), masks=masks)
        return
    below = [root / name for name in subfolders(root)]
    # Folders of images look like the classes of one set, unless some have names that we know.
    if not any(recognise(path) not in ([], recognise(root)) for path in below):
        for layout in layouts:
            pairs, _ = list_pairs(root, layout)
            if pairs:
                yield DatasetConfig(
                    kind="images", root=str(root), layouts=[layout], mask_values="binary"
                )
                return
    for path in below if depth > 0 else []:
        yield from _find_sets(path, layouts, depth - 1)


def _as_problem(path: Path, error: InputError) -> Problem:
    return Problem(path, str(error).removeprefix(f"{path}: "))


def _one_thread() -> None:
    cv2.setNumThreads(0)
