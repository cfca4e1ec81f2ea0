"""Train: python train.py [stage=NAME] [experiment=NAME] [key=value ...]"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from stma.compose import check_choices, hydra_errors_told, parse_train_config
from stma.errors import input_errors_end_the_program
from stma.evaluation.validation import build_validation
from stma.runtime.distributed import told_once
from stma.training.run import train

CONFIGS = Path(__file__).resolve().parent / "configs"


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
@input_errors_end_the_program()
def main(config: DictConfig) -> None:
    with told_once():
        parsed = parse_train_config(config)
    train(parsed, build_validation)


if __name__ == "__main__":
    with input_errors_end_the_program(), told_once():
        check_choices(CONFIGS, sys.argv[1:])
        with hydra_errors_told(sys.argv[1:]):
            main()
