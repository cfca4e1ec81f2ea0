"""Where clips come from: videos, still images or procedural scenes, all behind one interface."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stma.data.composite import CompositeScene
from stma.data.config import DatasetConfig
from stma.data.images import almost_equal_sizes, image_size, read_image, size_message
from stma.data.listing import list_dataset
from stma.data.masks import VOID, check_ids, has_void, read_mask
from stma.data.procedural import ProceduralScene
from stma.data.sampling import (
    draw_references,
    keep_objects,
    learnable_objects,
    sample_frames,
    sample_times,
)
from stma.data.scene import Scene, draw_clip
from stma.data.transforms import Warp, apply_colours, draw_colour, draw_warps, window
from stma.data.video_folder import Problem, VideoFolder, raise_first
from stma.errors import InputError
from stma.runtime.opencv import cv2
from stma.structures import Clip

TRIES = 8  # at drawing frames and crops, until the first frame shows an object
NAMED = 5  # clips that a message lists
CUT_SIDE = 512  # pictures to cut from are halved as long as their short side stays above this


@dataclass(frozen=True)
class ClipSpec:
    """What all clips of a stage have in common, whatever their source.

    Attributes:
        size: height and width.
        max_gap: maximum distance between neighbouring frames, in frames of the video.
        reverse: probability that a clip runs backwards.
    """

    num_frames: int
    size: tuple[int, int]
    max_objects: int
    max_gap: int
    reverse: float
    num_references: int


class DrawnSource:
    """Procedural or composite clips, drawn on the fly; the item counts them and means nothing else.

    Attributes:
        size: None, since it is endless.
        notes: what the user should know.

    Raises:
        InputError: composites have nothing to be cut from, or it cannot be read.
    """

    def __init__(self, name: str, config: DatasetConfig) -> None:
        self.name = name
        self.config = config
        self.size: int | None = None
        if config.kind == "composite" and not config.cut_from:
            raise InputError(
                f"sources.{name}.cut_from is empty; give a dataset to cut objects from: "
                f"+dataset@stages.STAGE.data.sources.{name}.cut_from.mine=folder"
            )
        self.cut_from, grounds = (
            [FileSource(f"{name}.{key}.{n}", block, 1) for n, block in blocks.items()]
            for key, blocks in (("cut_from", config.cut_from), ("grounds", config.grounds))
        )
        self.grounds = grounds or self.cut_from
        self.notes = [note for source in (*self.cut_from, *self.grounds) for note in source.notes]

    def item_name(self, item: int) -> str:
        """For messages."""
        return f"{self.name}: clip {item}"

    def sample(self, item: int, spec: ClipSpec, rng: np.random.Generator) -> Clip:
        """A clip.

        Raises:
            InputError: a file is faulty; the message names it.
        """
        times = sample_times(spec.num_frames, spec.max_gap, rng).astype(float)

        def new_scene() -> Scene:
            if self.config.kind == "procedural":
                return ProceduralScene(self.config.scene, spec.size, rng)
            parts = times, self.cut_from, self.grounds, rng
            return CompositeScene(self.config.composite, spec.size, *parts)

        frames, masks, count = draw_clip(new_scene, times)
        ids = np.arange(1, count + 1)
        return _clip(self.item_name(item), frames, masks, ids, spec, rng)


@dataclass(frozen=True)
class _Drawn:
    """What was drawn for a clip: its frames, how they are warped, and their masks.

    Attributes:
        original: height and width of the frames on disk.
        masks: ``(T, H, W)``, warped.
        ids: of the objects to follow.
    """

    indices: list[int]
    warps: list[Warp]
    original: tuple[int, ...]
    masks: np.ndarray
    ids: np.ndarray


class FileSource:
    """Videos or still images on disk.

    Args:
        num_frames: of a clip; shorter videos are left out and mentioned in the notes.

    Raises:
        InputError: says what is wrong with the root.
    """

    def __init__(self, name: str, config: DatasetConfig, num_frames: int) -> None:
        self.name = name
        self.config = config
        self.root = Path(config.root)
        anywhere = Path(config.images).is_absolute() and Path(config.masks).is_absolute()
        if not config.root and (config.kind == "images" or config.split or not anywhere):
            raise InputError(
                f"sources.{name}.root is empty; give the folder of this dataset (or, for clips "
                "without a split, the paths of both images and masks)"
            )
        videos, problems = list_dataset(config)
        raise_first(problems)
        self.notes = [f"{name}: {problem}" for problem in problems[:NAMED]]
        if len(problems) > NAMED:
            self.notes.append(f"{name}: and {len(problems) - NAMED} more such files")
        self.still = config.kind == "images"
        self.videos = videos if self.still else self._long_enough(videos, num_frames)
        self.size: int | None = len(self.videos)
        self.notes += self._void_note()

    def item_name(self, item: int) -> str:
        """For messages."""
        return f"{self.name}: {self.videos[item].name}"

    def sample(self, item: int, spec: ClipSpec, rng: np.random.Generator) -> Clip:
        """As :meth:`DrawnSource.sample`."""
        video = self.videos[item]
        drawn = self._draw(video, spec, rng)
        config = self.config.transform
        tone = draw_colour(config.colour, rng, config.greyscale)
        reduce = _reduction(drawn.warps)
        image: np.ndarray | None = None
        warped = []
        for position, (index, warp) in enumerate(zip(drawn.indices, drawn.warps, strict=True)):
            if image is None or index != drawn.indices[position - 1]:
                image = read_image(video.frame(index), reduce)
                _check_size(video, index, image, drawn.original, reduce)
            frame = warp.of_reduced(reduce).image(image)
            warped.append(apply_colours(frame, tone, draw_colour(config.frame_colour, rng)))
        numbers = ", ".join(video.frame(i).stem for i in dict.fromkeys(drawn.indices))
        name = f"{self.item_name(item)} ({numbers})"
        return _clip(name, np.stack(warped), drawn.masks, drawn.ids, spec, rng)

    def pictures(
        self, times: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """See :class:`stma.data.composite.Pictures`; a short video plays back and forth."""
        assert self.size is not None
        video = self.videos[int(rng.integers(self.size))]
        length = len(video)
        if self.still:
            times = times[:1]
        steps = np.round((times - times[0]) / self.config.annotation_stride).astype(int)
        walk = walk_from(int(rng.integers(length)), length, int(steps[-1]) + 1)
        masks: dict[int, np.ndarray] = {}
        indices = [walk[step] for step in steps]
        self._read_masks(video, indices, masks)
        size = masks[indices[0]].shape
        reduce = next(n for n in (8, 4, 2, 1) if n == 1 or min(size) >= n * CUT_SIDE)
        images = []
        for index in indices:
            image = read_image(video.frame(index), reduce)
            _check_size(video, index, image, size, reduce)
            images.append(image)
        shape = images[0].shape[1::-1]
        return images, [
            cv2.resize(masks[index], shape, interpolation=cv2.INTER_NEAREST_EXACT)
            for index in indices
        ]

    def _draw(self, video: VideoFolder, spec: ClipSpec, rng: np.random.Generator) -> _Drawn:
        """Draw frames and warps until the first frame shows an object to follow."""
        config = self.config
        masks: dict[int, np.ndarray] = {}
        for _ in range(TRIES):
            indices = self._draw_indices(len(video), spec, rng)
            self._read_masks(video, indices, masks)
            original = masks[indices[0]].shape
            warps = draw_warps(config.transform, original, spec.size, spec.num_frames, rng)
            warped = np.stack([w.mask(masks[i]) for w, i in zip(warps, indices, strict=True)])
            ids = learnable_objects(warped, config.min_pixels, config.clear_pixels)
            if len(ids):
                return _Drawn(indices, warps, original, warped, ids)
        # Rare: objects are seldom visible, or small. Try all frames, and crop around an object.
        for first in rng.permutation(len(video)).tolist():
            self._read_masks(video, [first], masks)
            visible = np.argwhere(masks[first])
            if len(visible):
                indices = walk_from(first, len(video), spec.num_frames)
                self._read_masks(video, indices, masks)
                original = masks[first].shape
                point = visible[rng.integers(len(visible))]
                warps = [window(original, spec.size, point)] * spec.num_frames
                warped = np.stack([warps[0].mask(masks[i]) for i in indices])
                return _Drawn(indices, warps, original, warped, np.setdiff1d(warped[0], [0]))
        raise InputError(str(empty_clip(video)))

    def _draw_indices(self, length: int, spec: ClipSpec, rng: np.random.Generator) -> list[int]:
        if self.still:
            return [0] * spec.num_frames
        gap = max(1, spec.max_gap // self.config.annotation_stride)
        indices = sample_frames(length, spec.num_frames, gap, rng).tolist()
        return indices[::-1] if rng.random() < spec.reverse else indices

    def _read_masks(
        self, video: VideoFolder, indices: Sequence[int], masks: dict[int, np.ndarray]
    ) -> None:
        """Read those not yet in ``masks``; all masks of a clip have the same size."""
        for index in indices:
            if index in masks:
                continue
            path = video.mask(index)
            mask = read_training_mask(path, self.config)
            if masks:
                other = next(iter(masks))
                name = video.mask(other).name
                if message := other_size_message(mask.shape, masks[other].shape, name):
                    raise InputError(f"{path}: {message}")
            masks[index] = mask

    def _void_note(self) -> list[str]:
        """A warning from one mask, early; if it cannot be read, sampling will say so."""
        with suppress(InputError):
            path = self.videos[0].mask(0)
            if (message := void_message(read_training_mask(path, self.config))) is not None:
                return [f"{self.name}: {path}: {message}"]
        return []

    def _long_enough(self, videos: list[VideoFolder], num_frames: int) -> list[VideoFolder]:
        """The annotated frames of those that have enough."""
        annotated = [video.only_annotated() for video in videos]
        kept = [video for video in annotated if len(video) >= num_frames]
        if short := [video.name for video in annotated if len(video) < num_frames]:
            more = ", ..." if len(short) > NAMED else ""
            self.notes.append(
                f"{self.name}: left out {len(short)} of {len(videos)} clips, with fewer than "
                f"{num_frames} annotated frames: {', '.join(short[:NAMED])}{more}"
            )
        if videos and not kept:
            raise InputError(
                f"{self.root}: none of its {len(videos)} clips has {num_frames} annotated frames"
            )
        return kept


Source = DrawnSource | FileSource


def build_source(name: str, config: DatasetConfig, num_frames: int) -> Source:
    """The source that a YAML block describes.

    Raises:
        InputError: names the source and says what is wrong.
    """
    if config.kind in ("procedural", "composite"):
        return DrawnSource(name, config)
    return FileSource(name, config, num_frames)


def read_training_mask(path: Path, config: DatasetConfig) -> np.ndarray:
    """``(H, W)`` uint8, as the dataset means it; white is always 255, the same in all of a clip.

    Raises:
        InputError: names the file and what is wrong with it.
    """
    mask, _ = read_mask(path, config.mask_values, config.mask_void, white=VOID)
    check_ids(mask, path, " (if it holds one object in grey, set mask_values=binary)")
    return mask


def void_message(mask: np.ndarray) -> str | None:
    """A warning if 255 is likely to mean pixels without a label."""
    if not has_void(mask):
        return None
    return "255 beside small IDs is an object like any other; if it means no label: mask_void=255"


def empty_clip(video: VideoFolder) -> Problem:
    """The message for a clip without any object."""
    where = video.mask(0) if len(video) == 1 else video.mask_folder
    return Problem(where, f"no mask holds an object; leave it out with exclude=[{video.name}]")


def other_size_message(
    size: tuple[int, ...], first: tuple[int, ...], first_name: str
) -> str | None:
    """The message for a file whose size is not that of the first of its clip; None if it is, give
    or take one pixel of rounding."""
    if almost_equal_sizes(size, first):
        return None
    sizes = f"{size[1]} x {size[0]} pixels, but {first[1]} x {first[0]}"
    return f"{sizes} in {first_name}; all frames of a clip must have the same size"


def walk_from(first: int, length: int, num_frames: int) -> list[int]:
    """Frame after frame, back and forth between the ends of the video."""
    period = max(1, 2 * (length - 1))
    steps = [(first + step) % period for step in range(num_frames)]
    return [min(step, period - step) if length > 1 else 0 for step in steps]


def _reduction(warps: Sequence[Warp]) -> int:
    """How many times smaller than stored a picture may be read: an output pixel then spans one to
    two of its pixels, so bilinear sampling does not alias."""
    shrinking = min(warp.shrinking for warp in warps)
    return next(reduce for reduce in (8, 4, 2, 1) if reduce == 1 or shrinking >= reduce)


def _check_size(
    video: VideoFolder, index: int, image: np.ndarray, original: tuple[int, ...], reduce: int
) -> None:
    """A frame must have the size of its mask, give or take one pixel of rounding."""
    size = image.shape[:2] if reduce == 1 else image_size(video.frame(index))
    if not almost_equal_sizes(size, original):
        raise InputError(f"{video.mask(index)}: {size_message(original, size)}")


def _clip(
    name: str,
    frames: np.ndarray,
    masks: np.ndarray,
    ids: np.ndarray,
    spec: ClipSpec,
    rng: np.random.Generator,
) -> Clip:
    """A clip with at most ``spec.max_objects`` of the objects, drawn at random."""
    if len(ids) > spec.max_objects:
        ids = np.sort(rng.choice(ids, spec.max_objects, replace=False))
    return Clip(
        name=name,
        frames=frames,
        masks=keep_objects(masks, ids),
        num_objects=len(ids),
        references=draw_references(spec.num_frames, spec.num_references, rng),
    )
