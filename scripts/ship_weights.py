"""Make a trained network one that comes with the package: python scripts/ship_weights.py RUN NAME

Writes stma/weights/NAME.safetensors in half precision; it is computed with in fp32 again. A network
is put there with a card (docs/model_card.md).
"""

import argparse
from pathlib import Path

import torch

from stma.errors import InputError, input_errors_end_the_program
from stma.model.weights import SHIPPED, find_weights, load_model, read_weights, save_weights


def ship(weights: str | Path, path: Path) -> None:
    """Write weights in half precision, with their settings and where they come from.

    Raises:
        InputError: a number does not fit into half precision.
    """
    config, provenance, _ = read_weights(weights)
    model = load_model(weights)
    settings = model.segmenter_settings
    model = model.half()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{weights}: {name} does not fit into half precision")
    model.segmenter_settings = settings
    save_weights(path, model, config, provenance)


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a weights file, or a folder of train.py")
    parser.add_argument("name", help="by which load_model and eval.py will know it")
    arguments = parser.parse_args()
    path = SHIPPED / f"{arguments.name}.safetensors"
    ship(find_weights(arguments.weights), path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
