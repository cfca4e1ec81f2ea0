"""The whole pipeline in minutes on a CPU: `make demo`.

Writes procedural clips that training never sees, trains ConvViT-T from nothing on others, segments
the first and compares with two references that need no training.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from stma.compose import load_config, quoted
from stma.data.images import read_image, read_mask
from stma.data.pictures import contact_sheet, draw_overlay, save_picture
from stma.data.video_folder import VideoFolder, find_videos
from stma.errors import input_errors_end_the_program

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
METHODS = {
    "copy": "copying the first mask",
    "flow": "carrying it along optical flow (DIS)",
    "stma": "STMA, ConvViT-T, trained just now",
}


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training")
    parser.add_argument("--clips", type=int, default=24, help="to evaluate on")
    arguments = parser.parse_args()
    output: Path = arguments.output.resolve()
    start = time.monotonic()

    clips = output / "clips"
    scene = load_config(
        CONFIGS, "train", ["experiment=demo"]
    ).stages.demo.data.sources.procedural.scene
    run(
        "scripts/make_clips.py",
        str(clips),
        f"--clips={arguments.clips}",
        "--overwrite",
        *(f"scene.{key}={value}" for key, value in scene.items()),
    )
    minutes = f"stages.demo.max_minutes={arguments.minutes}"
    run("train.py", "experiment=demo", f"output={quoted(output)}", minutes, "resume=false")
    weights = output / "weights.safetensors"
    for method in METHODS:
        run(
            "eval.py",
            f"method={method}",
            f"weights={quoted(weights)}",
            f"root={quoted(clips)}",
            "split=val",
            f"output={quoted(output / method)}",
            "overwrite=true",
            *(["videos=true", f"compare={quoted(output / 'flow')}"] if method == "stma" else []),
        )

    overview = output / "overview.png"
    draw_overview(clips, output, overview)
    print(f"\nJ&F on {arguments.clips} procedural clips that training never saw:")
    for method, title in METHODS.items():
        mean = json.loads((output / method / "results.json").read_text())["mean"]
        print(f"  {mean['jf']:5.1f}  {title}")
    print(f"\nLook at {overview},")
    print(f"{output / 'stma' / 'report.html'}")
    print(f"and the overlays in {output / 'stma' / 'videos'}.")
    print(f"The trained weights are {weights}. Took {(time.monotonic() - start) / 60:.1f} minutes.")


def run(*command: str) -> None:
    """One of the project's own commands, shown as a user would type it."""
    print("\n$ python " + " ".join(command), flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def draw_overview(clips: Path, output: Path, path: Path) -> None:
    """The first four clips, two side by side: truth, then every method's masks."""
    videos = find_videos(clips, "val")[:4]
    folders = {"truth": clips / "Annotations"} | {
        title: output / method / "masks" for method, title in METHODS.items()
    }
    rows = [
        (title, [picture for video in pair for picture in overlays(video, folder)])
        for pair in (videos[:2], videos[2:])
        if pair
        for title, folder in folders.items()
    ]
    save_picture(path, contact_sheet(rows, height=112))


def overlays(video: VideoFolder, masks: Path, count: int = 6) -> list[np.ndarray]:
    """Frames from the first to the last with the masks in ``masks/<video>``."""
    chosen = np.linspace(0, len(video.frames) - 1, count).astype(int)
    return [
        draw_overlay(read_image(frame), read_mask(masks / video.name / f"{frame.stem}.png")[0])
        for frame in (video.frames[i] for i in chosen)
    ]


if __name__ == "__main__":
    main()
