"""What the method does, in minutes on a CPU: `make demo`.

First the network that comes with the package segments clips never seen in training, beside two
baselines that need no training; then a smaller one is trained from scratch, and does the same.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from stma.compose import load_config, quoted
from stma.errors import input_errors_end_the_program

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    "copy": "copying the first mask",
    "flow": "carrying it along optical flow (DIS)",
    "stma": "STMA",
}


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    arguments = parser.parse_args()
    output: Path = arguments.output.resolve()
    start = time.monotonic()

    unseen = output / "unseen"
    run("scripts/make_clips.py", f"{unseen}/clips", "--overwrite", "--clips=4", "--frames=30",
        "--height=240", "--width=320")  # fmt: skip
    compare(unseen / "clips", unseen, "small", "the network that comes with the package")

    experiment = load_config(ROOT / "configs", "train", ["experiment=demo"])
    scene = experiment.stages.demo.data.sources.procedural.scene
    settings = [f"scene.{key}={value}" for key, value in scene.items()]
    run("scripts/make_clips.py", f"{output}/clips", "--overwrite", "--clips=24", *settings)
    trained = ["experiment=demo", f"output={quoted(output)}", f"seed={arguments.seed}"]
    run("train.py", *trained, "resume=false")
    weights = output / "weights.safetensors"
    compare(output / "clips", output, str(weights), "ConvViT-T, trained just now")
    print(f"The trained weights are {weights}. Took {(time.monotonic() - start) / 60:.1f} minutes.")


def compare(root: Path, output: Path, weights: str, title: str) -> None:
    """Segment clips with every method, and print the scores."""
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
    print("\nJ&F on procedural clips:")
    for method, name in (METHODS | {"stma": f"STMA: {title}"}).items():
        results = json.loads((output / method / "results.json").read_text())
        print(f"  {results['mean']['jf']:5.1f}  {name}")
    print(f"Look at {output / 'stma' / 'report.html'}")
    print(f"and the overlays in {output / 'stma' / 'videos'}.")


def run(*command: str) -> None:
    """One of the project's own commands, shown as a user would type it."""
    print("\n$ python " + " ".join(command), flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
