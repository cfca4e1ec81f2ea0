"""Segment the videos of a root and score them: python eval.py weights=... root=... split=..."""

import hydra
from omegaconf import DictConfig

from stma.config import parse_config
from stma.errors import InputError
from stma.inference.evaluation import EvalConfig, evaluate


@hydra.main(config_path="configs", config_name="eval", version_base="1.3")
def main(config: DictConfig) -> None:
    try:
        result = evaluate(parse_config(EvalConfig, config))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(result.table())
    print(f"masks, scores and pictures: {config.output}")


if __name__ == "__main__":
    main()
