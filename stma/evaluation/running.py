"""Running a method on one clip: reading, network and writing overlap, and each step is timed."""

import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from stma.data.images import read_image
from stma.data.pictures import save_mask
from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip, given_mask
from stma.inference.augmentation import AugmentedSegmenter
from stma.inference.segmenter import Segmenter, VideoSegmenter
from stma.runtime.device import device_name, peak_gigabytes
from stma.runtime.outputs import PARTIAL, replacing

log = logging.getLogger(__name__)

READERS, WRITERS = 2, 2  # threads
AHEAD = 4  # frames read before they are needed
SAVE_SECONDS = 60.0  # from one saved state of a clip to the next
STATES, PROGRESS = "state-*.safetensors", "progress.json"  # beside its masks until all are there
BEHIND = 8  # masks that may wait to be written


@dataclass(frozen=True)
class ClipRun:
    """How one clip went.

    Attributes:
        seconds: that the network and its memory took for each frame from the first mask on.
        peak_gigabytes: the most device memory that this process had used by then (on a CPU, the
            process's memory).
        device: its name.
    """

    clip: str
    seconds: list[float]
    peak_gigabytes: float
    device: str


class Stopwatch:
    """Seconds of many steps: by CUDA events on a GPU, by a clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._laps: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def lap(self) -> Iterator[None]:
        if self._on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)  # not that of another card
            start.record(stream)
            yield
            end.record(stream)
            self._events.append((start, end))
        else:
            begin = time.perf_counter()
            yield
            self._laps.append(time.perf_counter() - begin)

    def seconds(self) -> list[float]:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
            return [start.elapsed_time(end) / 1000 for start, end in self._events]
        return list(self._laps)


def run_clip(
    clip: EvalClip,
    segmenter: VideoSegmenter,
    output: Path | None,
    device: torch.device,
    on_frame: Callable[[], object] = lambda: None,
) -> ClipRun:
    """Segment one clip and write the masks asked for, in the palette of its first mask. If an
    earlier run ended in the middle of it, continue from there.

    Args:
        output: the folder of the clip's masks, which appears once it holds all of them; None
            writes nothing.

    Raises:
        InputError: names the frame, the mask, or what could not be written.
    """
    if output is None:
        return _run(_Begun(segmenter), clip, None, device, on_frame)
    partial = output.with_name(f".{output.name}{PARTIAL}")
    begun = _begun(clip, segmenter, partial)
    try:
        for old in (output,) if begun.frames else (partial, output):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        run = _run(begun, clip, partial, device, on_frame)
        for path in (*partial.glob(STATES), partial / PROGRESS):
            path.unlink(missing_ok=True)
        partial.rename(output)
    except InputError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        raise InputError(f"{output}: the masks cannot be written ({error})") from error
    finally:
        if not (partial / PROGRESS).is_file():
            shutil.rmtree(partial, ignore_errors=True)
    return run


@dataclass(frozen=True)
class _Begun:
    """The progress of a clip.

    Attributes:
        frames: that are done.
        seconds: for these, as in :class:`ClipRun`.
    """

    segmenter: VideoSegmenter
    frames: int = 0
    seconds: list[float] = field(default_factory=list)
    palette: bytes | None = None


def _views(segmenter: VideoSegmenter) -> list[Segmenter]:
    """Those whose states are the state of the method; none of a baseline, which saves nothing."""
    if isinstance(segmenter, AugmentedSegmenter):
        return segmenter.views
    return [segmenter] if isinstance(segmenter, Segmenter) else []


def _state(folder: Path, frames: int, view: int) -> Path:
    return folder / STATES.replace("*", f"{frames}-{view}")


def _begun(clip: EvalClip, segmenter: VideoSegmenter, partial: Path) -> _Begun:
    """What an interrupted run has left of this clip; nothing if its files or settings differ, or
    it is damaged."""
    views = _views(segmenter)
    try:
        progress = json.loads((partial / PROGRESS).read_text())
        frames, seconds, palette = (progress[key] for key in ("frames", "seconds", "palette"))
        if (progress["fingerprint"], progress["views"]) != (clip.fingerprint(), len(views)):
            return _Begun(segmenter)
        loaded = [
            Segmenter.load(_state(partial, frames, number), view.model)
            for number, view in enumerate(views)
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return _Begun(segmenter)
    if [view.config for view in loaded] != [view.config for view in views]:
        return _Begun(segmenter)
    log.info("%s: resumes after frame %d of %d", clip.name, frames, len(clip.frames))
    if isinstance(segmenter, AugmentedSegmenter):
        segmenter.views = loaded
    else:
        (segmenter,) = loaded
    return _Begun(segmenter, frames, seconds, None if palette is None else bytes.fromhex(palette))


def _save(begun: _Begun, clip: EvalClip, fingerprint: str, folder: Path) -> None:
    """Save for :func:`_begun`. The states come first: if a run ends before the other file is
    written, the previous ones still exist."""
    views = _views(begun.segmenter)
    states = [_state(folder, begun.frames, number) for number in range(len(views))]
    for view, state in zip(views, states, strict=True):
        view.save(state)
    progress = {
        "frames": begun.frames,
        "views": len(views),
        "seconds": begun.seconds,
        "palette": None if begun.palette is None else begun.palette.hex(),
        "fingerprint": fingerprint,
    }
    with replacing(folder / PROGRESS) as unfinished:
        unfinished.write_text(json.dumps(progress))
    for old in folder.glob(STATES):
        if old not in states:
            old.unlink()


def _run(
    begun: _Begun,
    clip: EvalClip,
    folder: Path | None,
    device: torch.device,
    on_frame: Callable[[], object],
) -> ClipRun:
    segmenter, palette = begun.segmenter, begun.palette
    wanted = set(clip.output_stems)
    watch = Stopwatch(device)
    views = _views(segmenter)
    known = views[0].ids if views else []
    for _ in range(begun.frames):
        on_frame()
    frames = clip.frames
    resumable = folder is not None and bool(views)
    fingerprint = clip.fingerprint() if resumable else ""
    saved = time.monotonic()
    with _writing() as writer:
        left = _reading(clip, frames[begun.frames :])
        for index, (frame, mask, mask_palette) in enumerate(left, begun.frames):
            path = frames[index]
            palette = palette or mask_palette
            mask = given_mask(clip, path.stem, frame, mask, known)
            begins = mask is not None or bool(known)
            try:
                last = index + 1 == len(frames)
                # Before the first mask there is nothing to do.
                with watch.lap() if begins else nullcontext():
                    result = segmenter.step(frame, mask, last=last)
            except InputError as error:
                where = path if mask is None else f"{path} with {clip.video.masks[path.stem]}"
                raise InputError(f"{where}: {error}") from error
            known = result.ids
            if folder is not None and path.stem in wanted:
                writer.write(folder / f"{path.stem}.png", result.mask, palette)
            if folder is not None and resumable and time.monotonic() - saved > SAVE_SECONDS:
                writer.flush()
                seconds = begun.seconds + watch.seconds()
                _save(_Begun(segmenter, index + 1, seconds, palette), clip, fingerprint, folder)
                saved = time.monotonic()
            on_frame()
    if not known:
        raise InputError(f"{clip.video.mask_folder}: no mask holds an object")
    seconds = begun.seconds + watch.seconds()
    return ClipRun(clip.name, seconds, peak_gigabytes(device), device_name(device))


def _reading(
    clip: EvalClip, frames: list[Path]
) -> Iterator[tuple[np.ndarray, np.ndarray | None, bytes | None]]:
    """Frames and masks in order, read ahead of their use."""

    def read(path: Path) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
        mask, palette = None, None
        if path.stem in clip.video.masks:
            mask, palette = clip.read_given(path.stem)
        return read_image(path), mask, palette

    with ThreadPoolExecutor(READERS) as pool:
        pending: deque[Future] = deque()
        try:
            for path in frames:
                pending.append(pool.submit(read, path))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Writer:
    """Writes masks in other threads."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.pending: deque[Future] = deque()

    def write(self, path: Path, mask: np.ndarray, palette: bytes | None) -> None:
        self.pending.append(self._pool.submit(save_mask, path, mask, palette))
        if len(self.pending) > BEHIND:
            self.pending.popleft().result()

    def flush(self) -> None:
        """Wait until all are written."""
        while self.pending:
            self.pending.popleft().result()


@contextmanager
def _writing() -> Iterator[_Writer]:
    """On exit, all masks are written."""
    with ThreadPoolExecutor(WRITERS) as pool:
        writer = _Writer(pool)
        try:
            yield writer
            writer.flush()
        finally:
            for future in writer.pending:
                future.cancel()
