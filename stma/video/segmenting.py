"""A whole video, from a file and its first mask to files; if stopped, it continues from there."""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stma.data.masks import read_mask
from stma.errors import InputError
from stma.runtime.outputs import (
    LOCK,
    PARTIAL,
    check_path,
    full_disks_told,
    holding,
    remove_partials,
)
from stma.runtime.resume import (
    RECORD,
    VIDEO,
    Record,
    begin,
    earlier_run,
    file_digest,
    files_state,
)
from stma.runtime.threads import read_ahead
from stma.video.given import GivenMask
from stma.video.reading import Video, VideoFrameAt
from stma.video.scores import SCORES, Doubt, Scores
from stma.video.writing import OUTPUTS, Background, Writer, mask_writer

if TYPE_CHECKING:
    from stma.inference.segmenter import Segmenter  # imports torch, which takes seconds
    from stma.model.stma import STMA

log = logging.getLogger(__name__)

SAVE_EVERY = 60.0  # seconds: the most that is lost if the program is killed
MASKS = "masks"
STATE, BACKWARD_STATE = "state.safetensors", "backward.safetensors"
ADAPTED = "adapted.safetensors"  # the network that has learned from the masks
OVER = "--overwrite to start over"
OURS = (MASKS, SCORES, STATE, BACKWARD_STATE, ADAPTED, *(name for name, _ in OUTPUTS.values()))


