"""What a benchmark gives, what it asks for, and what it scores, as its files say."""

import json
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stma.data.images import almost_equal_sizes, image_size, size_message
from stma.data.masks import MASK_VALUES, check_ids, fit_mask, has_void, read_mask, white_id
from stma.data.video_folder import (
    VideoFolder,
    count_message,
    find_video,
    select_names,
    subfolders,
    video_folders,
    video_names,
)
from stma.errors import InputError
from stma.runtime.config import check_ranges, check_types
from stma.runtime.outputs import check_path
from stma.runtime.resume import files_state

OBJECTS = ("any_frame", "first_mask")


@dataclass
class BenchmarkConfig:
    """A benchmark, as `configs/benchmark` describes it.

    Attributes:
        name: of the benchmark; results and reported numbers use it.
        images, masks: the folders of the clips, relative to the root.
        meta: a JSON file, relative to the root, that lists clips and objects. If it lists the
            frames of an object (YouTube-VOS), the archive holds only these; if it gives an object's
            range of frames (LVOS), the object is scored within it.
        mask_values: ``index`` for IDs; ``binary`` if everything drawn is object 1.
        void: a mask value that is no object; null if all are.
        objects: ``first_mask`` if all objects are given in the first mask; ``any_frame`` if later
            masks bring new ones.
        frame_step: difference of the numbers in the names of neighbouring frames; null for any.
        frames: which frames of the videos these are, in words, for the results.
        scored: every frame of every clip must have a mask to score with.
        archive: where the clips' folders are in the archive for the server, ``""`` for its root;
            null if no server takes one.
        published: how many clips it was published with; null: any number.
        unseen: clips of classes that are not in training; LVOS averages seen and unseen ones.
    """

    name: str = "folder"
    images: str = "JPEGImages"
    masks: str = "Annotations"
    meta: str | None = None
    mask_values: str = "index"
    void: int | None = None
    objects: str = "any_frame"
    frame_step: int | None = None
    frames: str = "all frames"
    scored: bool = False
    archive: str | None = None
    published: int | None = None
    unseen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_types(self)
        for key, known in (("mask_values", MASK_VALUES), ("objects", OBJECTS)):
            if getattr(self, key) not in known:
                raise InputError(f"{key} is {getattr(self, key)!r}; choose one of {known}")
        check_ranges(self, void=(1, 255), frame_step=1)


