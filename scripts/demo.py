"""What the method does, in minutes on a CPU: `make demo`.

First the shipped network segments clips never seen in training, beside two baselines that need no
training; then a smaller one is trained from scratch, for a fixed number of iterations, and does the
same. `make demo CLIP=ROOT` uses your own clips in the first part and omits the second: a folder in
the DAVIS layout, or a video file with a first mask of the same name beside it.
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
from stma.errors import InputError, input_errors_end_the_program

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
METHODS = {
    "copy": "copying the first mask",
    "flow": "carrying it along optical flow (DIS)",
    "stma": "STMA",
}
SHIPPED = "the shipped network, small"
TRAINED = "ConvViT-T, trained just now"
# What other seeds gave (docs/results.md): python scripts/demo.py --seed 1
EXPECTED = (62.5, 2.1)


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument(
        "--clip", type=Path, help="your own: a video file, or a folder in the DAVIS layout"
    )
    parser.add_argument(
        "--iterations", type=positive, help="of training, instead of the demo's own"
    )
    parser.add_argument("--clips", type=positive, default=24, help="to evaluate on after training")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    arguments = parser.parse_args()
    output: Path = arguments.output.resolve()
    if arguments.clip is not None:
        clips = arguments.clip.resolve()
        if clips.is_file():
            mask = clips.with_suffix(".png")
            if not mask.is_file():
                raise InputError(f"{mask}: no such file; put the mask of the first frame there")
            folder = str(output / clips.stem)
            run("-m", "stma", "segment", str(clips), f"--mask={mask}", f"--output={folder}")
            return
        if not clips.is_dir():
            raise InputError(f"{clips}: no such video or folder; give a folder in the DAVIS layout")
        compare(clips, output / clips.name, "small", SHIPPED)
        return

    start = time.monotonic()
    unseen = output / "unseen"
    make_clips(unseen / "clips", "--clips=4", "--frames=30", "--height=240", "--width=320")
    compare(unseen / "clips", unseen, "small", SHIPPED, "procedural clips never seen in training")

    clips = output / "clips"
    scene = load_config(
        CONFIGS, "train", ["experiment=demo"]
    ).stages.demo.data.sources.procedural.scene
    settings = [f"scene.{key}={value}" for key, value in scene.items()]
    make_clips(clips, f"--clips={arguments.clips}", *settings)
    command = ["experiment=demo", f"output={quoted(output)}", "resume=false"]
    if arguments.iterations is not None:
        command.append(f"stages.demo.iterations={arguments.iterations}")
    run("train.py", *command, f"seed={arguments.seed}")
    weights = output / "weights.safetensors"
    compare(clips, output, str(weights), TRAINED, "procedural clips of the kind it was trained on")
    if arguments.iterations is None:
        print(f"  {EXPECTED[0]:5.1f}  is what to expect, +- {EXPECTED[1]:.1f} over three seeds")
    print(f"The trained weights are {weights}. Took {(time.monotonic() - start) / 60:.1f} minutes.")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return int(text)


def make_clips(output: Path, *settings: str) -> None:
    run("scripts/make_clips.py", str(output), "--overwrite", *settings)


def compare(root: Path, output: Path, weights: str, title: str, what: str = "your clips") -> None:
    """Segment clips with every method, draw them, and print the scores, if any."""
    for method in METHODS:
        more = ["videos=true", f"compare={quoted(output / 'flow')}"] if method == "stma" else []
        run(
            "eval.py",
            f"method={method}",
            f"weights={quoted(weights)}",
            f"root={quoted(root)}",
            f"output={quoted(output / method)}",
            "overwrite=true",
            *more,
        )
    titles = METHODS | {"stma": f"STMA: {title}"}
    picture = output / "overview.png"
    draw_overview(root, output, picture, titles)
    print(f"\nJ&F on {what}:")
    for method, name in titles.items():
        mean = json.loads((output / method / "results.json").read_text())["mean"]
        score = "    -" if mean is None else f"{mean['jf']:5.1f}"
        print(f"  {score}  {name}")
    print(f"Look at {picture},\n{output / 'stma' / 'report.html'}")
    print(f"and the overlays in {output / 'stma' / 'videos'}.")


def run(*command: str) -> None:
    """One of the project's own commands, shown as a user would type it."""
    print("\n$ python " + " ".join(command), flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def draw_overview(root: Path, output: Path, path: Path, titles: dict[str, str]) -> None:
    """The first four clips, in pairs: ground truth, then every method's masks."""
    videos = find_videos(root)[:4]
    folders: dict[str, Path | None] = {
        name: output / method / "masks" for method, name in titles.items()
    }
    if all(video.fully_annotated for video in videos):
        folders = {"truth": None, **folders}
    rows = [
        (title, [picture for video in pair for picture in overlays(video, folder)])
        for pair in (videos[:2], videos[2:])
        if pair
        for title, folder in folders.items()
    ]
    save_picture(path, contact_sheet(rows, height=112))


def overlays(video: VideoFolder, masks: Path | None, count: int = 6) -> list[np.ndarray]:
    """Frames from first to last with the masks in ``masks/<video>``, or the video's own."""
    folder = video.mask_folder if masks is None else masks / video.name
    chosen = np.linspace(0, len(video.frames) - 1, count).astype(int)
    return [
        draw_overlay(read_image(frame), read_mask(folder / f"{frame.stem}.png")[0])
        for frame in (video.frames[i] for i in chosen)
    ]


if __name__ == "__main__":
    main()
