"""What learning from the first mask brings (`stma segment --adapt`), clip by clip:

python scripts/measure_adapting.py ROOT [--weights small] [--clips A B] [--blends 0.5 1]

ROOT has the DAVIS layout with all masks. Prints J&F as the network is, and adapted to the first
frame of each clip, with as much of what it learned as each of the blends says.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

from stma.data.images import read_image
from stma.errors import input_errors_end_the_program
from stma.evaluation.benchmarks import scored_clips
from stma.evaluation.validation import build_validation
from stma.model.weights import load_model
from stma.training.adapting import AdaptConfig, adapt, blend_weights
from stma.training.config import ValidationConfig


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("--split")
    parser.add_argument("--weights", default="small")
    parser.add_argument("--clips", nargs="*")
    parser.add_argument("--blends", nargs="*", type=float, default=[AdaptConfig.blend, 1.0])
    arguments = parser.parse_args()
    model = load_model(arguments.weights)
    print("| clip | as it is | " + " | ".join(f"blend {b}" for b in arguments.blends) + " | s |")
    print("|---" * (3 + len(arguments.blends)) + "|")
    for clip in scored_clips(arguments.root, arguments.split, arguments.clips):
        validation = build_validation(
            ValidationConfig(arguments.root, arguments.split, clips=[clip.name])
        )
        assert validation is not None
        first = clip.frames[0]
        with tempfile.TemporaryDirectory() as folder:
            scores = [validation(model, Path(folder) / "run")]
            begun = time.process_time()
            mask, _ = clip.read_given(first.stem)
            assert mask is not None
            learned = adapt(model, [read_image(first)], [mask], AdaptConfig(blend=1.0))
            seconds = time.process_time() - begun
            for blend in arguments.blends:
                blended = copy.deepcopy(learned)
                blend_weights(blended, model, blend)
                scores.append(validation(blended, Path(folder) / "run"))
        shown = " | ".join(f"{score:.1f}" for score in scores)
        print(f"| {clip.name} | {shown} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