@dataclass(frozen=True, eq=False)
class EvalClip:
    """One clip of a benchmark.

    Attributes:
        video: its files.
        rules: of the benchmark.
        wanted: stems of the frames whose masks are asked for; None for all.
        ranges: the frames of each object, if the benchmark states them.
    """

    video: VideoFolder
    rules: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    wanted: frozenset[str] | None = None
    ranges: dict[int, "FrameRange"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.video.name

    @cached_property
    def frames(self) -> list[Path]:
        """Those that must be segmented: up to the last one wanted."""
        frames = self.video.frames
        if self.wanted is None:
            return frames
        last = max(i for i, path in enumerate(frames) if path.stem in self.wanted)
        return frames[: last + 1]

    @cached_property
    def output_stems(self) -> list[str]:
        """Stems of the masks that the benchmark asks for."""
        stems = [path.stem for path in self.frames]
        return stems if self.wanted is None else [stem for stem in stems if stem in self.wanted]

    @property
    def can_be_scored(self) -> bool:
        """Every frame has a mask and a result, and there are more than the first and the last."""
        return self.video.fully_annotated and len(self.video) > 2 and self.wanted is None

    def read_mask(self, stem: str) -> tuple[np.ndarray, bytes | None]:
        """The mask of a frame as the benchmark means it, and its palette.

        Raises:
            InputError: see :func:`stma.data.masks.read_mask`.
        """
        path = self.video.masks[stem]
        return read_mask(path, self.rules.mask_values, self.rules.void, self.white)

    @cached_property
    def white(self) -> int:
        """What white means in its masks; see :func:`stma.data.masks.white_id`."""
        if self.rules.mask_values == "binary":
            return 1
        return white_id([self.video.masks[self._first_mask]], self.rules.void)

    def read_given(self, stem: str) -> tuple[np.ndarray | None, bytes | None]:
        """The mask of a frame if a method may see it; see :func:`only_new_objects`.

        Raises:
            InputError: it cannot be read, is the first and holds no object, or does not hold IDs.
        """
        if not self._may_give(stem):
            return None, None
        mask, palette = self.read_mask(stem)
        objects_may_come = self.video.fully_annotated and self.rules.objects == "any_frame"
        if not mask.any() and stem == self._first_mask and not objects_may_come:
            raise InputError(
                f"{self.video.masks[stem]}: holds no object; delete it, or draw the objects that "
                "appear in its frame"
            )
        if self.rules.mask_values == "index":
            check_ids(
                mask,
                self.video.masks[stem],
                " (if it holds one object in grey, set benchmark.mask_values=binary)",
            )
        return mask, palette

    def _may_give(self, stem: str) -> bool:
        if self.rules.objects == "first_mask":
            return stem == self._first_mask
        return stem in self.video.masks

    @cached_property
    def _first_mask(self) -> str:
        return next(iter(self.video.masks))

    def given_ids(self) -> list[int]:
        """All IDs that a result may hold.

        Raises:
            InputError: see :meth:`read_given`.
        """
        ids: set[int] = set()
        for stem in self.video.masks:
            mask, _ = self.read_given(stem)
            if mask is not None:
                ids |= set(np.unique(mask).tolist())
        return sorted(ids - {0})

    def check(self) -> set[int]:
        """Check the given masks before anything runs; in a full annotation, only the first.

        Returns:
            The IDs in the masks that were checked.

        Raises:
            InputError: one cannot be used, or is missing although the benchmark is scored.
        """
        masks = self.video.masks
        if self.rules.scored:
            bare = [path for path in self.video.frames if path.stem not in masks]
            what = f"{self.video.image_folder}: fewer than 3 frames"
            if bare:
                what = f"{len(bare)} frames have no mask, the first of them {bare[0]}"
            if bare or len(self.video) < 3:
                raise InputError(f"{what}; {self.rules.name} is scored on complete clips")
        given: set[int] = set()
        for stem in list(masks)[:1] if self.video.fully_annotated else masks:
            mask, _ = self.read_given(stem)
            if mask is None:
                continue
            size = image_size(self.video.frame(self._index(stem)))
            if not almost_equal_sizes(mask.shape, size):
                raise InputError(f"{masks[stem]}: {size_message(mask.shape, size)}")
            given |= set(np.unique(mask).tolist())
        return given

    def _index(self, stem: str) -> int:
        return next(i for i, path in enumerate(self.video.frames) if path.stem == stem)

    def files_state(self) -> str:
        """Changes when any of the clip's files does.

        Raises:
            OSError: one is missing.
        """
        return files_state((*self.frames, *self.video.masks.values()), times=True)


class FrameRange(NamedTuple):
    """LVOS's frames of an object: the first and last numbers in their names, and their count."""

    start: int
    end: int
    frame_nums: int

    def counted(self, step: int) -> list[int]:
        """Numbers of the frames that LVOS's evaluator scores: `range(start, end, step)` without
        the items 0 and ``frame_nums - 1``.

        Raises:
            InputError: these are not ``frame_nums - 2`` frames, the number it divides by.
        """
        numbers = list(range(self.start, self.end, step))
        counted = [n for i, n in enumerate(numbers) if i not in (0, self.frame_nums - 1)]
        if len(counted) != max(0, self.frame_nums - 2):
            raise InputError(
                f"the metadata gives frames {self.start} to {self.end} in steps of {step}, and "
                f"frame_nums {self.frame_nums}, which do not agree"
            )
        return counted


def only_new_objects(mask: np.ndarray, known: list[int]) -> np.ndarray | None:
    """What a method may see of a mask: objects where they first appear, never again.

    Full annotations hold the answer in every frame, and a benchmark's later masks may repeat
    objects; both are reduced to this. None if nothing is new.
    """
    new = np.where(np.isin(mask, known), 0, mask).astype(mask.dtype)
    return new if new.any() else None


def given_mask(
    clip: EvalClip, stem: str, frame: np.ndarray, mask: np.ndarray | None, known: list[int]
) -> np.ndarray | None:
    """The part of a mask that a method gets with its frame."""
    if mask is None:
        return None
    return only_new_objects(fit_mask(mask, frame.shape[:2], clip.video.masks[stem]), known)


@dataclass(frozen=True)
class Listing:
    """What a benchmark holds.

    Attributes:
        clips: that can be used.
        faults: what is wrong with the others, by name.
        notes: what the user should know about the benchmark.
    """

    clips: list[EvalClip]
    faults: dict[str, str]
    notes: list[str]


def list_clips(
    rules: BenchmarkConfig,
    root: str | Path,
    split: str | None = None,
    names: list[str] | None = None,
) -> Listing:
    """The clips of a benchmark.

    Args:
        split: a list in ``ImageSets``; None takes the clips of the metadata or the masks' folder.
        names: only these.

    Raises:
        InputError: the root, the split or the metadata is faulty, or no clip is left.
    """
    root = Path(root)
    image_root, mask_root = video_folders(root, rules.images, rules.masks)
    meta = None if rules.meta is None else _read_meta(root / rules.meta)
    listed = video_names(root, mask_root, split) if meta is None else sorted(meta)
    notes = []
    if split is None and (bare := sorted(set(subfolders(image_root)) - set(listed))):
        why = "masks" if meta is None else f"an entry in {rules.meta}"
        notes.append(f"{root}: {len(bare)} clips without {why} left out: {', '.join(bare)}")
    if message := count_message(rules.published, len(listed)):
        notes.append(f"{root}: {message}")
    if names is not None:
        listed = select_names(listed, names, f"{rules.name} at {root}")
    clips: list[EvalClip] = []
    faults: dict[str, str] = {}
    voids: list[str] = []
    for name in listed:
        try:
            check_path(image_root / name)
            clip = _list_clip(rules, image_root / name, mask_root / name, (meta or {}).get(name))
            given = clip.check()
            clips.append(clip)
            if rules.mask_values == "index" and has_void(np.array(list(given), np.uint8)):
                voids.append(name)
        except InputError as error:
            faults[name] = str(error)
    if voids:
        notes.append(
            f"{root}: {len(voids)} clips have 255 beside small IDs, an object like any other; if "
            f"it means no label, give benchmark.void=255: {', '.join(voids)}"
        )
    if not clips:
        first = next(iter(faults.values()), "it lists none")
        raise InputError(f"{root}: no clip can be used; {first}")
    return Listing(clips, faults, notes)


def scored_clips(
    root: str | Path, split: str | None = None, names: list[str] | None = None
) -> list[EvalClip]:
    """Clips with a mask for every frame, to score a network on; see :func:`list_clips`.

    Raises:
        InputError: one of them is faulty, or lacks masks; the message names it.
    """
    listing = list_clips(BenchmarkConfig(name="a network", scored=True), root, split, names)
    for name, fault in listing.faults.items():
        raise InputError(f"{name}: {fault}")
    return listing.clips


def _list_clip(
    rules: BenchmarkConfig, images: Path, masks: Path, objects: dict[str, Any] | None
) -> EvalClip:
    video = find_video(images, masks)
    if rules.frame_step is not None:
        _check_numbers(video, rules.frame_step)
    clip = EvalClip(video, rules)
    if objects is None:
        return clip
    try:
        frames = {stem for each in objects.values() for stem in each.get("frames", ())}
        ranges = {
            int(i): FrameRange(*(int(each["frame_range"][key]) for key in FrameRange._fields))
            for i, each in objects.items()
            if "frame_range" in each
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{rules.meta}: {images.name}: objects are not described as in YouTube-VOS (frames) or "
            f"LVOS (frame_range) ({error!r})"
        ) from error
    if missing := sorted(frames - {path.stem for path in video.frames}):
        raise InputError(
            f"{images}: {len(missing)} frames listed in the metadata are missing: "
            f"{', '.join(missing[:5])}{', ...' if missing[5:] else ''}"
        )
    return replace(clip, wanted=frozenset(frames) or None, ranges=ranges)


def _check_numbers(video: VideoFolder, step: int) -> None:
    for before, after in pairwise(video.frames):
        if not (before.stem.isdigit() and after.stem.isdigit()):
            raise InputError(f"{before}, {after.name}: a frame's name must be its number")
        if int(after.stem) != int(before.stem) + step:
            expected = f"{int(before.stem) + step:0{len(before.stem)}d}{before.suffix}"
            raise InputError(f"{before.parent / expected}: the frame is missing; get it again")


def _read_meta(path: Path) -> dict[str, dict[str, Any]]:
    """The objects of each clip."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; it is part of the benchmark (LVOS: a separate download) and "
            "says which frames count. See datasets/README.md"
        )
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
        return {name: dict(videos[name]["objects"]) for name in videos}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{path}: not the metadata of a benchmark, {{"videos": {{name: {{"objects": ...}}}}}} '
            f"({error!r})"
        ) from error


def identity(rules: BenchmarkConfig, root: str | Path, split: str | None) -> dict[str, Any]:
    """What two evaluations on the same data have in common, for JSON."""
    return {"root": os.path.realpath(root), "split": split, **vars(rules)}
