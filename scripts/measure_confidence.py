"""How well confidence (`scores.csv` of `stma segment`) tells good masks from bad ones:

python scripts/measure_confidence.py ROOT [--split val] [--weights small]

ROOT has the DAVIS layout with all masks. Prints the rank correlation (Spearman) of confidence and
IoU over all objects and frames in which an object is, and what the threshold finds.
"""

import argparse

import numpy as np

from stma.data.images import read_image
from stma.errors import input_errors_end_the_program
from stma.evaluation.benchmarks import scored_clips
from stma.inference.segmenter import Segmenter
from stma.model.weights import load_model
from stma.video.scores import DOUBTFUL


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("--split")
    parser.add_argument("--weights", default="small")
    arguments = parser.parse_args()
    model = load_model(arguments.weights)
    pairs: list[tuple[float, float]] = []
    for clip in scored_clips(arguments.root, arguments.split):
        segmenter = Segmenter(model)
        for number, path in enumerate(clip.frames):
            truth, _ = clip.read_given(path.stem)
            assert truth is not None
            result = segmenter.step(read_image(path), None if number else truth)
            for identity, confidence in result.confidence.items() if number else ():
                found, there = result.mask == identity, truth == identity
                if there.any():
                    pairs.append((confidence, (found & there).sum() / (found | there).sum()))
        print(f"{clip.name}: {len(segmenter.ids)} objects", flush=True)
    confidences, ious = np.array(pairs).T
    ranks = [values.argsort().argsort() for values in (confidences, ious)]
    low, bad = confidences < DOUBTFUL, ious < 0.5
    print(f"{len(pairs)} masks, Spearman {np.corrcoef(ranks)[0, 1]:.2f}")
    found = f"{low.mean():.0%} of all, {low[bad].mean():.0%} of those with an IoU below 0.5"
    print(f"confidence below {DOUBTFUL}: {found}")
    print(f"mean IoU {ious[low].mean():.2f}, of the rest {ious[~low].mean():.2f}")


if __name__ == "__main__":
    main()
