"""Segment the videos of a root and score them: python eval.py weights=... root=... split=..."""

import hydra
from omegaconf import DictConfig

from stma.config import parse_config
from stma.errors import input_errors_end_the_program
from stma.inference.evaluation import EvalConfig, evaluate


@hydra.main(config_path="configs", config_name="eval", version_base="1.3")
@input_errors_end_the_program()
def main(config: DictConfig) -> None:
    result = evaluate(parse_config(EvalConfig, config))
    print(result.table())
    print(f"masks, scores and pictures: {config.output}")


if __name__ == "__main__":
    main()
