"""What `stma segment` costs besides the network, measuring both sides alternately in one run.

overlap   masks and overlay of a video, against the network alone on the same frames in memory, and
          each part of that by itself
start     time from typing the command to the first mask on disk
memory    memory of the command along procedural videos of several lengths, with a tiny network
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stma.data.images import read_mask
from stma.data.pictures import save_mask, save_picture, write_video
from stma.errors import input_errors_end_the_program
from stma.inference.segmenter import Segmenter
from stma.model.factory import ModelConfig, build_model
from stma.model.stma import STMA
from stma.model.weights import load_model, save_weights
from stma.runtime.device import device_name, resolve_device
from stma.video.reading import Video, VideoFrameAt, open_video
from stma.video.segmenting import Order, find_masks, segment_video
from stma.video.writing import OUTPUTS, MaskWriter, Writer

TINY = ModelConfig(dims=[8, 12, 16], depths=[1, 1, 3], num_heads=2, value_widths=[8, 8, 16],
                   value_depth=1, decoder_widths=[16, 8])  # fmt: skip


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("overlap", "start", "memory"))
    parser.add_argument("video", nargs="?", type=Path, help="for overlap and start")
    parser.add_argument("--mask", help="of the video's first frame")
    parser.add_argument("--weights", default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", default="masks,overlay", help="what overlap writes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[300, 10_000], help="for memory")
    parser.add_argument(
        "--pictures", action="store_true", help="for memory: folders of JPEGs, not video files"
    )
    arguments = parser.parse_args()
    if arguments.what != "memory" and (arguments.video is None or arguments.mask is None):
        parser.error(f"{arguments.what} needs VIDEO and --mask")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "memory":
            bench_memory(Path(folder), arguments.frames, arguments.pictures)
        elif arguments.what == "start":
            for _ in range(arguments.rounds):
                bench_start(Path(folder), arguments)
        else:
            bench_overlap(Path(folder), arguments)


class Laps:
    """CPU and wall-clock time of a run without its first frame, which includes lazy set-up."""

    def __init__(self) -> None:
        self.begun: tuple[float, float] | None = None

    def __call__(self) -> None:
        self.begun = self.begun or (time.process_time(), time.perf_counter())

    def taken(self) -> np.ndarray:
        assert self.begun is not None
        return np.array([time.process_time(), time.perf_counter()]) - self.begun


def bench_overlap(folder: Path, arguments: argparse.Namespace) -> None:
    video = open_video(arguments.video)
    device = resolve_device(arguments.device)
    model = load_model(arguments.weights, device)
    masks = find_masks(video, [arguments.mask])
    frames = list(video.frames())
    images = [frame.image for frame in frames]
    print(f"{device_name(device)}, {torch.get_num_threads()} threads; {len(images)} frames of "
          f"{video.size[1]} x {video.size[0]}")  # fmt: skip
    rows = []
    for number in range(arguments.rounds):
        alone, predicted = network_alone(model, images, arguments.mask)
        order = Order(
            video,
            masks,
            folder / str(number),
            weights=arguments.weights,
            device=arguments.device,
            save=arguments.save.split(","),
        )
        laps = Laps()
        segment_video(order, on_frame=laps)
        rows.append((alone, laps.taken()))
    per_frame = np.median(np.array(rows), axis=0) / (len(images) - 1) * 1000
    shares = [100 * (whole / alone - 1) for alone, whole in rows]
    for kind, name in enumerate(("CPU seconds", "wall-clock")):
        middle = statistics.median(share[kind] for share in shares)
        print(
            f"{name:12s} network alone {per_frame[0, kind]:7.1f} ms a frame, the command "
            f"{per_frame[1, kind]:7.1f}: {middle:+.1f} % "
            f"({', '.join(f'{share[kind]:+.1f}' for share in shares)})"
        )
    parts: dict[str, Callable[[], object]] = {"reading": lambda: sum(1 for _ in video.frames())}
    outputs: dict[str, tuple[str, Callable[[Path, Video], Writer]]] = {
        "masks": ("masks", MaskWriter),
        **OUTPUTS,
    }
    for output in dict.fromkeys(("masks", *order.save)):  # masks are always written
        name, make = outputs[output]
        new = partial(make, folder / "parts" / name, video)
        parts[f"writing {output}"] = partial(write_all, new, frames, predicted)
    total = 0.0
    for name, part in parts.items():
        taken = min(cpu_seconds(part) for _ in range(arguments.rounds)) / len(frames) * 1000
        total += 100 * taken / per_frame[0, 0]
        print(f"{name:16s} by itself {taken:5.1f} ms of CPU time a frame; so far "
              f"{total:.1f} % of the network's")  # fmt: skip


def write_all(
    new: Callable[[], Writer], frames: list[VideoFrameAt], masks: list[np.ndarray]
) -> None:
    writer = new()
    for frame, mask in zip(frames, masks, strict=True):
        writer.write(frame, mask)
    writer.close()


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def network_alone(
    model: STMA, images: list[np.ndarray], path: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """See :class:`Laps`; and the masks."""
    segmenter = Segmenter(model)
    masks = []
    laps = Laps()
    for number, image in enumerate(images):
        given = read_mask(Path(path))[0] if number == 0 else None
        masks.append(segmenter.step(image, given, last=number + 1 == len(images)).mask)
        laps()
    return laps.taken(), masks


def bench_start(folder: Path, arguments: argparse.Namespace) -> None:
    output = Path(tempfile.mkdtemp(dir=folder)) / "out"
    command = [sys.executable, "-m", "stma", "segment", str(arguments.video)]
    command += [f"--mask={arguments.mask}", f"--weights={arguments.weights}"]
    command += [f"--device={arguments.device}", f"--output={output}"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list((output / "masks").glob("*.png")) and process.poll() is None:
        time.sleep(0.01)
    wall = time.perf_counter() - start
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")")[1].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    process.send_signal(signal.SIGTERM)
    process.wait()
    print(f"first mask on disk after {wall:.1f} s, {cpu:.1f} s of CPU time; load "
          f"{os.getloadavg()[0]:.1f}")  # fmt: skip


def bench_memory(folder: Path, lengths: list[int], pictures: bool) -> None:
    torch.manual_seed(0)
    save_weights(folder / "tiny.safetensors", build_model(TINY), TINY, {})
    height, width = 96, 128
    mask = np.zeros((height, width), np.uint8)
    mask[30:60, 30:60] = 1
    save_mask(folder / "first.png", mask)
    noise = np.random.default_rng(0).integers(0, 256, (height, 2 * width, 3), np.uint8)
    for length in lengths:
        clip = folder / (f"{length}-frames" if pictures else f"{length}.mp4")
        frames = (noise[:, t % width :][:, :width] for t in range(length))
        if pictures:
            clip.mkdir()
            for number, frame in enumerate(frames):
                save_picture(clip / f"{number:05d}.jpg", frame)
        else:
            write_video(clip, frames)
        command = [sys.executable, "-m", "stma", "segment", str(clip), "--device=cpu"]
        command += [f"--mask={folder / 'first.png'}", f"--weights={folder / 'tiny.safetensors'}"]
        output = folder / str(length)
        process = subprocess.Popen(
            [*command, f"--output={output}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        along = []
        for tenth in range(1, 10):
            last = output / "masks" / f"{length * tenth // 10:05d}.png"
            while not last.exists():
                time.sleep(0.05)
                if process.poll() is not None:
                    raise SystemExit(f"the command failed: status {process.returncode}")
            along.append(resident(process.pid))
        _, status, usage = os.wait4(process.pid, 0)
        written = len(list((output / "masks").iterdir()))
        print(f"{length} frames: {' '.join(map(str, along))} MB after each tenth, "
              f"{usage.ru_maxrss // 1024} at the peak; {written} masks, "
              f"{usage.ru_utime + usage.ru_stime:.0f} CPU seconds", flush=True)  # fmt: skip
        if status or written != length:
            raise SystemExit(f"the command failed: status {status}")


def resident(process: int) -> int:
    """The memory of a process in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


if __name__ == "__main__":
    main()
