"""Parameters, and GFLOPs of one frame by part: python scripts/count.py [MODEL ...]

Counted by torch.utils.flop_counter (a multiply-add is two) on the meta device. "frame" is a frame
with cached references, "recomputed" one that recomputes them, "update" what a memory update adds to
"frame". What a training step needs in memory: train.py ... dry_run=true.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from stma.compose import load_model_config, model_names
from stma.errors import input_errors_end_the_program
from stma.model.backbone import STRIDE
from stma.model.cost import count_cost
from stma.model.streams import VARIANTS

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    models = [name for name in model_names(CONFIGS) if name != "timm"]  # which needs a name
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=models, help=f"of {', '.join(models)}")
    parser.add_argument(
        "--variants", nargs="+", default=VARIANTS, choices=VARIANTS, help="rows of Table 1"
    )
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=864)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--memory-frames", type=int, default=5)
    arguments = parser.parse_args()
    sizes = (arguments.height, arguments.width)
    if min(sizes) < 1 or any(size % STRIDE for size in sizes):
        parser.error(f"height and width must be positive multiples of {STRIDE}")
    if min(arguments.memory_frames, *arguments.objects) < 1:
        parser.error("give 1 or more objects and memory frames")

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


if __name__ == "__main__":
    main()