@dataclass(frozen=True)
class Order:
    """What to do.

    Attributes:
        masks: by the number of their frame; see :func:`~stma.video.given.find_masks`.
        output: a folder that is new, empty, or holds what the same order has left.
        save: any of ``masks`` (always written) and the keys of ``OUTPUTS``.
        backward: also segment the frames before the first mask; otherwise they are background.
        weights: see :func:`~stma.model.weights.find_weights`.
        settings: of :class:`~stma.inference.segmenter.SegmenterConfig`, if they differ from those
            stored with the weights.
        overwrite: start over: replace what any order has left in the folder.
        absent: objects that are not in a frame, by its number; see
            :func:`~stma.video.given.find_absent`.
        adapt: let the network learn from the masks first; see
            :func:`~stma.training.adapting.adapt`.
    """

    video: Video
    masks: dict[int, GivenMask]
    output: Path
    save: Sequence[str] = ("masks", "overlay")
    backward: bool = False
    weights: str = "small"
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    overwrite: bool = False
    absent: dict[int, set[int]] = field(default_factory=dict)
    adapt: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome.

    Attributes:
        complete: False if it was stopped before the last frame.
        num_frames: that now have a mask.
        files: what was written for the user.
        doubts: the frames to look at.
    """

    complete: bool
    num_frames: int
    files: list[Path]
    doubts: list[Doubt] = field(default_factory=list)


def segment_video(
    order: Order,
    stopped: Callable[[], bool] = lambda: False,
    on_frame: Callable[[], object] = lambda: None,
) -> Outcome:
    """Carry out the order, or what is left of it.

    Args:
        stopped: asked after every frame, and every step of ``adapt``; if so, all is saved, and the
            same order continues later.
        on_frame: called after every frame, :func:`num_steps` times in all.

    Raises:
        InputError: says what is wrong. What was done until then is kept.
    """
    from stma.inference.segmenter import SegmenterConfig
    from stma.runtime.device import out_of_memory_explained

    SegmenterConfig(**order.settings)  # raises before a folder is made
    _check_output(order)
    record = Record(VIDEO, _identity(order))
    earlier_run(order.output, record, OURS, overwrite=order.overwrite, over=OVER)
    with holding(order.output), full_disks_told(order.output), out_of_memory_explained():
        earlier = begin(order.output, record, OURS, overwrite=order.overwrite, over=OVER)
        remove_partials(order.output)
        run = _Run(order, stopped, on_frame)
        frames = earlier.details.get("frames") if earlier is not None and earlier.done else None
        whole = isinstance(frames, int) and run.has_masks(range(frames))
        outcome = run.run(frames if whole else None)
        if outcome.complete:
            details = {"frames": outcome.num_frames}
            Record(VIDEO, record.identity, done=True, details=details).write(order.output / RECORD)
            (order.output / STATE).unlink(missing_ok=True)
        return outcome


def num_steps(order: Order) -> int:
    """Number of frames to process; those before the first mask count twice if segmented too."""
    return len(order.video) + (min(order.masks) if order.backward else 0)


def _check_output(order: Order) -> None:
    """Refuse a folder that holds anything else."""
    check_path(order.output / f"{max(OURS, key=len)}.{os.getpid()}{PARTIAL}")
    output, source = order.output.resolve(), order.video.path.resolve()
    if output in (source, source.parent):
        raise InputError(f"{order.output}: the folder of the video itself; choose another output")
    for given in order.masks.values():
        if output in given.path.resolve().parents:
            raise InputError(
                f"{given.path}: the mask is in the output folder; move it, or choose another output"
            )
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{order.output}: exists and is a file; choose another output")
    names = {entry.name for entry in output.iterdir()} - {LOCK}
    if names and RECORD not in names:
        some = ", ".join(sorted(names)[:3])
        raise InputError(
            f"{order.output}: the folder holds other files ({some}); choose another output"
        )


def _identity(order: Order) -> dict[str, Any]:
    """What the masks depend on."""
    from stma.model.weights import find_weights

    return {
        "video": files_state(order.video.files, times=False),
        "masks": {str(n): given.digest for n, given in order.masks.items()},
        "frames": [order.video.name(0), order.video.name(len(order.video) - 1), len(order.video)],
        "weights": file_digest(find_weights(order.weights)),
        "settings": order.settings,
        "backward": order.backward,
        "absent": {str(n): sorted(ids) for n, ids in sorted(order.absent.items())},
        "adapt": order.adapt,
    }


class _Stopped(Exception):
    """The run is to stop before the network has learned from the masks."""


class _Run:
    """One call of :func:`segment_video`."""

    def __init__(
        self, order: Order, stopped: Callable[[], bool], on_frame: Callable[[], object]
    ) -> None:
        self._order, self._video, self._output = order, order.video, order.output
        self._stopped, self._on_frame = stopped, on_frame
        self._first = min(order.masks)
        self._palette = order.masks[self._first].read()[1]
        self._scores = Scores(self._output)
        self._saved_at = time.monotonic()

    def run(self, done: int | None) -> Outcome:
        """
        Args:
            done: the number of frames if all masks exist, and perhaps other outputs.
        """
        asked = [OUTPUTS[kind] for kind in self._order.save if kind != "masks"]
        files = [self._output / MASKS, *(self._output / name for name, _ in asked)]
        if done is not None and all(file.exists() for file in files):
            return Outcome(True, done, files, self._scores.doubts())
        segmenter = None
        if done is None:
            try:
                saved = self._saved_states()
                if self._order.backward and not self._backward(saved):
                    return Outcome(False, 0, files[:1])
                segmenter = saved.get(STATE) or self._new_segmenter()
            except _Stopped:
                return Outcome(False, 0, files[:1])
        writers = [make(self._output / name, self._video) for name, make in asked]
        complete, count = self._forward(segmenter, writers)
        self._scores.write()
        return Outcome(complete, count, files, self._scores.doubts())

    def _backward(self, saved: "dict[str, Segmenter]") -> bool:
        """Segment the frames before the first mask, last to first; False if stopped."""
        if STATE in saved:  # written only after this
            for _ in range(self._first):
                self._on_frame()
            return True
        segmenter = saved.get(BACKWARD_STATE) or self._new_segmenter()
        for _ in range(segmenter.num_frames - 1):
            self._on_frame()
        frames = self._video.frames_backward(self._first - segmenter.num_frames)
        with Background([self._mask_writer()]) as masks:
            for frame in read_ahead(frames):
                mask = self._step(segmenter, frame, last=frame.number == 0)
                if frame.number != self._first:
                    masks.write(frame, mask)
                    self._on_frame()
                if self._saved(segmenter, BACKWARD_STATE, masks):
                    return False
        segmenter.reset()
        self._save(segmenter, STATE)
        (self._output / BACKWARD_STATE).unlink(missing_ok=True)
        return True

    def _forward(
        self, segmenter: "Segmenter | None", writers: Sequence[Writer]
    ) -> tuple[bool, int]:
        """Process all frames; those that already have a mask are only drawn.

        Returns:
            Whether the last frame was reached, and how many were processed.
        """
        begin = sys.maxsize if segmenter is None else self._first + segmenter.num_frames
        last = len(self._video) - 1
        count = 0
        stopped, damage = False, None
        frames = read_ahead(self._video.frames())
        with Background([self._mask_writer()]) as masks, Background(writers) as others:
            while not stopped:
                try:
                    frame = next(frames, None)
                except InputError as error:
                    damage = error
                    break
                if frame is None:
                    break
                mask: np.ndarray | None
                if segmenter is not None and frame.number >= begin:
                    mask = self._step(segmenter, frame, last=frame.number == last)
                    masks.write(frame, mask)
                elif frame.number >= self._first or self._order.backward:
                    mask = self._written(frame.number) if writers else None
                else:
                    mask = np.zeros(self._video.size, np.uint8)
                    masks.write(frame, mask)
                if mask is not None:
                    others.write(frame, mask)
                count += 1
                self._on_frame()
                if segmenter is not None:
                    stopped = self._saved(segmenter, STATE, masks)
                else:
                    stopped = self._stopped()
        frames.close()
        if damage is not None and segmenter is not None:
            self._save(segmenter, STATE)
        if count:
            for writer in writers:
                writer.close(complete=not stopped)
        if damage is not None:
            raise damage
        if not stopped and (late := [n for n in self._order.masks if n >= count]):
            path = self._order.masks[late[0]].path
            raise InputError(
                f"{path}: the video has no frame {late[0]}; it ended after {count} frames"
            )
        return not stopped, count

    def _step(self, segmenter: "Segmenter", frame: VideoFrameAt, *, last: bool) -> np.ndarray:
        """The mask of the next frame, given what the user has said about it."""
        given = self._given(frame.number)
        absent = self._order.absent.get(frame.number, set())
        result = segmenter.step(frame.image, given, absent=absent, last=last)
        self._scores.add(self._video.name(frame.number), result.confidence)
        return result.mask

    @cached_property
    def _model(self) -> "STMA":
        from stma.model.weights import load_model
        from stma.runtime.device import resolve_device

        device = resolve_device(self._order.device)
        adapted = self._output / ADAPTED
        if self._order.adapt and not adapted.exists():
            self._adapt(load_model(self._order.weights, device), adapted)
        return load_model(adapted if self._order.adapt else self._order.weights, device)

    def _adapt(self, model: "STMA", path: Path) -> None:
        """Let the network learn from all masks that have objects, and write it."""
        from stma.model.weights import read_weights, save_weights
        from stma.training.adapting import adapt

        def on_step() -> None:
            if self._stopped():
                raise _Stopped

        masks = {number: given.read()[0] for number, given in self._order.masks.items()}
        masks = {number: mask for number, mask in masks.items() if mask.any()}
        frames = [next(self._video.frames(number)).image for number in masks]
        log.info("learning from %d masks, which takes a minute or two", len(masks))
        adapted = adapt(model, frames, list(masks.values()), on_step=on_step)
        config, provenance, _ = read_weights(self._order.weights)
        save_weights(path, adapted, config, provenance | {"adapted_to": sorted(masks)})

    def _new_segmenter(self) -> "Segmenter":
        from stma.inference.segmenter import Segmenter, SegmenterConfig

        settings = self._model.segmenter_settings | self._order.settings
        return Segmenter(self._model, SegmenterConfig(**settings))

    def _saved_states(self) -> dict[str, "Segmenter"]:
        """What an earlier start has saved, by name. Nothing if a file is damaged, or a mask that
        would not be made again is not there: then all are made anew."""
        from stma.inference.segmenter import Segmenter

        paths = {name: self._output / name for name in (STATE, BACKWARD_STATE)}
        try:
            saved = {
                name: Segmenter.load(path, self._model)
                for name, path in paths.items()
                if path.exists()
            }
        except InputError as error:
            log.warning("%s; the video is segmented from its beginning", error)
            saved = {}
        begin = self._first
        if STATE in saved:
            end = self._first + saved[STATE].num_frames
            begin = 0 if self._order.backward else begin
        else:
            end = self._first
            if BACKWARD_STATE in saved:
                begin -= saved[BACKWARD_STATE].num_frames - 1
        if self.has_masks(range(begin, end)) and saved:
            return saved
        for path in paths.values():
            path.unlink(missing_ok=True)
        return {}

    def has_masks(self, numbers: range) -> bool:
        """Whether all these frames have a mask; if not, the first without is logged."""
        for number in numbers:
            path = self._mask_path(number)
            if not path.is_file() or not path.stat().st_size:
                log.warning("%s: is gone; the video is segmented from its beginning", path)
                return False
        return True

    def _mask_path(self, number: int) -> Path:
        return self._output / MASKS / f"{self._video.name(number)}.png"

    def _saved(self, segmenter: "Segmenter", state: str, masks: Background) -> bool:
        """Save the state if it is time to, or if the run is to stop; returns True in that case."""
        stopped = self._stopped()
        if stopped or time.monotonic() - self._saved_at > SAVE_EVERY:
            masks.flush()  # first, since the state says that they exist
            self._save(segmenter, state)
            self._saved_at = time.monotonic()
        return stopped

    def _save(self, segmenter: "Segmenter", state: str) -> None:
        """The state of the video, and the scores that will not be computed again after it."""
        self._scores.write()
        segmenter.save(self._output / state)

    def _mask_writer(self) -> Writer:
        return mask_writer(self._output / MASKS, self._video, self._palette)

    def _given(self, number: int) -> np.ndarray | None:
        given = self._order.masks.get(number)
        return None if given is None else given.read()[0]

    def _written(self, number: int) -> np.ndarray:
        try:
            return read_mask(self._mask_path(number))[0]
        except InputError as error:
            raise InputError(f"{error}; delete it, and all masks are made anew") from error
