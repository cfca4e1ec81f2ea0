"""The paper's Tables 1 and 2 from finished runs: python scripts/ablation_table.py RUNS ROOT

RUNS holds a folder for each run of train.py, as a sweep leaves them:

  python train.py -m experiment=demo 'model.variant=full,no_object,no_spatial_memory,\
no_temporal_memory,joint' seed=0,1 'output=runs/table1/${model.variant}-${seed}'

Every run is evaluated on ROOT (fully annotated clips in the DAVIS layout), unless it has been; runs
that are alike but for their seed make one row, with mean and standard deviation over the seeds.
Other settings in which runs differ have a column. Runs that are not finished are named and left
out. Interrupted, the same command goes on.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stma.errors import InputError, input_errors_end_the_program
from stma.inference.config import EvalConfig
from stma.inference.evaluation import evaluate
from stma.inference.reported import MAE, MOCO_V3, SCRATCH, TABLE_1, TABLE_2
from stma.inference.results import Evaluation
from stma.inference.segmenter import SegmenterConfig
from stma.model.cost import count_cost
from stma.model.factory import ModelConfig
from stma.model.pretrained import kind_of
from stma.model.weights import read_weights
from stma.tables import Table, number

HEIGHT, WIDTH = 480, 864  # of the frames whose GFLOPs are counted, as the paper's
# Settings of a run that change nothing of what it learns but by chance.
INCIDENTAL = (
    "output",
    "datasets",
    "seed",
    "num_workers",
    "device",
    "checkpoint_blocks",
    "compile",
    "log_every",
    "picture_every",
    "save_every",
    "keep_checkpoints",
    "resume",
    "max_skipped",
    "dry_run",
    "validation",
    "model",  # as it is in the weights
)


@dataclass
class Row:
    """Runs that are alike but for their seed.

    Attributes:
        settings: all that tells them from other rows, see :func:`settings_of`.
    """

    model: ModelConfig
    settings: dict[str, str]
    results: list[Evaluation] = field(default_factory=list)


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

    rows: dict[str, Row] = {}
    for folder in folders:
        weights = folder / "weights.safetensors"
        if not weights.is_file():
            print(f"not finished, left out: {folder}")
            continue
        model, provenance, _ = read_weights(weights)
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
        row = Row(model, settings_of(model, provenance.get("config", {})))
        rows.setdefault(repr(row.settings), row).results.append(result)
    if not rows:
        raise InputError(f"{arguments.runs}: no run is finished")

    table = make_table(list(rows.values()), arguments.objects)
    path = arguments.runs / "table"
    (path.with_suffix(".md")).write_text(table.markdown() + "\n", encoding="utf-8")
    table.write_csv(path.with_suffix(".csv"))
    print(table.markdown())
    print(f"\n{path.with_suffix('.md')}, {path.with_suffix('.csv')}")
    print(
        "paper: trained on video, J&F on DAVIS 2017 val, FPS on a V100; Table 1 has ConvViT-B, MAE"
    )


def settings_of(model: ModelConfig, run: Mapping[str, Any]) -> dict[str, str]:
    """What tells two runs of different rows apart, by its dotted name."""
    theirs = {name: value for name, value in run.items() if name not in INCIDENTAL}
    return dict(flattened(theirs | {"model": asdict(model)}))


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


def distinctions(rows: Sequence[Row]) -> list[str]:
    """For each row, the settings in which it differs from others with the same backbone; variant
    and pretrained weights have columns of their own."""
    texts = []
    for row in rows:
        alike = [other.settings for other in rows if other.model.backbone == row.model.backbone]
        names = [
            name
            for name in row.settings
            if name not in ("model.variant", "pretrained")
            and any(other.get(name) != row.settings[name] for other in alike)
        ]
        texts.append(" ".join(f"{name}={row.settings[name]}" for name in names))
    return texts


def starting_point(row: Row) -> str:
    """In Table 2's words; the name of the file where that is gone or of another kind."""
    if row.settings.get("weights", "None") != "None":
        return Path(row.settings["weights"]).name
    file = row.settings.get("pretrained", "None")
    if file == "None":
        return SCRATCH
    kind = kind_of(file) if Path(file).is_file() else ""
    return {"ConvMAE": MAE, "MAE ViT": MAE, "MoCo v3 ViT": MOCO_V3}.get(kind, Path(file).name)


def make_table(rows: list[Row], objects: int) -> Table:
    """In the paper's order of the variants."""
    order = list(TABLE_1)
    rows = sorted(rows, key=lambda row: order.index(row.model.variant))
    lines = []
    for row, settings in zip(rows, distinctions(rows), strict=True):
        model, start = row.model, starting_point(row)
        means = [result.mean() for result in row.results]
        figures = []
        for name in ("jf", "j", "f"):
            values = [getattr(mean, name) for mean in means]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            figures.append(f"{np.mean(values):.1f}{spread}")
        speeds = [result.speed for result in row.results if result.speed is not None]
        parameters, parts = count_cost(model, HEIGHT, WIDTH, objects)
        table_1 = TABLE_1[model.variant] if model.backbone == "convvit" else None
        table_2 = TABLE_2.get((model.backbone, start)) if model.variant == "full" else None
        lines.append(
            [
                model.variant,
                f"{model.backbone} {model.dims[2]}",
                start,
                settings,
                str(len(row.results)),
                *figures,
                number(float(np.median([speed.fps for speed in speeds]))),
                number(max(speed.peak_gigabytes for speed in speeds), 2),
                number(parameters / 1e6, 2),
                number(parts["frame"]),
                number(table_1[0] if table_1 else None),
                number(table_1[6] if table_1 else None),
                number(table_2[0] if table_2 else None),
                number(table_2[3] if table_2 else None),
            ]
        )
    header = ["variant", "backbone", "from", "settings", "runs", "J&F", "J", "F", "FPS", "peak GB"]
    paper = ["J&F, Table 1", "FPS, Table 1", "J&F, Table 2", "FPS, Table 2"]
    table = Table([*header, "M params", "GFLOPs", *paper], lines)
    shown = [i for i in range(len(table.header)) if any(row[i] for row in table.rows)]
    return Table([table.header[i] for i in shown], [[row[i] for i in shown] for row in table.rows])


if __name__ == "__main__":
    main()
