"""Measure a card in one command: make gpu, or python scripts/gpu_report.py

Runs the tests for cards, compares the card with the CPU, times videos and training, compares memory
with the estimate on paper, trains experiment=small for some minutes (given --datasets), and writes
docs/gpu.md with a roofline. It may be interrupted: each measurement is kept in --output, and the
same command makes the missing ones. --rehearse runs every part at toy size on the CPU.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from stma.compose import load_model_config, load_resolved
from stma.data.config import DatasetConfig
from stma.data.procedural import procedural_clip
from stma.data.scene import SceneConfig
from stma.errors import InputError, input_errors_end_the_program
from stma.inference import segmenter as segmenter_module
from stma.inference.footprint import video_bytes
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.cost import count_cost
from stma.model.factory import ModelConfig, build_model
from stma.model.stma import STMA
from stma.model.weights import load_model
from stma.runtime.cards import bandwidth, peak_rate
from stma.runtime.config import parse_config
from stma.runtime.device import (
    autocast,
    device_name,
    peak_gigabytes,
    reset_peak,
    resolve_device,
)
from stma.runtime.footprint import on_paper, put_on
from stma.runtime.provenance import versions
from stma.training.config import TrainConfig
from stma.training.dry_run import count_flops, random_batch, training_bytes
from stma.training.learner import Learner, release_memory
from stma.training.leaving import EXIT_PREEMPTED
from stma.training.losses import LossConfig, clip_loss

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
USABLE = 0.9  # share of a card's memory that training may use


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        models: the most important first.
        modes: of ``segmenter.compile``: captured, and compiled.
        size, frames: of the videos.
        stages, overrides, steps: of training.
        small: arguments of train.py for the last part, and its longest duration in minutes.
        minutes: of all parts; those missing then are left to the next call.
    """

    models: tuple[str, ...]
    objects: tuple[int, ...]
    modes: tuple[str, ...]
    size: tuple[int, int]
    frames: int
    stages: tuple[str, ...]
    overrides: tuple[str, ...]
    steps: int
    tests: tuple[str, ...]
    small: tuple[str, ...]
    small_minutes: float
    minutes: float


FULL = Scale(
    models=("convvit_b", "convvit_s", "convvit_t", "convvit_xs", "vit_b"),
    objects=(1, 3, 10),
    modes=("reduce-overhead", "default"),
    size=(480, 854),
    frames=40,
    stages=("static", "bl30k", "video"),
    overrides=("model=convvit_b", "precision=bf16"),
    steps=10,
    tests=(),
    small=(
        "experiment=small",
        "stage=[small_start,small_long]",
        "stages.small_start.max_minutes=3",
        "stages.small_long.max_minutes=6",
    ),
    small_minutes=11,
    minutes=20,
)
TOY = replace(
    FULL,
    models=("convvit_xs", "convvit_t"),
    objects=(1,),
    modes=("default",),
    size=(48, 64),
    frames=4,
    stages=("video",),
    overrides=(
        "model=convvit_xs",
        "precision=fp32",
        "stages.video.batch_size=1",
        "stages.video.data.height=32",
        "stages.video.data.width=32",
        "stages.video.data.num_frames=3",
    ),
    steps=1,
    tests=("tests/test_device.py",),
    minutes=float("inf"),
    small=("experiment=debug", "stages.debug.iterations=2"),
)

MODE_NAMES = {None: "eager", "default": "compiled", "reduce-overhead": "captured"}
Row = dict[str, Any]


