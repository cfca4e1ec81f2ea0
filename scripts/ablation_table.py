"""A table like the paper's Table 1 from finished runs: python scripts/ablation_table.py RUNS ROOT

RUNS holds a folder for each run of train.py, as a sweep leaves them:

  python train.py -m experiment=demo 'model.variant=full,no_object,no_spatial_memory,\
no_temporal_memory,joint' seed=0,1 'output=runs/table1/${model.variant}-${seed}'

Every run is evaluated on ROOT (fully annotated clips in the DAVIS layout), unless it has been; runs
that are alike but for their seed make one row, with mean and standard deviation over the seeds.
Runs that are not finished are named and left out. Interrupted, the same command goes on.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from stma.errors import InputError, input_errors_end_the_program
from stma.inference.config import EvalConfig
from stma.inference.evaluation import evaluate
from stma.inference.reported import TABLE_1
from stma.inference.results import Evaluation
from stma.inference.segmenter import SegmenterConfig
from stma.model.cost import count_cost
from stma.model.factory import ModelConfig
from stma.model.weights import read_weights
from stma.tables import Table, number

HEIGHT, WIDTH = 480, 864  # of the frames whose GFLOPs are counted, as the paper's


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("root", help="clips to evaluate on")
    parser.add_argument("--split", help="a list in ImageSets; all clips without it")
    parser.add_argument("--memory-interval", type=int, default=5)
    parser.add_argument("--objects", type=int, default=1, help="of the GFLOPs")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if not arguments.runs.is_dir():
        raise InputError(f"{arguments.runs}: no such folder; give that of a sweep")
    folders = sorted(path.parent for path in arguments.runs.glob("*/config.yaml"))
    if not folders:
        raise InputError(f"{arguments.runs}: holds no run of train.py (*/config.yaml)")

    groups: dict[str, list[Evaluation]] = defaultdict(list)
    models: dict[str, ModelConfig] = {}
    for folder in folders:
        weights = folder / "weights.safetensors"
        if not weights.is_file():
            print(f"not finished, left out: {folder}")
            continue
        model, _, _ = read_weights(weights)
        config = EvalConfig(
            root=arguments.root,
            split=arguments.split,
            weights=str(weights),
            output=str(folder / "table"),
            segmenter=SegmenterConfig(memory_interval=arguments.memory_interval),
            device=arguments.device,
            report=False,
        )
        result = evaluate(config)
        if result is None or not result.ok or not result.scores:
            raise InputError(f"{folder}: {result.text() if result else 'not evaluated'}")
        # Runs of one row: the same network, but for what the seed has drawn.
        row = repr(model)
        groups[row].append(result)
        models[row] = model
    if not groups:
        raise InputError(f"{arguments.runs}: no run is finished")

    table = make_table([(models[row], groups[row]) for row in groups], arguments.objects)
    path = arguments.runs / "table"
    (path.with_suffix(".md")).write_text(table.markdown() + "\n", encoding="utf-8")
    table.write_csv(path.with_suffix(".csv"))
    print(table.markdown())
    print(f"\n{path.with_suffix('.md')}, {path.with_suffix('.csv')}")
    print("paper: ConvViT-B trained on video, J&F on DAVIS 2017 val, FPS on a V100")


def make_table(rows: list[tuple[ModelConfig, list[Evaluation]]], objects: int) -> Table:
    """One row for each network, in the paper's order of the variants."""
    order = list(TABLE_1)
    lines = []
    for model, results in sorted(rows, key=lambda row: order.index(row[0].variant)):
        means = [result.mean() for result in results]
        figures = []
        for name in ("jf", "j", "f"):
            values = [getattr(mean, name) for mean in means]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            figures.append(f"{np.mean(values):.1f}{spread}")
        speeds = [result.speed for result in results if result.speed is not None]
        parameters, parts = count_cost(model, HEIGHT, WIDTH, objects)
        paper = TABLE_1[model.variant]
        lines.append(
            [
                model.variant,
                model.backbone,
                str(len(results)),
                *figures,
                number(float(np.median([speed.fps for speed in speeds]))),
                number(max(speed.peak_gigabytes for speed in speeds), 2),
                number(parameters / 1e6, 2),
                number(parts["frame"]),
                number(paper[0]),
                number(paper[6]),
            ]
        )
    header = ["variant", "backbone", "runs", "J&F", "J", "F", "FPS", "peak GB", "M params"]
    return Table([*header, "GFLOPs", "paper J&F", "paper FPS"], lines)


if __name__ == "__main__":
    main()
