"""How fast evaluation is, measuring both sides alternately in one run.

overlap   segmenting a clip with reading and writing, against the network alone on frames in memory
scoring   our scores of some results, against vos-benchmark's with as many processes
long      memory and time per frame over a long video: a clip played over and over
"""

import argparse
import os
import shutil
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import torch

from stma.data.images import read_image
from stma.data.video_folder import find_videos
from stma.errors import input_errors_end_the_program
from stma.evaluation.benchmarks import EvalClip, only_new_objects
from stma.evaluation.running import run_clip
from stma.evaluation.scoring import score_clips
from stma.inference.segmenter import Segmenter
from stma.model.stma import STMA
from stma.model.weights import load_model
from stma.runtime.device import device_name, peak_gigabytes, resolve_device

WINDOWS = 10  # of a long video, printed separately


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("overlap", "scoring", "long"))
    parser.add_argument("root", type=Path, help="videos in the DAVIS layout")
    parser.add_argument("--weights", help="for overlap and long")
    parser.add_argument("--results", type=Path, help="for scoring: a folder of masks")
    parser.add_argument("--clips", nargs="+", help="only these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--frames", type=int, default=3000, help="of the long video")
    parser.add_argument("--objects", type=int, help="of the long video (default: all)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    clips = [EvalClip(video) for video in find_videos(arguments.root, names=arguments.clips)]
    if arguments.what == "scoring" and arguments.results is None:
        parser.error("scoring needs --results")
    if arguments.what != "scoring" and arguments.weights is None:
        parser.error(f"{arguments.what} needs --weights")
    if arguments.what == "scoring":
        bench_scoring(clips, arguments.results, arguments.processes, arguments.rounds)
        return
    device = resolve_device(arguments.device)
    model = load_model(arguments.weights, device)
    print(f"{device_name(device)}, {torch.get_num_threads()} threads")
    if arguments.what == "overlap":
        for clip in clips:
            bench_overlap(clip, model, device, arguments.rounds)
    else:
        bench_long(clips[0], model, device, arguments.frames, arguments.objects)


def bench_overlap(clip: EvalClip, model: STMA, device: torch.device, rounds: int) -> None:
    images = [read_image(path) for path in clip.frames]
    given: list[np.ndarray | None] = []
    known: list[int] = []
    for path in clip.frames:
        mask = clip.read_given(path.stem)[0] if path.stem in clip.video.masks else None
        given.append(None if mask is None else only_new_objects(mask, known))
        known += [] if mask is None else np.unique(mask).tolist()
    ratios = []
    for _ in range(rounds):
        segmenter = Segmenter(model)
        start = time.perf_counter()
        for image, mask in zip(images, given, strict=True):
            segmenter.step(image, mask)
        alone = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run = run_clip(clip, Segmenter(model), Path(folder) / clip.name, device)
            whole = time.perf_counter() - start
        ratios.append(whole / alone)
        print(
            f"{clip.name}: network alone {alone:.2f} s, with reading and writing {whole:.2f} s "
            f"({sum(run.seconds):.2f} s of it in the network), ratio {ratios[-1]:.3f}"
        )
    print(f"{clip.name}: ratio {np.median(ratios):.3f} (median of {rounds})")


def bench_scoring(clips: list[EvalClip], results: Path, processes: int, rounds: int) -> None:
    from vos_benchmark.benchmark import benchmark

    clips = [clip for clip in clips if (results / clip.name).is_dir() and clip.can_be_scored]
    frames = sum(len(clip.video) - 2 for clip in clips)
    print(f"{len(clips)} clips, {frames} scored frames, {processes} processes")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        truth, masks = Path(folder) / "truth", Path(folder) / "masks"
        for clip in clips:  # it takes everything in a folder, and writes a file there
            shutil.copytree(clip.video.mask_folder, truth / clip.name)
            shutil.copytree(results / clip.name, masks / clip.name)
        for _ in range(rounds):
            start = time.perf_counter()
            benchmark([str(truth)], [str(masks)], num_processes=processes, verbose=False)
            theirs = time.perf_counter() - start
            start = time.perf_counter()
            scores, faults = score_clips(clips, results, processes)
            ours = time.perf_counter() - start
            assert not faults, faults
            assert scores
            ratios.append(ours / theirs)
            print(f"vos-benchmark {theirs:.1f} s, ours {ours:.1f} s, ratio {ratios[-1]:.2f}")
    print(f"ratio {np.median(ratios):.2f} (median of {rounds})")


def bench_long(
    clip: EvalClip, model: STMA, device: torch.device, frames: int, objects: int | None
) -> None:
    images = [read_image(path) for path in clip.frames]
    mask = clip.read_given(clip.frames[0].stem)[0]
    assert mask is not None, "the clip's first frame has no mask"
    ids = np.setdiff1d(np.unique(mask), 0)[:objects]
    mask = np.where(np.isin(mask, ids), mask, 0).astype(np.uint8)
    segmenter = Segmenter(model)
    print(f"{clip.name} over and over, {images[0].shape[:2]}, {len(ids)} objects, {frames} frames")
    print("  up to frame   ms a frame (median)   CPU ms a frame   memory GB")
    wall: list[float] = []
    cpu: list[float] = []
    window = max(1, frames // WINDOWS)
    for number in count(1):
        # Back and forth, so that nothing jumps.
        position = (number - 1) % max(1, 2 * len(images) - 2)
        image = images[min(position, 2 * len(images) - 2 - position)]
        start, start_cpu = time.perf_counter(), time.process_time()
        segmenter.step(image, mask if number == 1 else None)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        if number % window == 0:
            print(
                f"  {number:11d}   {1000 * np.median(wall):19.1f}   {1000 * np.mean(cpu):14.1f}   "
                f"{current_gigabytes(device):9.3f}",
                flush=True,
            )
            wall, cpu = [], []
        if number == frames:
            break
    print(f"peak {peak_gigabytes(device):.3f} GB")


def current_gigabytes(device: torch.device) -> float:
    """Allocated on the GPU, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e9
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


if __name__ == "__main__":
    main()