class Kept:
    """Rows by name, each saved as soon as it is measured.

    Args:
        deadline: on the monotonic clock; after it, missing rows stay missing.
    """

    def __init__(self, path: Path, deadline: float) -> None:
        self.path, self.deadline = path, deadline
        self.rows: dict[str, Row] = json.loads(path.read_text()) if path.is_file() else {}

    def row(self, name: str, measure: Callable[[], Row], *, late: bool = False) -> None:
        """Measure a row, unless it is done or (except for ``late`` ones) the time is up. The next
        call retries what has failed."""
        done = name in self.rows and "failed" not in self.rows[name]
        if done or (not late and time.monotonic() > self.deadline):
            return
        print(f"{name} ...", flush=True)
        try:
            self.rows[name] = measure()
        except RuntimeError as error:  # reported; the other rows do not depend on it
            self.rows[name] = {"failed": str(error).strip().partition("\n")[0][:200]}
            print(f"{name}: {error}", file=sys.stderr)
        self.path.write_text(json.dumps(self.rows, indent=1))

    def group(self, prefix: str) -> dict[str, Row]:
        """Rows whose names have this prefix, without it."""
        return {n.removeprefix(prefix): r for n, r in self.rows.items() if n.startswith(prefix)}


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gpu"), help="where measurements are kept"
    )
    parser.add_argument(
        "--datasets", help="for experiment=small; without it, that part is left out"
    )
    parser.add_argument("--rehearse", action="store_true", help="toy size, on the CPU")
    arguments = parser.parse_args()
    device = torch.device("cpu") if arguments.rehearse else resolve_device("auto")
    if device.type == "cpu" and not arguments.rehearse:
        raise InputError("no CUDA device found; --rehearse runs every part at toy size on a CPU")
    scale = TOY if arguments.rehearse else FULL
    if arguments.rehearse:
        segmenter_module.BACKEND = "aot_eager"  # inductor needs a C++ compiler
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    trains = bool(arguments.datasets) or arguments.rehearse
    minutes = scale.minutes - scale.small_minutes * trains
    kept = Kept(output / "rows.json", time.monotonic() + 60 * minutes)
    page = output / "gpu.md" if arguments.rehearse else ROOT / "docs" / "gpu.md"
    here = device_name(device)
    measured = kept.rows.get("machine", {}).get("card", here)
    if measured != here:
        raise InputError(
            f"--output: {output} holds figures of {measured}; give another folder for {here}"
        )
    try:
        kept.row("machine", lambda: machine(device))
        kept.row("tests", lambda: run_tests(scale.tests))
        compare_with_cpu(kept, scale, device)
        time_videos(kept, scale, device, scale.models[:1])
        time_training(kept, scale, device)
        time_videos(kept, scale, device, scale.models[1:])
        if trains:
            settings = [*scale.small, f"output={output / 'small'}"]
            settings += [f"datasets={arguments.datasets}"] if arguments.datasets else []
            kept.row("small", lambda: train_small(settings, scale.small_minutes), late=True)
    finally:
        (page.parent / "images").mkdir(exist_ok=True)
        page.write_text(render(kept, arguments.rehearse))
        (page.parent / "images" / "roofline.svg").write_text(roofline(kept))
        print(f"written: {page}")


def machine(device: torch.device) -> Row:
    """Card, driver, versions and date."""
    of_card = {}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
        of_card = {"memory, GB": f"{memory:.1f}", "driver": driver()}
    known = {name: versions()[name] for name in ("stma", "git", "torch", "cuda", "python")}
    return {"card": device_name(device), **of_card, **known, "date": date.today().isoformat()}


def driver() -> str:
    """Its version; not every container has the program that tells."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.split()[0]


def run_tests(paths: tuple[str, ...]) -> Row:
    """The tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *paths]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return {"status": run.returncode, "summary": lines[-1], "failed_tests": failed}


