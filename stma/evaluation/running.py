"""Running a method on one clip: reading, network and writing overlap, and each step is timed."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stma.data.images import read_image
from stma.data.pictures import save_mask
from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip, given_mask
from stma.inference.segmenter import VideoSegmenter
from stma.runtime.device import device_name, peak_gigabytes
from stma.runtime.outputs import PARTIAL
from stma.runtime.threads import Later, read_ahead

WRITERS = 2  # threads


@dataclass(frozen=True)
class ClipRun:
    """How one clip went.

    Attributes:
        seconds: that the network and its memory took for each frame from the first mask on.
        peak_gigabytes: the most device memory that this process had used by then (on a CPU, the
            process's memory); NaN if the system does not say.
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
    """Segment one clip and write the masks asked for, in the palette of its first mask.

    Args:
        output: the folder of the clip's masks, which appears once it holds all of them; None
            writes nothing.

    Raises:
        InputError: names the frame, the mask, or what could not be written.
    """
    if output is None:
        return _run(clip, segmenter, None, device, on_frame)
    partial = output.with_name(f".{output.name}{PARTIAL}")
    try:
        for old in (partial, output):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        run = _run(clip, segmenter, partial, device, on_frame)
        partial.rename(output)
    except OSError as error:
        raise InputError(f"{output}: the masks cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return run


def _run(
    clip: EvalClip,
    segmenter: VideoSegmenter,
    folder: Path | None,
    device: torch.device,
    on_frame: Callable[[], object],
) -> ClipRun:
    wanted = set(clip.output_stems)
    watch = Stopwatch(device)
    palette: bytes | None = None
    known: list[int] = []
    with closing(read_ahead(_frames(clip))) as frames, Later(WRITERS) as writing:
        for path, frame, mask, mask_palette in frames:
            palette = palette or mask_palette
            mask = given_mask(clip, path.stem, frame, mask, known)
            begins = mask is not None or bool(known)
            try:
                # Before the first mask there is nothing to do.
                with watch.lap() if begins else nullcontext():
                    result = segmenter.step(frame, mask, last=path == clip.frames[-1])
            except InputError as error:
                where = path if mask is None else f"{path} with {clip.video.masks[path.stem]}"
                raise InputError(f"{where}: {error}") from error
            known = result.ids
            if folder is not None and path.stem in wanted:
                writing.call(save_mask, folder / f"{path.stem}.png", result.mask, palette)
            on_frame()
    if not known:
        raise InputError(f"{clip.video.mask_folder}: no mask holds an object")
    return ClipRun(clip.name, watch.seconds(), peak_gigabytes(device), device_name(device))


def _frames(
    clip: EvalClip,
) -> Iterator[tuple[Path, np.ndarray, np.ndarray | None, bytes | None]]:
    """Path, frame, mask and its palette, in order."""
    for path in clip.frames:
        given = clip.read_given(path.stem) if path.stem in clip.video.masks else (None, None)
        yield path, read_image(path), *given
