"""What each stream of a trained network carries: J&F with one of them cut at inference.

python scripts/probe_streams.py runs/demo/weights.safetensors runs/demo/clips --split val
"""

import argparse
import math

from stma.errors import input_errors_end_the_program
from stma.evaluation.benchmarks import scored_clips
from stma.evaluation.probes import probe_streams
from stma.inference.segmenter import SegmenterConfig
from stma.model.weights import load_model
from stma.runtime.device import resolve_device


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a weights file of train.py")
    parser.add_argument("root", help="fully annotated videos in the DAVIS layout")
    parser.add_argument("--split", help="a list in ImageSets (default: all videos)")
    parser.add_argument("--memory-interval", type=int, help="default: what suits the weights")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    model = load_model(arguments.weights, resolve_device(arguments.device))
    clips = scored_clips(arguments.root, arguments.split)
    settings = model.segmenter_settings
    if arguments.memory_interval is not None:
        settings = settings | {"memory_interval": arguments.memory_interval}
    config = SegmenterConfig(**settings)

    print(f"{'':32} {'J&F':>5} {'change':>7} {'J':>5} {'F':>5}")
    trained = None
    for probe in probe_streams(model, clips, config):
        score = probe.score
        trained = trained or probe
        change = score.jf - trained.score.jf
        print(f"{probe.name:32} {score.jf:5.1f} {change:+7.1f} {score.j:5.1f} {score.f:5.1f}")
    assert trained is not None
    if (look := trained.look) is not None:
        print(
            f"\nthe test stream's attention (in {look.frames} of {look.of} passes), and its spread:"
        )
        print(f"{'':12}" + " ".join(f"{name:>11}" for name in (*look.groups, "spread")))
        for number, (row, spread) in enumerate(zip(look.shares, look.spreads, strict=True)):
            shares = " ".join(f"{100 * share:9.1f} %" for share in row)
            print(f"  block {number:2}:  {shares} {spread:11.2f}")
        print("(spread: 1 if all keys receive the same, near 0 if one receives all)")
    if trained.object_shares is not None:
        row = " ".join(f"{100 * share:.1f} %" for share in trained.object_shares)
        print(f"\nthe references' attention that goes to all objects together, by block: {row}")
    if not math.isnan(trained.cosine):
        print(f"\nmean cosine between the tokens of two objects of one frame: {trained.cosine:.2f}")


if __name__ == "__main__":
    main()
