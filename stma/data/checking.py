"""Everything that can be wrong with a dataset on disk, found before anyone trains on it."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from stma.data.config import DatasetConfig
from stma.data.image_folder import Layout, list_pairs
from stma.data.images import ORIENTATION, almost_equal_sizes, read_image, size_message
from stma.data.listing import Frames, list_dataset
from stma.data.problems import PUBLISHED, Problem, count_message
from stma.data.sources import empty_clip, other_size_message, read_any_mask
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

# What a folder's full name says it is: the first match counts, and if the version does not show,
# either will do. DAVIS keeps its splits in lists, which are checked on their own.
VIDEO_SETS = (
    (r"you-?tube[-_ ]?(vos)?[-_ ]?2018", ("youtubevos2018",)),
    (r"you-?tube[-_ ]?(vos)?[-_ ]?2019", ("youtubevos2019",)),
    (r"you-?tube[-_ ]?(vos)?", ("youtubevos2019", "youtubevos2018")),
    (r"lvos[-_ ]?v?1", ("lvos",)),
    (r"lvos[-_ ]?v?2", ("lvos_v2",)),
    (r"lvos", ("lvos", "lvos_v2")),
    (r"mose([-_ ]?v?1)?", ("mose",)),
    (r"bl30k", ("bl30k",)),
)
IMAGE_SETS = (
    (r"ecssd", ("ecssd",)),
    (r"fss([-_ ]?1000)?|fewshot_data", ("fss1000",)),
    (r"hrsod(_release)?", ("hrsod",)),
    (r"big", ("big",)),
    (r"duts[-_]tr", ("duts_tr",)),
    (r"duts[-_]te", ("duts_te",)),
)
SPLIT_FOLDER = re.compile(r"(train|val|test)(id)?(_\d+p)?(_all_frames)?")
SPLITS = {"train": "train", "val": "valid", "test": "test"}


@dataclass
class Check:
    """What was checked and what was found.

    Attributes:
        name: what the folder was taken for.
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
    """Find out what a folder holds and check all of it: a set of clips or images, or several.

    A set that cannot be checked, or a subfolder in which nothing is recognised, is reported, and
    the others are checked.

    Args:
        layouts: of still images, to try.

    Raises:
        InputError: nothing in the folder could be a dataset.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    skipped: list[Path] = []
    found = _find_sets(root, layouts, skipped)
    if not found:  # images without a single mask, or masks without an image?
        found = [
            _images(root, layout)
            for layout in layouts
            if any(problem.error for problem in list_pairs(root, layout)[1])
        ][:1]
        skipped.clear()
    if not found:
        raise InputError(
            f"{root}: neither clips (JPEGImages and Annotations) nor images with masks; see "
            "datasets/README.md for the layouts, and name the dataset with --dataset if it has one"
        )
    checks = []
    for config in found:
        try:
            checks.append(check_dataset(config, workers))
        except InputError as error:
            path = Path(config.root)
            checks.append(Check(path, config.kind, problems=[_as_problem(path, error)]))
    if skipped:
        message = "nothing was recognised in this folder, and nothing checked"
        problems = [Problem(path, message, error=False) for path in skipped]
        checks.append(Check(root, "the rest", problems=problems))
    return checks


def check_dataset(config: DatasetConfig, workers: int) -> Check:
    """Check all files of one dataset.

    Raises:
        InputError: there is nothing to check.
    """
    root = Path(config.root)
    listing = list_dataset(config)
    known = [config.published] if config.published else recognise(root, config.kind)
    title = " or ".join(known) if known else "not a published dataset by its name"
    check = Check(root, f"{config.kind}, {title}")
    check.problems += listing.problems
    check.clips = len(listing.videos) + len(listing.pairs)
    if known and not config.published:  # if given, list_dataset has compared it
        check.problems += _check_count(root, known, check.clips + len(config.exclude))
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
            mask = read_any_mask(path, config.mask_values)
        except InputError as error:
            problems.append(_as_problem(path, error))
            empty = False  # unknown
            continue
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


def recognise(root: Path, kind: str) -> list[str]:
    """Which published set a folder must be, by its name and its parents', as ``dataset:split``;
    several if the version does not show, none if the names say nothing."""
    parts = _tail(root)
    sets = IMAGE_SETS if kind == "images" else VIDEO_SETS
    # The year of YouTube-VOS may be a separate folder.
    candidates = [*parts, *("".join(pair) for pair in itertools.pairwise(parts))]
    names = next(
        (names for pattern, names in sets if any(re.fullmatch(pattern, c) for c in candidates)), ()
    )
    if names and "all" in PUBLISHED[names[0]]:
        return [f"{names[0]}:all"]
    split = SPLIT_FOLDER.fullmatch(parts[-1])
    return [f"{name}:{SPLITS[split[1]]}" for name in names] if split is not None else []


def _tail(root: Path) -> list[str]:
    """The last parts of its path, in lower case; those further up say nothing about it."""
    return [part.lower() for part in root.resolve().parts[-4:]]


def _check_count(root: Path, known: Sequence[str], count: int) -> Iterator[Problem]:
    messages = [count_message(key, count) for key in known]
    if None not in messages:
        yield Problem(root, "; ".join(message for message in messages if message))


def _check_lists(root: Path, config: DatasetConfig) -> Iterator[Problem]:
    """Lists in ``ImageSets`` and ``meta.json`` must name existing clips, as many as published."""
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
            year, _, last = split.partition("/")
            if any("davis" in part for part in _tail(root)) and last in PUBLISHED.get(
                f"davis{year}", {}
            ):
                message = count_message(f"davis{year}:{last}", len(names))
                if message is not None:
                    yield Problem(path, message)
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


def _find_sets(
    root: Path, layouts: Sequence[Layout], skipped: list[Path], depth: int = 2
) -> list[DatasetConfig]:
    """Sets of clips or images in a folder or, if it is none, in its subfolders.

    Args:
        skipped: receives the subfolders in which nothing is recognised.
    """
    if (root / "JPEGImages").is_dir():
        masks = "Annotations"
        partner = root.with_name(root.name.removesuffix("_all_frames")) / masks
        if not (root / masks).is_dir() and partner.is_dir():
            masks = str(partner)  # as YouTube-VOS's archives of all frames
        return [DatasetConfig(root=str(root), masks=masks)]
    below = [root / name for name in subfolders(root)]
    # Folders of images look like the classes of one set, unless some have names of known sets.
    own = recognise(root, "images")
    classes = not any(recognise(path, "images") not in ([], own) for path in below)
    telling = [layout for layout in layouts if re.search(r"[^*/][^/]*/", layout.images)]
    for layout in [*telling, *layouts] if classes else telling:
        if list_pairs(root, layout)[0]:
            return [_images(root, layout)]
    found = []
    for path in below if depth > 0 else []:
        inner = _find_sets(path, layouts, skipped, depth - 1)
        found += inner
        if not inner:
            skipped.append(path)
    return found


def _images(root: Path, layout: Layout) -> DatasetConfig:
    return DatasetConfig(kind="images", root=str(root), layouts=[layout], mask_values="binary")


def _as_problem(path: Path, error: InputError) -> Problem:
    return Problem(path, str(error).removeprefix(f"{path}: "))