def video(size: tuple[int, int], objects: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and masks of a procedural clip."""
    scene = SceneConfig(min_objects=objects, max_objects=objects)
    rng = np.random.default_rng(0)
    pictures, masks, _ = procedural_clip(scene, size, np.arange(float(frames)), rng)
    return pictures, masks


def compare_with_cpu(kept: Kept, scale: Scale, device: torch.device) -> None:
    """Masks and loss of the shipped network in every precision, compared with the CPU in fp32."""
    pictures, masks = video(scale.size, 2, 6)
    stage = train_config(scale, scale.stages[-1]).stages[scale.stages[-1]]

    def run(model: STMA, precision: str) -> tuple[np.ndarray, float]:
        place = model.mean.device
        segmenter = Segmenter(model, SegmenterConfig(precision=precision, memory_interval=2))
        for t, picture in enumerate(pictures):
            mask = segmenter.step(picture, masks[0] if t == 0 else None).mask
        with torch.no_grad(), autocast(place, precision):
            clip = random_batch(stage, 1, place)
            loss = clip_loss(model(clip), clip, LossConfig(), 0).total
        return mask, float(loss)

    def compare(precision: str) -> Row:
        mask, loss = run(load_model("small", device), precision)
        own, expected = run(load_model("small", "cpu"), "fp32")
        return {
            "pixels_differ_percent": 100 * float((mask != own).mean()),
            "loss_differs_percent": 100 * abs(loss - expected) / expected,
        }

    for precision in ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16"):
        kept.row(f"compare {precision}", partial(compare, precision))


def time_videos(kept: Kept, scale: Scale, device: torch.device, models: Sequence[str]) -> None:
    """Frames/s, and memory compared with the estimate, with random weights; what takes minutes to
    compile comes last."""
    for mode in (None, *scale.modes):
        for name in models:
            config = load_model_config(CONFIGS, name)
            for count in scale.objects:
                row = f"video {name}, {count} object{'s' * (count > 1)}, {MODE_NAMES[mode]}"
                kept.row(row, partial(time_video, config, count, mode, scale, device))


def time_video(
    config: ModelConfig, objects: int, mode: str | None, scale: Scale, device: torch.device
) -> Row:
    """Run a video twice and time the second run, when everything is compiled and kernels chosen."""
    torch.compiler.reset()  # graphs of other models keep these, and memory
    release_memory(device)
    torch.manual_seed(0)
    model = build_model(config).to(device).eval()
    precision = "bf16" if device.type == "cuda" else "fp32"
    settings = SegmenterConfig(precision=precision, compile=mode)
    pictures, masks = video(scale.size, objects, scale.frames)
    for _ in range(2):
        segmenter = Segmenter(model, settings)
        reset_peak(device)
        start = time.perf_counter()
        for t, picture in enumerate(pictures):
            segmenter.step(picture, masks[0] if t == 0 else None)
        seconds = time.perf_counter() - start  # the last mask is on the host
    height, width = scale.size
    padded = (height + -height % 16, width + -width % 16)
    _, costs = count_cost(config, *padded, objects)
    with torch.device("meta"):
        on_meta = build_model(config).eval()
    with on_paper(device) as footprint:
        put_on(on_meta, device)
        paper = Segmenter(on_meta, replace(settings, compile=None))
        for t in range(3):
            before = footprint.moved
            paper.predict(pictures[t], masks[0] if t == 0 else None)
    return {
        "fps": scale.frames / seconds,
        "peak_gb": peak_gigabytes(device),
        "paper_gb": video_bytes(config, settings, height, width, objects, device) / 1e9,
        "flops": 1e9 * costs["frame"],
        "bytes": footprint.moved - before,
    }


def train_config(scale: Scale, stage: str) -> TrainConfig:
    """The settings for one stage, on noise."""
    overrides = ["output=unused", f"stage={stage}", *scale.overrides]
    config = parse_config(TrainConfig, load_resolved(CONFIGS, "train", overrides, ""))
    data = replace(config.stages[stage].data, sources={"noise": DatasetConfig(kind="procedural")})
    return replace(config, stages={stage: replace(config.stages[stage], data=data)})


def time_training(kept: Kept, scale: Scale, device: torch.device) -> None:
    """Iterations/s, the share of the peak, memory compared with the estimate, and a profile."""
    for stage in scale.stages:
        kept.row(
            f"training {stage}",
            partial(time_stage, train_config(scale, stage), stage, scale.steps, device),
        )


def time_stage(config: TrainConfig, name: str, steps: int, device: torch.device) -> Row:
    """With the stage's batch in as many parts as memory requires, by the estimate."""
    stage, parts = config.stages[name], 1
    if device.type == "cuda":
        room = USABLE * torch.cuda.get_device_properties(device).total_memory
        while (
            parts < stage.batch_size
            and training_bytes(config, stage, stage.batch_size // parts, device) > room
        ):
            parts *= 2
    config = replace(config, accumulate=parts)
    clips = stage.batch_size // parts
    learner = Learner(config, stage, device)
    batch = random_batch(stage, clips, device)
    flops = count_flops(learner.model, random_batch(stage, 1, device), stage.loss) * clips * parts
    learner.model.checkpoint_blocks(config.checkpoint_blocks)
    learner.step([batch] * parts, 0, 0.5)  # kernels are chosen
    reset_peak(device)
    start = time.perf_counter()
    for step in range(steps):
        learner.step([batch] * parts, step, 0.5)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    rate = steps / (time.perf_counter() - start)
    peak_gb = peak_gigabytes(device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        learner.step([batch] * parts, 0, 0.5)
    spent = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rated = peak_rate(device_name(device), config.precision)
    del learner
    release_memory(device)
    return {
        "iterations_per_second": rate,
        "clips": clips * parts,
        "parts": parts,
        "tflops_per_second": flops * rate / 1e12,
        "percent_of_peak": 100 * flops * rate / rated if rated else None,
        "peak_gb": peak_gb,
        "paper_gb": training_bytes(config, stage, clips, device) / 1e9,
        "top": busiest(profiler.key_averages(), spent),
    }


def busiest(events: Iterable[Any], spent: str) -> list[list[Any]]:
    """The ten operators that take most of the time, and their shares in percent.

    Args:
        events: a profile's averages. Kernels are listed beside the operators that start them, with
            the same time once more.
        spent: which of their times.
    """
    times = {e.key: getattr(e, spent) for e in events if e.device_type == DeviceType.CPU}
    total = sum(times.values())
    first = sorted(times, key=lambda key: -times[key])[:10]
    return [[key[:60], 100 * times[key] / total] for key in first]


def train_small(settings: list[str], minutes: float) -> Row:
    """Run train.py for some minutes; returns the end of its log."""
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        text, _ = run.communicate(timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        run.terminate()  # it saves
        text, _ = run.communicate()
    lines = text.decode(errors="replace").replace("\r", "\n").strip().splitlines()
    validations = [line for line in lines if "validation J&F" in line]
    return {"status": run.returncode, "last": lines[-1:], "validations": validations}


def render(kept: Kept, rehearsal: bool) -> str:
    """The page."""
    about = kept.rows.get("machine", {})
    lines = ["# On a GPU", ""]
    if rehearsal:
        lines += ["**A rehearsal at toy size on a CPU: these figures mean nothing.**", ""]
    lines += [
        "Written by `make gpu`; the same command adds what is missing. Random weights, noise and "
        "procedural clips: the work does not depend on the pixels.",
        "",
    ]
    if not rehearsal:
        lines += [
            "Videos of 480 x 854 and training in bf16. The aims on an H100: 100 frames/s with "
            "ConvViT-B and 3 objects, and 40 % of the peak in the video stage.",
            "",
        ]
    lines += [
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in about.items()),
        "",
    ]
    if tests := kept.rows.get("tests"):
        lines += ["## Tests marked `gpu`", "", f"`{tests['summary']}`", ""]
        lines += [f"- `{line}`" for line in tests["failed_tests"]] + [""]
    lines += section(
        "The shipped network, compared with the CPU in fp32",
        ["precision", "pixels that differ, %", "loss differs by, %"],
        kept.group("compare "),
        ["pixels_differ_percent", "loss_differs_percent"],
    )
    lines += videos(kept.group("video "))
    training = kept.group("training ")
    lines += section(
        "Training",
        [
            "stage",
            "iterations/s",
            "clips",
            "parts",
            "TFLOP/s",
            "% of peak",
            "peak, GB",
            "paper, GB",
        ],
        training,
        [
            "iterations_per_second",
            "clips",
            "parts",
            "tflops_per_second",
            "percent_of_peak",
            "peak_gb",
            "paper_gb",
        ],
    )
    for name, row in training.items():
        if "top" in row:
            lines += [
                f"Where a step of `{name}` spends its time:",
                "",
                "| % | what |",
                "|---|---|",
            ]
            lines += [f"| {share:.1f} | `{what}` |" for what, share in row["top"]] + [""]
    if small := kept.rows.get("small"):
        told = small["validations"] or small["last"]
        if small["status"] not in (0, EXIT_PREEMPTED):
            told = [f"ended with status {small['status']}", *small["last"]]
        lines += ["## Some minutes of experiment=small", "", *(f"`{line}`  " for line in told), ""]
    lines += ["## Roofline", "", "![Frames on the card's roofline](images/roofline.svg)", ""]
    return "\n".join(lines)


def section(title: str, head: list[str], rows: dict[str, Row], keys: list[str]) -> list[str]:
    """A table, or nothing without rows; what has failed is told below it."""
    cells = {
        name: ["failed"] + [""] * (len(keys) - 1)
        if "failed" in row
        else [shown(row[key]) for key in keys]
        for name, row in rows.items()
    }
    return table(title, head, [[name, *row] for name, row in cells.items()]) + failures(rows)


def videos(rows: dict[str, Row]) -> list[str]:
    """A table with a row for each model and number of objects, whatever the mode."""
    by_mode: dict[str, dict[str, Row]] = {}
    for name, row in rows.items():
        what, mode = name.rsplit(", ", 1)
        by_mode.setdefault(what, {})[mode] = row
    modes = list(MODE_NAMES.values())
    lines = []
    for what, measured in by_mode.items():
        speeds = [
            "failed"
            if "failed" in measured.get(mode, {})
            else shown(measured[mode]["fps"])
            if mode in measured
            else ""
            for mode in modes
        ]
        eager = measured.get("eager", {})
        lines.append([what, *speeds, shown(eager.get("peak_gb")), shown(eager.get("paper_gb"))])
    head = ["model, objects", *(f"{mode}, frames/s" for mode in modes)]
    head += ["peak of eager, GB", "on paper, GB"]
    return table("Videos", head, lines) + failures(rows)


def failures(rows: dict[str, Row]) -> list[str]:
    found = [f"- {name} failed: `{row['failed']}`" for name, row in rows.items() if "failed" in row]
    return [*found, ""] if found else []


def table(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [f"## {title}", "", lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def shown(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 or isinstance(value, int) else f"{value:.3g}"


def roofline(kept: Kept) -> str:
    """An SVG: FLOP/s of the videos against the FLOPs per byte that unfused kernels move."""
    card = kept.rows.get("machine", {}).get("card", "")
    points = [
        (name, row["flops"] / row["bytes"], row["flops"] * row["fps"])
        for name, row in kept.group("video ").items()
        if "fps" in row
    ]
    peak, speed = peak_rate(card, "bf16"), bandwidth(card)
    rates = [rate for _, _, rate in points] or [1e12]
    lowest = np.floor(np.log10(min(rates)))
    highest = max(lowest + 1, np.ceil(np.log10(max(*rates, peak or 0))))
    ratios = [ratio for _, ratio, _ in points] or [1.0]
    first, last = np.floor(np.log10(min(ratios))), np.ceil(np.log10(max(*ratios, 999)))
    width, height, left, bottom, top, right = 780, 460, 110, 50, 40, 90

    def x(ratio: float) -> float:
        return left + (width - left - right) * (np.log10(ratio) - first) / (last - first)

    def y(rate: float) -> float:
        share = (np.log10(rate) - lowest) / (highest - lowest)
        return height - bottom - (height - bottom - top) * share

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for e in np.arange(lowest, highest + 1):
        at = y(10.0**e)
        parts.append(f'<path d="M{left} {at:.0f}H{width - right}" stroke="#ddd"/>')
        parts.append(text(left - 8, at + 4, f"{10 ** (e - 12):g} TFLOP/s", 'text-anchor="end"'))
    for e in np.arange(first, last + 1):
        at = x(10.0**e)
        parts.append(f'<path d="M{at:.0f} {top}V{height - bottom}" stroke="#eee"/>')
        parts.append(text(at, height - bottom + 18, f"{10.0**e:g}", 'text-anchor="middle"'))
    caption = "FLOPs per byte that kernels move, if none are fused"
    parts.append(text((left + width - right) / 2, height - 12, caption, 'text-anchor="middle"'))
    if peak and speed:
        ends = (max(10.0**first, 10.0**lowest / speed), peak / speed, 10.0**last)
        line = " ".join(f"{x(i):.0f},{y(min(peak, speed * i)):.0f}" for i in ends)
        parts.append(f'<polyline points="{line}" fill="none" stroke="black"/>')
        limits = f"{peak / 1e12:g} TFLOP/s, {speed / 1e12:g} TB/s"
        parts.append(text(width - right, y(peak) - 6, limits, 'text-anchor="end"'))
    colors = dict(zip(MODE_NAMES.values(), ("#888", "#37c", "#c33"), strict=True))
    parts.append(text(left, 18, f"Videos on {card}:"))
    for number, (mode, color) in enumerate(colors.items()):
        at = left + 260 + 90 * number
        parts.append(f'<circle cx="{at}" cy="14" r="4" fill="{color}"/>' + text(at + 8, 18, mode))
    for name, ratio, rate in points:
        parts.append(
            f'<circle cx="{x(ratio):.0f}" cy="{y(rate):.0f}" r="4" '
            f'fill="{colors[name.rsplit(", ", 1)[1]]}">'
            f"<title>{name}: {rate / 1e12:.3g} TFLOP/s</title></circle>"
        )
    # A model's name to the right of its points; one that would hide another is moved down.
    corners: dict[str, tuple[float, float]] = {}
    for name, ratio, rate in points:
        model = name.split(",")[0]
        right_of, above = corners.get(model, (0.0, np.inf))
        corners[model] = (max(right_of, x(ratio) + 8), min(above, y(rate) + 4))
    placed: list[tuple[float, float]] = []
    for model, (at, down) in sorted(corners.items(), key=lambda each: each[1][1]):
        while any(abs(at - other) < 70 and abs(down - line) < 13 for other, line in placed):
            down += 1
        placed.append((at, down))
        parts.append(text(at, down, model))
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main()
