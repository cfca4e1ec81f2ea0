"""Segment and score the clips of a benchmark: python eval.py benchmark=... weights=..."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from stma.compose import check_choices, hydra_errors_told
from stma.errors import input_errors_end_the_program
from stma.evaluation.eval_config import parse_eval_config
from stma.evaluation.evaluation import evaluate
from stma.runtime.distributed import told_once

CONFIGS = Path(__file__).resolve().parent / "configs"


@hydra.main(config_path="configs", config_name="eval", version_base="1.3")
@input_errors_end_the_program()
def main(config: DictConfig) -> None:
    with told_once():
        parsed = parse_eval_config(config)
    result = evaluate(parsed)
    if result is None:  # not the first process of torchrun
        return
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print(result.text())
    if not parsed.fps_only:
        print(f"\nmasks, scores and pictures: {parsed.output}")
    if not result.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    with input_errors_end_the_program(), told_once():
        check_choices(CONFIGS, sys.argv[1:])
        with hydra_errors_told(sys.argv[1:]):
            main()
