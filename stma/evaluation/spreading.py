"""Clips spread over processes: one, several of our own, or those started by `torchrun`.

Every clip is segmented on its own, so where it runs changes nothing.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from tqdm import tqdm

from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip
from stma.evaluation.eval_config import EvalConfig
from stma.evaluation.running import ClipRun, run_clip
from stma.evaluation.tables import one_line
from stma.inference.augmentation import AugmentedSegmenter
from stma.inference.baselines import CopyFirstMask, FlowWarp
from stma.inference.segmenter import Segmenter, VideoSegmenter
from stma.model.weights import load_model
from stma.runtime.distributed import Processes
from stma.runtime.workers import available_cores, end_with_parent, process_context


@dataclass(frozen=True)
class Failure:
    """Why a clip has no result.

    Attributes:
        details: the traceback, if the fault is the program's own.
    """

    message: str
    details: str | None = None


class ClipWorker:
    """Segments clips with one method.

    Raises:
        InputError: the weights cannot be used.
    """

    def __init__(self, config: EvalConfig, device: torch.device) -> None:
        threads = config.threads
        # torchrun gives its processes one thread each, which would change the last bits.
        limited = os.environ.get("OMP_NUM_THREADS") == "1" and "TORCHELASTIC_RUN_ID" in os.environ
        if threads is None and limited:
            threads = available_cores()
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = device if config.method == "stma" else torch.device("cpu")
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)
        self._new_segmenter = _method(config, self.device)

    def run(
        self, clip: EvalClip, output: Path | None, on_frame: Callable[[], object] = lambda: None
    ) -> ClipRun | Failure:
        """Run one clip; whatever goes wrong is reported, and affects no other clip."""
        try:
            return run_clip(clip, self._new_segmenter(), output, self.device, on_frame)
        except InputError as error:
            return Failure(str(error))
        except Exception as error:  # noqa: BLE001 - logged whole, and the run ends with status 1
            return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def _method(config: EvalConfig, device: torch.device) -> Callable[[], VideoSegmenter]:
    if config.method == "copy":
        return CopyFirstMask
    if config.method == "flow":
        return FlowWarp
    model = load_model(config.weights, device)
    if config.augment.is_plain:
        return lambda: Segmenter(model, config.segmenter)
    return lambda: AugmentedSegmenter(model, config.segmenter, config.augment)


def run_clips(
    config: EvalConfig,
    clips: Sequence[EvalClip],
    mask_root: Path | None,
    device: torch.device,
    worker: ClipWorker | None,
    processes: Processes,
) -> Iterator[tuple[EvalClip, ClipRun | Failure]]:
    """Segment this process's share of the clips, and yield each as soon as it is done.

    Args:
        worker: of this process; None starts ``config.workers`` of them.
        mask_root: receives a folder for each clip; None writes nothing.
    """
    share = own_share(clips, processes)
    frames = sum(len(clip.frames) for clip in share)
    with tqdm(total=frames, unit="frame", disable=not processes.is_main, desc="segment") as bar:
        if worker is None:
            for clip, outcome in _run_in_pool(config, share, mask_root, device):
                bar.set_postfix_str(one_line(clip.name))
                bar.update(len(clip.frames))
                yield clip, outcome
            return
        for clip in share:
            bar.set_postfix_str(one_line(clip.name))
            yield clip, worker.run(clip, _folder(mask_root, clip), bar.update)


def own_share(clips: Sequence[EvalClip], processes: Processes) -> list[EvalClip]:
    """The longest clips go first, each to the process with the least to do."""
    if processes.world_size == 1:
        return list(clips)
    load = [0] * processes.world_size
    share = []
    for clip in sorted(clips, key=lambda clip: (-len(clip.frames), clip.name)):
        rank = load.index(min(load))
        load[rank] += len(clip.frames)
        if rank == processes.rank:
            share.append(clip)
    return share


def _folder(mask_root: Path | None, clip: EvalClip) -> Path | None:
    return None if mask_root is None else mask_root / clip.name


_worker: ClipWorker  # of a process of the pool


def _run_in_pool(
    config: EvalConfig, clips: Sequence[EvalClip], mask_root: Path | None, device: torch.device
) -> Iterator[tuple[EvalClip, ClipRun | Failure]]:
    """The longest clips first."""
    context = process_context("stma.evaluation.spreading")
    workers = min(config.workers, len(clips))
    devices = context.SimpleQueue()  # one for each process
    for number in range(workers):
        devices.put(_worker_device(config, device, number))
    with ProcessPoolExecutor(workers or 1, context, _start_worker, (config, devices)) as pool:
        futures = {
            pool.submit(_run_in_worker, clip, _folder(mask_root, clip)): clip
            for clip in sorted(clips, key=lambda clip: -len(clip.frames))
        }
        try:
            for future in as_completed(futures):
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    outcome = Failure(
                        "not finished, since one of the processes was killed (too little memory?); "
                        "run the command again with fewer workers"
                    )
                yield futures[future], outcome
        finally:
            pool.shutdown(cancel_futures=True)


def _worker_device(config: EvalConfig, device: torch.device, number: int) -> torch.device:
    if device.type == "cuda" and config.device in ("auto", "cuda"):  # no card in particular
        return torch.device("cuda", number % torch.cuda.device_count())
    return device


def _start_worker(config: EvalConfig, devices: "SimpleQueue[torch.device]") -> None:
    global _worker
    end_with_parent()
    _worker = ClipWorker(config, devices.get())


def _run_in_worker(clip: EvalClip, output: Path | None) -> ClipRun | Failure:
    return _worker.run(clip, output)
