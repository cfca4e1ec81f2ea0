"""How fast clips are loaded, and where the time goes: python scripts/bench_loader.py ROOT

ROOT has the DAVIS layout; --dataset takes any block of configs/dataset (procedural needs no ROOT).
Clips have 5 frames of 384 x 384 with DAVIS's augmentation, unless settings say otherwise:
data.num_frames=3 split=val ... For composite clips, say what to cut from:
--dataset composite cut_from.videos=davis2017 cut_from.pictures=ecssd datasets=/data
"""

import argparse
import cProfile
import os
import pstats
import re
import time
from collections.abc import Callable
from pathlib import Path

from stma.compose import dataset_names, load_data_config, quoted
from stma.data.composite import CompositeScene, cut_sprites, shrunk
from stma.data.dataset import ClipDataset, clip_batches
from stma.data.images import read_binary_mask, read_image, read_mask
from stma.data.procedural import ProceduralScene
from stma.data.sampling import BatchNumbers
from stma.data.transforms import Warp, apply_colours
from stma.errors import input_errors_end_the_program
from stma.runtime.workers import one_thread
from stma.structures import ClipBatch

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PARTS: dict[str, list[Callable]] = {
    "decode images": [read_image],
    "decode masks": [read_mask, read_binary_mask],
    "warp": [Warp.image, Warp.mask],
    "colour": [apply_colours],
    "draw scenes": [ProceduralScene.draw_at],
    "cut out": [cut_sprites, shrunk],
    "paste": [CompositeScene.draw_at],
}
WARM_UP = 4  # clips
PREFETCH = 2  # of DataLoader, batches per worker


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", default="")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    parser.add_argument("--dataset", default="folder", choices=dataset_names(CONFIGS))
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5, help="the median is reported")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_intermixed_args()
    if min(arguments.clips, arguments.rounds, arguments.workers) < 1:
        parser.error("give 1 or more clips, rounds and workers")
    overrides = list(arguments.overrides)
    if re.match(r"[\w.]+=", arguments.root) and not Path(arguments.root).exists():
        overrides.insert(0, arguments.root)
    elif arguments.root:
        overrides += [f"root={quoted(Path(arguments.root).resolve())}", "published=null"]
    config = load_data_config(CONFIGS, arguments.dataset, overrides)
    prefetched = PREFETCH * arguments.workers
    total = WARM_UP + max(arguments.clips, 4 * prefetched) * (arguments.rounds + 1) + prefetched
    clips = ClipDataset(config, total, seed=0)
    print(clips.describe())
    print(f"clips of {config.num_frames} frames of {config.height} x {config.width}")
    one_process(clips, arguments.clips, arguments.rounds)
    workers(clips, arguments.clips, arguments.workers)


def one_process(clips: ClipDataset, count: int, rounds: int) -> None:
    """The speed of one core, and the share of each part."""
    one_thread()

    def load(first: int, number: int) -> tuple[float, float]:
        """Seconds of CPU time, and by the clock."""
        start = time.process_time(), time.perf_counter()
        for index in range(first, first + number):
            ClipBatch.collate([clips.sample(index)])
        return time.process_time() - start[0], time.perf_counter() - start[1]

    load(0, WARM_UP)
    seconds = sorted(load(WARM_UP + count * r, count) for r in range(rounds))
    median, by_the_clock = seconds[rounds // 2]
    frames = clips.config.num_frames
    print(
        f"one core: {count / median:.1f} clips/s, {count * frames / median:.0f} frames/s of CPU "
        f"time (median of {rounds}; {count * frames / seconds[-1][0]:.0f} to "
        f"{count * frames / seconds[0][0]:.0f}), {count * frames / by_the_clock:.0f} by the clock"
    )
    with cProfile.Profile() as profile:
        load(WARM_UP, count)
    stats = pstats.Stats(profile)
    whole = stats.total_tt  # type: ignore[attr-defined]
    times = {name: sum(cumulative(stats, f) for f in parts) for name, parts in PARTS.items()}
    times["rest"] = whole - sum(times.values())
    for name, spent in times.items():
        if spent > 0:
            milliseconds = 1e3 * spent / whole * median / count / frames
            print(f"  {name:<14} {100 * spent / whole:3.0f} %  {milliseconds:.2f} ms a frame")


def cumulative(stats: pstats.Stats, function: Callable) -> float:
    """Seconds in a function and everything it calls."""
    code = function.__code__
    key = (code.co_filename, code.co_firstlineno, code.co_name)
    return stats.stats.get(key, (0, 0, 0, 0.0))[3]  # type: ignore[attr-defined]


def workers(clips: ClipDataset, count: int, num_workers: int) -> None:
    """The joint speed of the data loader's processes, without their start: they are as far ahead
    when the clock starts as when it stops."""
    batches = clip_batches(clips, BatchNumbers(0, len(clips), 1), num_workers)
    count = max(count, 4 * PREFETCH * num_workers)
    for _ in range(PREFETCH * num_workers):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    seconds = time.perf_counter() - start
    frames = clips.config.num_frames
    print(
        f"{num_workers} workers: {count / seconds:.1f} clips/s, {count * frames / seconds:.0f} "
        f"frames/s, {count * frames / seconds / num_workers:.0f} frames/s per worker"
    )


if __name__ == "__main__":
    main()
