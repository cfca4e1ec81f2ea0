"""Train one stage: python train.py [experiment=NAME] [key=value ...]"""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from stma.config import parse_config
from stma.errors import InputError
from stma.training.trainer import TrainConfig, train

log = logging.getLogger(__name__)


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    try:
        parsed = parse_config(TrainConfig, config)
        Path(parsed.output).mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, Path(parsed.output) / "config.yaml", resolve=True)
        train(parsed)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
