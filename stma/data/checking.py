"""Everything that can be wrong with a dataset on disk, found before anyone trains on it."""

from collections import Counter
from collections.abc import Iterator
from functools import partial

from tqdm import tqdm

from stma.data.config import DatasetConfig
from stma.data.images import almost_equal_sizes, read_image, size_message
from stma.data.listing import list_dataset
from stma.data.sources import empty_clip, other_size_message, read_training_mask, void_message
from stma.data.video_folder import Problem, VideoFolder
from stma.errors import InputError
from stma.runtime.workers import worker_map


def check_dataset(config: DatasetConfig, workers: int) -> tuple[list[VideoFolder], list[Problem]]:
    """List one dataset and read all of its files.

    Raises:
        InputError: there is nothing to check.
    """
    videos, problems = list_dataset(config)
    counts = [len(video) + len(video.annotated) for video in videos]
    progress = tqdm(total=sum(counts), desc=f"check {config.root}", unit="file")
    with progress, worker_map(workers) as spread:
        chunk = max(1, min(16, len(videos) // (4 * workers)))
        found = spread(partial(check_video, config=config), videos, chunksize=chunk)
        for count, faults in zip(counts, found, strict=True):
            problems += faults
            progress.update(count)
    return videos, problems


def check_video(video: VideoFolder, config: DatasetConfig) -> list[Problem]:
    """Read all images and masks of a clip, or one image and its mask."""
    problems: list[Problem] = []
    sizes: dict[int, tuple[int, ...]] = {}
    for index, path in enumerate(video.frames):
        try:
            sizes[index] = read_image(path).shape[:2]
        except InputError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))
    problems += _other_sizes(video, sizes)
    empty = True
    for index in video.annotated.tolist():
        path = video.mask(index)
        try:
            mask = read_training_mask(path, config)
        except InputError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))
            empty = False  # unknown
            continue
        if (warning := void_message(mask)) is not None:
            problems.append(Problem(path, warning, error=False))
        empty = empty and not mask.any()
        size = sizes.get(index, mask.shape)
        if mask.shape != size:
            small = almost_equal_sizes(mask.shape, size)
            problems.append(Problem(path, size_message(mask.shape, size), error=not small))
    return problems + ([empty_clip(video)] if empty else [])


def _other_sizes(video: VideoFolder, sizes: dict[int, tuple[int, ...]]) -> Iterator[Problem]:
    """Frames whose size differs from most of their clip."""
    if sizes:
        usual = Counter(sizes.values()).most_common(1)[0][0]
        example = next(video.frame(index).stem for index in sizes if sizes[index] == usual)
        for index, size in sizes.items():
            if (message := other_size_message(size, usual, example)) is not None:
                yield Problem(video.frame(index), message)
