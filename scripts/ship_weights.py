"""Put a trained network into the package: ship_weights.py RUN NAME [KEY=VALUE ...]

Writes stma/weights/NAME.safetensors, or the file NAME if it ends in .safetensors, in half precision
(inference converts to fp32). With --average-with OTHER ..., it holds the mean of all weights, as if
they were one; each may be a checkpoint (.pt), with --raw without its average. Segmenter settings
given here, such as short_side=288, are stored with the weights and replace those there. Describe
the network in docs/model_card.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf

from stma.errors import InputError, input_errors_end_the_program
from stma.inference.segmenter import SegmenterConfig
from stma.model.weights import (
    SHIPPED,
    check_same_architecture,
    find_weights,
    load_model,
    read_weights,
    save_weights,
)
from stma.runtime.config import parse_config


def ship(
    weights: str | Path,
    path: Path,
    settings: list[str],
    others: Sequence[str | Path] = (),
    raw: bool = False,
) -> None:
    """Write weights in half precision, with their settings and where they come from.

    Args:
        settings: for the segmenter, each ``key=value``.
        others: weights to average with; their runs should have parted late.
        raw: of checkpoints, not their average over iterations.

    Raises:
        InputError: no such setting, another architecture, or a weight does not fit into half
            precision.
    """
    config, provenance, _ = read_weights(weights, raw=raw)
    model = load_model(weights, "cpu", raw=raw)
    averaged = []
    for count, other in enumerate(others, start=1):
        other_config, other_provenance, _ = read_weights(other, raw=raw)
        check_same_architecture(other_config, config, other)
        own, theirs = model.state_dict(), load_model(other, "cpu", raw=raw).state_dict()
        model.load_state_dict({k: own[k] + (theirs[k] - own[k]) / (count + 1) for k in own})
        averaged.append(other_provenance)
    if averaged:
        provenance["averaged_with"] = averaged
    given = OmegaConf.from_dotlist(settings)
    parse_config(SegmenterConfig, given)
    model.segmenter_settings |= {str(name): given[name] for name in given}
    model.half()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{weights}: {name} does not fit into half precision")
    save_weights(path, model, config, provenance)


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a weights file, or a folder of train.py")
    parser.add_argument("name", help="its name for load_model and eval.py, or FILE.safetensors")
    parser.add_argument("settings", nargs="*", help="for the segmenter: short_side=288 ...")
    parser.add_argument("--average-with", metavar="OTHER", nargs="+", default=[], help="weights")
    parser.add_argument("--raw", action="store_true", help="of checkpoints, not their average")
    arguments = parser.parse_intermixed_args()
    named = SHIPPED / f"{arguments.name}.safetensors"
    path = Path(arguments.name) if arguments.name.endswith(".safetensors") else named
    others = [find_weights(other) for other in arguments.average_with]
    ship(find_weights(arguments.weights), path, arguments.settings, others, arguments.raw)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
