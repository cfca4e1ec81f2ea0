"""Parameters, and GFLOPs of one frame by part: python scripts/count.py [MODEL ...]

Counted by torch.utils.flop_counter (a multiply-add is two) on the meta device. "frame" is a frame
with cached references, "recomputed" one that recomputes them, "update" what a memory update adds to
"frame". --memory instead prints what a video and a training clip need on a GPU, and what fits on
cards of 8, 16, 24 and 80 GB: worked out on paper, as no card has been measured.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from stma.compose import load_model_config, load_resolved, model_names
from stma.errors import input_errors_end_the_program
from stma.inference.footprint import video_bytes
from stma.inference.segmenter import SegmenterConfig
from stma.model.backbone import STRIDE
from stma.model.cost import count_cost
from stma.model.streams import VARIANTS
from stma.runtime.config import parse_config
from stma.training.config import TrainConfig
from stma.training.dry_run import training_bytes

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CARDS = (8, 16, 24, 80)  # GB
USABLE = 0.9  # the rest is CUDA's own, and lost between tensors (a guess: nothing was measured)
STAGES = ("static", "video")


@input_errors_end_the_program()
def main() -> None:
    models = model_names(CONFIGS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=models, help=f"of {', '.join(models)}")
    parser.add_argument(
        "--variants", nargs="+", default=VARIANTS, choices=VARIANTS, help="rows of Table 1"
    )
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=864)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--memory-frames", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="GPU memory instead of GFLOPs")
    arguments = parser.parse_args()
    sizes = (arguments.height, arguments.width)
    if min(sizes) < 1 or any(size % STRIDE for size in sizes):
        parser.error(f"height and width must be positive multiples of {STRIDE}")
    if min(arguments.memory_frames, *arguments.objects) < 1:
        parser.error("give 1 or more objects and memory frames")

    if arguments.memory:
        print_memory(arguments.models, *sizes, arguments.objects)
        return
    print(
        f"{arguments.height} x {arguments.width}, {min(2, arguments.memory_frames)} references, "
        f"{arguments.memory_frames} memory frames; GFLOPs\n"
    )
    columns = ["embed", "test stream", "readout", "decoder", "frame", "references", "recomputed"]
    columns += ["values", "update"]
    heading = f"{'model':10} {'variant':18} {'M params':>8} {'objects':>7} "
    print(heading + " ".join(f"{column:>11}" for column in columns))
    for name in arguments.models:
        for variant in arguments.variants:
            config = replace(load_model_config(CONFIGS, name), variant=variant)
            for objects in arguments.objects:
                parameters, parts = count_cost(
                    config, arguments.height, arguments.width, objects, arguments.memory_frames
                )
                row = " ".join(f"{parts[column]:11.1f}" for column in columns)
                print(f"{name:10} {variant:18} {parameters / 1e6:8.2f} {objects:7} {row}")


def print_memory(models: list[str], height: int, width: int, objects: list[int]) -> None:
    """In bf16, with the segmenter's defaults and the paper's stages."""
    device, settings = torch.device("cuda", 0), SegmenterConfig(precision="bf16")
    usable = [USABLE * 1e9 * card for card in CARDS]
    print(f"A video of {height} x {width} in bf16, its temporal memory full: GB\n")
    print(f"{'model':10} " + " ".join(f"{count:>3} objects" for count in objects))
    for name in models:
        config = load_model_config(CONFIGS, name)
        needed = [video_bytes(config, settings, height, width, n, device) for n in objects]
        print(f"{name:10} " + " ".join(f"{each / 1e9:11.2f}" for each in needed))
    print(
        "\nTraining in bf16, not compiled: GB, and clips that fit at once on cards of these GB "
        f"({100 * USABLE:.0f} % of them used)\n"
    )
    cards = " ".join(f"{card:5}" for card in CARDS)
    print(f"{'model':10} {'stage':10} {'blocks':10} {'1 clip':>7} {'each more':>9} {cards}")
    for name in models:
        for stage_name in STAGES:
            overrides = ["output=unused", f"model={name}", f"stage={stage_name}", "precision=bf16"]
            train = parse_config(TrainConfig, load_resolved(CONFIGS, "train", overrides, ""))
            for recompute in (False, True):
                run = replace(train, checkpoint_blocks=recompute)
                stage = run.stages[stage_name]
                one, two = (training_bytes(run, stage, n, device) for n in (1, 2))
                fits = [max(0, 1 + int((room - one) // (two - one))) for room in usable]
                print(
                    f"{name:10} {stage_name:10} {'recomputed' if recompute else 'kept':10} "
                    f"{one / 1e9:7.2f} {(two - one) / 1e9:9.2f} "
                    + " ".join(f"{count:5}" for count in fits)
                )


if __name__ == "__main__":
    main()
