"""How fast a stage trains here, and where the time goes: python scripts/bench_training.py

Takes the settings of train.py: stage=video model=convvit_b precision=bf16 compile=true ...

By default the clips are already in memory (noise of the stage's size), so that only the network is
measured; --data loads the stage's own clips and reports the share of time spent waiting for them.
--count runs nothing: FLOPs per clip, and the stage's hours at a share of an H100's peak.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from stma.compose import load_resolved
from stma.data.config import DatasetConfig
from stma.errors import input_errors_end_the_program
from stma.model.factory import build_model
from stma.runtime.cards import PEAKS, peak_rate
from stma.runtime.config import parse_config
from stma.runtime.device import device_name, peak_gigabytes, resolve_device, resolve_precision
from stma.structures import ClipBatch
from stma.training.config import TrainConfig
from stma.training.dry_run import count_flops, random_batch
from stma.training.learner import Learner
from stma.training.trainer import Trainer

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
WARM_UP = 3  # steps
SHARE = 0.35  # of the peak, for --count


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="settings of train.py")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--count", action="store_true", help="only FLOPs, on any machine")
    parser.add_argument("--data", action="store_true", help="load the stage's own clips")
    arguments = parser.parse_intermixed_args()
    if arguments.steps < 1:
        parser.error("give 1 step or more")
    config = parse_config(TrainConfig, load_resolved(CONFIGS, "train", arguments.overrides))
    name, stage = config.only_stage()
    if not arguments.data:  # nothing is read then, so nothing need exist
        data = replace(stage.data, sources={"noise": DatasetConfig(kind="procedural")})
        stage = replace(stage, data=data)
    config = replace(config, stages={name: stage}, resume=False)
    device = resolve_device(config.device)
    trainer = Trainer(config, name, device)
    if arguments.count:
        print_count(trainer)
        return
    learner = Learner(config, stage, device, weights=config.weights)
    data = stage.data
    print(
        f"{name} on {device_name(device)}: {stage.batch_size} clips of {data.num_frames} frames of "
        f"{data.height} x {data.width}, {data.max_objects} objects, precision {config.precision}, "
        f"{'' if config.compile else 'not '}compiled, torch {torch.__version__}"
    )
    flops = count_flops(learner.model, random_batch(stage, 1, device), stage.loss)
    learner.model.checkpoint_blocks(config.checkpoint_blocks)
    seconds, waiting = measure(trainer, learner, arguments.steps, arguments.data)
    rate = arguments.steps / seconds
    print(f"{rate:.3f} iterations/s, {rate * stage.batch_size:.2f} clips/s")
    print(f"{100 * waiting / seconds:.0f} % of the time waiting for data")
    print(f"{peak_gigabytes(device):.1f} GB at the peak")
    print(f"{flops / 1e12:.3f} TFLOPs a clip, forward and backward")
    achieved = flops * rate * stage.batch_size
    share = ""
    if device.type == "cuda":
        peak = peak_rate(device_name(device), resolve_precision(device, config.precision))
        share = f", {100 * achieved / peak:.0f} % of the peak" if peak else ", peak unknown"
    print(f"{achieved / 1e12:.2f} TFLOP/s{share}")
    print(f"{stage.iterations} iterations would take {stage.iterations / rate / 3600:.0f} hours")


def print_count(trainer: Trainer) -> None:
    """What the stage costs, on the meta device."""
    meta = torch.device("meta")
    with meta:
        model = build_model(trainer.config.model)
    stage = trainer.stage
    flops = count_flops(model, random_batch(stage, 1, meta), stage.loss)
    seconds = flops * stage.batch_size * stage.iterations / (SHARE * PEAKS["H100"])
    print(f"{trainer.name}: {flops / 1e12:.2f} TFLOPs a clip, forward and backward")
    print(
        f"{stage.iterations} iterations of {stage.batch_size} clips: {seconds / 3600:.1f} hours on "
        f"one H100 at {100 * SHARE:.0f} % of its peak (not measured)"
    )


def measure(trainer: Trainer, learner: Learner, steps: int, loaded: bool) -> tuple[float, float]:
    """Seconds of ``count`` steps, and how many of them were spent waiting for data."""
    accumulate = trainer.config.accumulate
    batches = trainer.batches() if loaded else None  # ends with this function
    noise = random_batch(trainer.stage, trainer.numbers(0).part, trainer.device)
    waiting, start = 0.0, time.perf_counter()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            synchronize(trainer.device)
            if trainer.device.type == "cuda":  # counting FLOPs keeps more than training does
                torch.cuda.reset_peak_memory_stats(trainer.device)
            waiting, start = 0.0, time.perf_counter()
        parts: list[ClipBatch] = []
        for _ in range(accumulate):
            before = time.perf_counter()
            clip = next(batches) if batches is not None else noise
            waiting += time.perf_counter() - before
            parts.append(clip.to(trainer.device))
        learner.step(parts, step, progress=0.5)
    synchronize(trainer.device)
    return time.perf_counter() - start, waiting


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
