"""Put a trained network into the package: ship_weights.py RUN NAME [KEY=VALUE ...]

Writes stma/weights/NAME.safetensors in half precision (inference converts to fp32). Segmenter
settings given here, such as short_side=288, are stored with the weights and replace those there.
Describe the network in docs/model_card.md.
"""

import argparse
from pathlib import Path

import torch
from omegaconf import OmegaConf

from stma.errors import InputError, input_errors_end_the_program
from stma.inference.segmenter import SegmenterConfig
from stma.model.weights import SHIPPED, find_weights, load_model, read_weights, save_weights
from stma.runtime.config import parse_config


def ship(weights: str | Path, path: Path, settings: list[str]) -> None:
    """Write weights in half precision, with their settings and where they come from.

    Args:
        settings: for the segmenter, each ``key=value``.

    Raises:
        InputError: no such setting, or a weight does not fit into half precision.
    """
    config, provenance, _ = read_weights(weights)
    model = load_model(weights)
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
    parser.add_argument("name", help="its name for load_model and eval.py")
    parser.add_argument("settings", nargs="*", help="for the segmenter: short_side=288 ...")
    arguments = parser.parse_args()
    path = SHIPPED / f"{arguments.name}.safetensors"
    ship(find_weights(arguments.weights), path, arguments.settings)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
