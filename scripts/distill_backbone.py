"""A start for training from a network that knows ImageNet, without labels (docs/networks.md):

python scripts/distill_backbone.py TEACHER OUT experiment=small stage=[shipped_distill] \\
    weights=null datasets=ROOT

TEACHER is a file with weights of --network, a convolutional network in timm. OUT is a weights file
for train.py: weights=OUT strict_weights=false. The backbone alone is trained, on the frames of the
stage's clips. All other arguments are settings of train.py.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from stma.compose import load_resolved
from stma.errors import InputError, input_errors_end_the_program
from stma.model.weights import save_weights
from stma.runtime.config import parse_config
from stma.runtime.device import resolve_device, resolve_precision
from stma.training.config import TrainConfig
from stma.training.distilling import Teacher, distill
from stma.training.learner import Learner
from stma.training.trainer import Trainer

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", type=Path, help="weights of the teacher")
    parser.add_argument("out", type=Path, help="the weights file to write")
    parser.add_argument("overrides", nargs="*", help="settings of train.py")
    parser.add_argument("--network", default="tf_efficientnet_lite0", help="the teacher, in timm")
    arguments = parser.parse_intermixed_args()
    if arguments.out.exists():
        raise InputError(f"{arguments.out} exists; delete it or give another name")
    try:  # now rather than after training
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.open("xb").close()
        arguments.out.unlink()
    except OSError as error:
        raise InputError(f"{arguments.out}: cannot be written ({error})") from error
    config = parse_config(TrainConfig, load_resolved(CONFIGS, "train", arguments.overrides))
    name, stage = config.only_stage()
    device = resolve_device(config.device)
    teacher = Teacher(arguments.network, arguments.teacher).to(device)
    model = Learner(config, stage, device, weights=config.weights).model
    trainer = Trainer(replace(config, resume=False), name, device)
    with tqdm(total=stage.iterations, desc=name) as bar:

        def each(iteration: int, loss: float) -> None:
            bar.update()
            if iteration % config.log_every == 0:
                bar.set_postfix_str(f"loss {loss:.3f}")

        loss = distill(
            model,
            teacher,
            trainer.batches(),
            stage.iterations,
            stage.optimizer,
            resolve_precision(device, config.precision),
            each,
        )
    provenance = {"teacher": arguments.network, "iterations": stage.iterations, "loss": loss}
    save_weights(arguments.out, model, config.model, provenance)
    print(f"{arguments.out}: loss {loss:.3f}")


if __name__ == "__main__":
    main()
