"""How fast this machine is, as one Markdown table: python scripts/benchmark.py [SECTION ...]

video      frames/s of networks by number of objects, on made-up frames; --against compares settings
command    stma segment: of one frame; a later frame, compared with the network alone
training   a step of every stage of --train, on noise: time, memory and FLOPs
loader     clips of the first stage of --train (default: procedural), in one process and in workers

All of them, if none is named. A time is a median over --rounds. Rows of one comparison are measured
in turns; "ratio" is a row's time divided by that of the comparison's first row, the median over the
rounds, of CPU time on a CPU and of wall time on a GPU. A network's name from configs/model instead
of weights takes random ones.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from stma.compose import load_model_config, load_resolved, model_names
from stma.data.config import DatasetConfig
from stma.data.dataset import ClipDataset, clip_batches
from stma.data.pictures import save_mask, write_video
from stma.data.procedural import procedural_clip
from stma.data.sampling import BatchNumbers
from stma.data.scene import SceneConfig
from stma.errors import InputError, input_errors_end_the_program
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.factory import build_model
from stma.model.stma import STMA
from stma.model.weights import load_model
from stma.runtime.config import parse_config
from stma.runtime.device import device_name, peak_gigabytes, reset_peak, resolve_device
from stma.runtime.provenance import versions
from stma.training.config import TrainConfig
from stma.training.dry_run import count_flops, random_batch
from stma.training.learner import Learner, release_memory

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
WARM_UP = 12  # frames, in which both memories are written and read
PEERS = {  # CPU seconds a frame, with random weights, in turns; `small` took 0.11-0.13
    "EfficientTAM-S, 512 x 512": "1.1-1.2",
    "Cutie-small": "1.3",
    "Cutie-base": "1.4-1.6",
    "XMem": "2.5-3.4",
    "EdgeTAM": "3.0",
    "EfficientTAM-Ti": "7.0",
    "SAM 2.1 tiny": "8.7",
}
MEASURED = "480p, 1 object, fp32, as measured 2026-11-30 on two cores of a Xeon with AMX"
AGAINST = "segmenter settings to compare with the network's own; may be given several times"
HEADER = ["", "per second", "wall s", "CPU s", "ratio", "peak GB", ""]
Clip = tuple[np.ndarray, np.ndarray]  # frames, and the mask of the first


@dataclass
class Row:
    """A row of the table. Seconds are those of a frame, a step or a clip."""

    what: str
    wall: float | None = None
    cpu: float | str | None = None
    ratio: float | None = None
    memory: float | None = None
    remark: str = ""

    def __str__(self) -> str:
        figures = (self.wall and 1 / self.wall, self.wall, self.cpu, self.ratio, self.memory)
        return f"| {' | '.join([self.what, *map(shown, figures), self.remark])} |"


def shown(figure: float | str | None) -> str:
    """Three significant digits, without an exponent."""
    if figure is None or isinstance(figure, str):
        return figure or ""
    return f"{figure:.0f}" if figure >= 100 else f"{figure:#.3g}"


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    add("--model", nargs="+", help="weights, or networks of configs/model")
    add("--size", type=int, nargs=2, default=(480, 854), metavar=("HEIGHT", "WIDTH"))
    add("--objects", type=int, nargs="+", default=[1, 10, 40])
    add("--frames", type=int, default=40, help="of a video")
    add("--against", nargs="+", action="append", default=[], metavar="KEY=VALUE", help=AGAINST)
    add("--train", nargs="+", metavar="KEY=VALUE", help="settings of train.py")
    add("--count", type=int, default=10, help="training steps, and clips to load, in a round")
    add("--rounds", type=int, default=3)
    add("--device", default="auto")
    add("--output", type=Path, help="a Markdown page to write, too")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if min(arguments.frames - 1, arguments.count, arguments.rounds) < 1:
        parser.error("give 2 or more frames, and 1 or more of the others")
    device = resolve_device(arguments.device)
    arguments.model = arguments.model or ["small", "convvit_b"][: 1 + (device.type == "cuda")]
    machine = f"{device_name(device)}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"
    state = f"load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, {versions()['git']}"
    lines = [f"{machine}, {state}, {date.today()}", "", f"|{'|'.join(HEADER)}|"]
    lines.append("|---" * len(HEADER) + "|")
    print("\n".join(lines), flush=True)
    for name in arguments.sections or SECTIONS:
        for row in SECTIONS[name](arguments, device):
            lines.append(str(row))
            print(row, flush=True)
    if arguments.output is not None:
        title = ["# What was measured here", "", f"`{' '.join(sys.argv)}`", ""]
        arguments.output.write_text("\n".join([*title, *lines, ""]), encoding="utf-8")


def timed(work: Callable[[], object], count: int, device: torch.device) -> np.ndarray:
    """Wall and CPU seconds of each of ``count`` things, and the peak of memory in GB."""
    reset_peak(device)
    start = np.array([time.perf_counter(), time.process_time()])
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = np.array([time.perf_counter(), time.process_time()]) - start
    return np.array([*seconds / count, peak_gigabytes(device)])


def in_turns(
    works: Mapping[str, Callable[[], np.ndarray]], rounds: int, device: torch.device
) -> list[Row]:
    """Rows of things that are compared with the first of them; each returns as :func:`timed`."""
    measured = np.array([[work() for work in works.values()] for _ in range(rounds)])
    kind = 0 if device.type == "cuda" else 1
    ratios = np.median(measured[:, :, kind] / measured[:, :1, kind], axis=0)
    return [
        Row(name, wall, cpu, ratio if number else None, memory)
        for number, (name, (wall, cpu, memory), ratio) in enumerate(
            zip(works, np.median(measured, axis=0), ratios, strict=True)
        )
    ]


def get_model(name: str, device: torch.device) -> STMA:
    if name not in model_names(CONFIGS):
        return load_model(name, device)
    torch.manual_seed(0)
    return build_model(load_model_config(CONFIGS, name)).to(device).eval()


def made_up(size: Sequence[int], objects: int, frames: int) -> Clip:
    radius = 0.24 / objects**0.5
    scene = SceneConfig(objects, objects, min_radius=radius, max_radius=radius, leave=0)
    times, rng = np.arange(float(frames)), np.random.default_rng(0)
    pictures, masks, _ = procedural_clip(scene, (size[0], size[1]), times, rng)
    return pictures, masks[0]


def play(model: STMA, settings: SegmenterConfig, clip: Clip) -> list[np.ndarray]:
    segmenter, (frames, first) = Segmenter(model, settings), clip
    return [segmenter.step(frame, None if t else first).mask for t, frame in enumerate(frames)]


def video(arguments: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    size, frames, rounds = arguments.size, arguments.frames, arguments.rounds
    clips = {count: made_up(size, count, frames) for count in arguments.objects}
    first = next(iter(clips))
    for name in arguments.model:
        model = get_model(name, device)
        own = SegmenterConfig(**model.segmenter_settings)

        def work(settings: SegmenterConfig, count: int, model: STMA = model) -> np.ndarray:
            return timed(lambda: play(model, settings, clips[count]), frames, device)

        for pictures, mask in clips.values():  # kernels are chosen, and lazy parts set up
            play(model, own, (pictures[:WARM_UP], mask))
        what = f"{name}, {size[0]} x {size[1]}, objects: "
        works = {f"{what}{count}": partial(work, own, count) for count in clips}
        yield from in_turns(works, rounds, device)
        for given in arguments.against:
            settings = OmegaConf.merge(asdict(own), OmegaConf.from_dotlist(given))
            changed = parse_config(SegmenterConfig, settings, "--against")  # type: ignore[arg-type]
            masks, expected = (play(model, each, clips[first]) for each in (changed, own))
            pair = {each: partial(work, to, first) for each, to in (("own", own), (name, changed))}
            remark = f"{100 * np.not_equal(masks, expected).mean():.3f} % of the pixels differ"
            row = in_turns(pair, rounds, device)[1]
            yield replace(row, what=" ".join(given), remark=remark)
    yield from (Row(name, cpu=cpu, remark=MEASURED) for name, cpu in PEERS.items())


def command(arguments: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    name, model = arguments.model[0], load_model(arguments.model[0], device)
    pictures, mask = made_up(arguments.size, 1, arguments.frames)
    settings = SegmenterConfig(**model.segmenter_settings)
    starts: list[np.ndarray] = []

    def alone() -> np.ndarray:
        return timed(lambda: play(model, settings, (pictures, mask)), len(pictures), device)

    with tempfile.TemporaryDirectory() as root:
        save_mask(Path(root, "first.png"), mask)
        for count in (1, len(pictures)):
            write_video(Path(root, f"{count}.mp4"), pictures[:count])

        def whole(count: int) -> np.ndarray:
            typed = [sys.executable, "-m", "stma", "segment", f"{count}.mp4", f"--device={device}"]
            typed += ["--mask=first.png", f"--weights={name}", f"-o={tempfile.mkdtemp(dir=root)}"]
            start = time.perf_counter()
            with Path(root, "log").open("w") as log:
                process = subprocess.Popen(typed, cwd=root, stdout=log, stderr=log)
                _, status, usage = os.wait4(process.pid, 0)
            wall, memory = time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9
            if status:
                raise InputError(f"stma segment: {Path(root, 'log').read_text()}")
            return np.array([wall, usage.ru_utime + usage.ru_stime, memory])

        def later() -> np.ndarray:
            starts.append(whole(1))
            all_frames = whole(len(pictures))
            return np.array([*(all_frames - starts[-1])[:2] / (len(pictures) - 1), all_frames[2]])

        works = {f"{name}, the network alone": alone, "stma segment, a later frame": later}
        rows = in_turns(works, arguments.rounds, device)
    yield Row("stma segment of one frame", *np.median(starts, axis=0)[:2])
    yield from rows


def train_config(overrides: Sequence[str]) -> TrainConfig:
    config = load_resolved(CONFIGS, "train", ["output=unused", *overrides], " ".join(overrides))
    return parse_config(TrainConfig, config)


def training(arguments: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    small = ["experiment=small", "stages.shipped_distill.teacher=unread"]
    default = {"cpu": small, "cuda": ["stage=[static,video]"]}
    config = train_config(arguments.train or default[device.type])
    # Without stages that learn from a teacher, whose weights they would read.
    for name, stage in ((n, s) for n, s in config.stages.items() if s.teacher is None):
        data = replace(stage.data, sources={"noise": DatasetConfig(kind="procedural")})
        stage = replace(stage, data=data)  # nothing is read, so that no data set need be there
        learner = Learner(replace(config, stages={name: stage}), stage, device)
        flops = count_flops(learner.model, random_batch(stage, 1, device), stage.loss)
        learner.model.checkpoint_blocks(config.checkpoint_blocks)
        batch = random_batch(stage, max(1, stage.batch_size // config.accumulate), device)

        def steps(count: int, step: Callable = learner.step, batch: object = batch) -> None:
            for number in range(count):
                step([batch] * config.accumulate, number, progress=0.5)

        steps(1)
        work = partial(timed, partial(steps, arguments.count), arguments.count, device)
        what = f"training {name}, {stage.batch_size} clips of {data.num_frames} x {data.height}"
        (row,) = in_turns({f"{what} x {data.width}": work}, arguments.rounds, device)
        hours = stage.iterations * (row.wall or 0) / 3600
        yield replace(row, remark=f"{flops / 1e12:.3f} TFLOPs a clip; the stage: {hours:.1f} hours")
        del learner, work, steps, batch
        release_memory(device)


def loader(arguments: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    config = train_config(arguments.train or ["experiment=demo"])
    name, data = next((name, stage.data) for name, stage in config.stages.items())
    what = f"loading {name}, clips of {data.num_frames} x {data.height} x {data.width}"
    cpu, count = torch.device("cpu"), arguments.count
    for workers in (0, os.cpu_count() or 1):
        clips = ClipDataset(data, count * (arguments.rounds + 1), config.seed)
        batches = clip_batches(clips, BatchNumbers(0, len(clips), 1), workers)

        def load(loaded: Iterator = batches) -> list:
            return list(islice(loaded, count))

        work = partial(timed, load, count, cpu)
        work()
        (row,) = in_turns({what: work}, arguments.rounds, cpu)
        remark = f"{workers} workers, whose CPU time is not counted" if workers else ""
        yield replace(row, cpu=None if workers else row.cpu, memory=None, remark=remark)


SECTIONS: dict[str, Callable[[argparse.Namespace, torch.device], Iterator[Row]]] = {
    "video": video,
    "command": command,
    "training": training,
    "loader": loader,
}

if __name__ == "__main__":
    main()
