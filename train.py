"""Train one stage: python train.py [experiment=NAME] [key=value ...]"""

import hydra
from omegaconf import DictConfig

from stma.config import parse_config
from stma.errors import input_errors_end_the_program
from stma.training.trainer import TrainConfig, train


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
@input_errors_end_the_program()
def main(config: DictConfig) -> None:
    train(parse_config(TrainConfig, config))


if __name__ == "__main__":
    main()
