"""The paper's Tables 1 and 2 from finished runs: python scripts/ablation_table.py RUNS KEY=VALUE

RUNS holds runs of train.py, as left by a sweep, at any depth:

  python train.py -m experiment=demo 'model.variant=full,no_object,no_spatial_memory,\
no_temporal_memory,joint' seed=0,1 'output=runs/table1/${model.variant}-${seed}'

Every run is evaluated, unless it already has been, as by eval.py with the same keys:
benchmark=davis2017_val datasets=/data, or root=CLIPS segmenter.memory_interval=3. Results stay in
the run's folder "table". Runs that differ only in their seed make one row, with mean and standard
deviation over the seeds; other settings in which runs differ get a column. Runs that are not
finished, or whose weights cannot be read, are named and left out. After an interruption, run the
same command again.
"""

import argparse
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from stma.compose import load_resolved, quoted
from stma.errors import InputError, input_errors_end_the_program
from stma.evaluation.benchmarks import list_clips
from stma.evaluation.eval_config import EvalConfig, parse_eval_config
from stma.evaluation.evaluation import evaluate
from stma.evaluation.reported import MAE, MOCO_V3, SCRATCH, TABLE_1, TABLE_2
from stma.evaluation.results import RESULTS, Evaluation
from stma.evaluation.tables import Table, number
from stma.model.cost import count_cost
from stma.model.factory import ModelConfig
from stma.model.pretrained import kind_of
from stma.model.weights import read_weights
from stma.runtime.resume import RECORD, file_digest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
HEIGHT, WIDTH = 480, 864  # of the frames whose GFLOPs are counted, as in the paper
NONE = str(None)
NAMED = ("stages", "sources")  # settings that hold others under the user's names
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
    "model",  # as stored in the weights
)
# Settings of an evaluation that change only speed and memory.
UNCOUNTED = ("output", "weights", "datasets", "overwrite", "report", "compare", "sheets", "videos")


@dataclass
class Run:
    """One finished run of train.py.

    Attributes:
        settings: all that distinguishes it from runs of other rows, see :func:`settings_of`.
    """

    folder: Path
    weights: Path
    model: ModelConfig
    settings: dict[str, str]
    seed: int


@dataclass
class Row:
    """Runs that differ only in their seed, and their results."""

    runs: list[Run]
    results: list[Evaluation] = field(default_factory=list)

    @property
    def model(self) -> ModelConfig:
        return self.runs[0].model

    @property
    def settings(self) -> dict[str, str]:
        return self.runs[0].settings


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of eval.py: KEY=VALUE")
    parser.add_argument("--objects", type=int, default=1, help="in the GFLOPs")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="a setting in which runs of a row may differ (such as weights); repeatable",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.objects < 1:
        parser.error(f"--objects is {arguments.objects}; give 1 or more")
    if others := [each for each in arguments.overrides if "=" not in each]:
        parser.error(f"{', '.join(others)}: settings of eval.py are KEY=VALUE")
    if not arguments.runs.is_dir():
        raise InputError(f"{arguments.runs}: no such folder; give a sweep's folder")
    own = ("output", "weights", "fps_only")
    if others := [x for x in arguments.overrides if x.lstrip("+").partition("=")[0] in own]:
        parser.error(f"{', '.join(others)}: the table itself sets {', '.join(own)}")
    rows = find_rows(arguments.runs, arguments.ignore)
    configs = {
        run.folder: evaluation_of(run, arguments.overrides) for row in rows for run in row.runs
    }
    prepare(list(configs.values()))
    for row in rows:
        for run in row.runs:
            result = evaluate(configs[run.folder])
            if result is None or not result.ok or not result.scores:
                raise InputError(f"{run.folder}: {result.text() if result else 'not evaluated'}")
            row.results.append(result)

    table = make_table(rows, arguments.objects)
    path = arguments.runs / "table"
    (path.with_suffix(".md")).write_text(table.markdown() + "\n", encoding="utf-8")
    table.write_csv(path.with_suffix(".csv"))
    print(table.markdown())
    print(f"\n{path.with_suffix('.md')}, {path.with_suffix('.csv')}")
    print(
        "paper: trained on video, J&F on DAVIS 2017 val, FPS on a V100; Table 1 has ConvViT-B, MAE"
    )


def prepare(configs: Sequence[EvalConfig]) -> None:
    """Segment one clip as a warm-up, or the first row's FPS would include one-time costs.

    Raises:
        InputError: the clips have no masks to score with.
    """
    some = configs[0]
    clips = list_clips(some.benchmark, some.root, some.split, some.clips).clips
    if not any(clip.can_be_scored for clip in clips):
        raise InputError(f"{some.root}: no clip has all the masks needed for a score")
    todo = [config for config in configs if not (Path(config.output) / RESULTS).exists()]
    if todo:
        evaluate(replace(todo[0], fps_only=True, workers=1, clips=[clips[0].name]))


def find_rows(folder: Path, ignored: Sequence[str]) -> list[Row]:
    """All finished runs under a folder.

    Raises:
        InputError: there is none, two runs of a row have the same seed, or no run has a setting to
            be ignored.
    """
    folders = run_folders(folder)
    if not folders:
        raise InputError(f"{folder}: holds no run of train.py (config.yaml, {RECORD})")
    rows: dict[str, Row] = {}
    known: set[str] = set()
    for each in folders:
        run = read_run(each)
        if isinstance(run, str):
            print(f"left out: {run}")
            continue
        known.update(run.settings)
        key = sorted(item for item in run.settings.items() if item[0] not in ignored)
        row = rows.setdefault(repr(key), Row([]))
        for other in row.runs:
            if other.seed == run.seed:
                raise InputError(
                    f"{other.folder} and {run.folder}: two runs with the same settings and the "
                    f"same seed, {run.seed}; move one of them elsewhere"
                )
        row.runs.append(run)
    if not rows:
        raise InputError(f"{folder}: no run is finished")
    if unknown := [name for name in ignored if name not in known]:
        raise InputError(f"--ignore {', '.join(unknown)}: no run has such a setting")
    return list(rows.values())


def run_folders(folder: Path) -> list[Path]:
    """Those with both files, unlike evaluations and stages; links are followed."""
    found, seen = [], set()
    for path, subfolders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        if {"config.yaml", RECORD} <= set(files):
            found.append(Path(path))
    return sorted(found)


def read_run(folder: Path) -> Run | str:
    """A run, or what is wrong with it."""
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        return f"{folder} (not finished)"
    try:
        model, provenance, _ = read_weights(weights)
    except InputError as error:
        return str(error)
    try:
        config = OmegaConf.load(folder / "config.yaml")
        stages = list(OmegaConf.select(config, "stages") or [])
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        return f"{folder / 'config.yaml'}: {str(error).splitlines()[0]}"
    if not stages:
        return f"{folder / 'config.yaml'}: no stages"
    if provenance.get("stage") != stages[-1]:
        return f"{folder} (not finished: its weights are from stage {provenance.get('stage')})"
    trained = provenance.get("config", {})
    settings = settings_of(model, trained)
    return Run(folder, weights, model, settings, int(trained.get("seed", 0)))


def evaluation_of(run: Run, overrides: Sequence[str]) -> EvalConfig:
    """In a folder that no other evaluation of the run uses."""
    own = [f"weights={quoted(run.weights)}", f"output={quoted(run.folder / 'table')}"]
    given = ["report=false", *overrides]
    config = parse_eval_config(load_resolved(CONFIGS, "eval", [*given, *own], ", ".join(overrides)))
    settings = {name: value for name, value in asdict(config).items() if name not in UNCOUNTED}
    text = repr(settings) + file_digest(run.weights)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return replace(config, output=f"{config.output}/{config.benchmark.name}-{digest}")


def settings_of(model: ModelConfig, run: Mapping[str, Any]) -> dict[str, str]:
    """What distinguishes runs of different rows, by dotted name: not where data are stored, and
    files by their content, however their paths are spelled."""
    theirs = {name: value for name, value in run.items() if name not in INCIDENTAL}
    settings = dict(flattened(theirs | {"model": asdict(model)}))
    for name in ("weights", "pretrained"):
        if settings.get(name, NONE) != NONE:
            settings[name] = str(Path(settings[name]).resolve())
    return {name: value for name, value in settings.items() if not name.endswith(".root")}


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            if name in NAMED:
                yield prefix + name, "+".join(sorted(value))
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


def distinctions(rows: Sequence[Row]) -> list[str]:
    """For each row, the settings in which it differs from others with the same backbone; variant
    and starting point have their own columns. A stage or data source that only one of them has is
    given by its name, without its settings."""
    texts = []
    for row in rows:
        alike = [other.settings for other in rows if other.model.backbone == row.model.backbone]
        names = [
            name
            for name, value in row.settings.items()
            if name not in ("model.variant", "pretrained", "weights")
            and any(has_place_for(name, other) and other.get(name) != value for other in alike)
        ]
        lacking = {
            name: None
            for other in alike
            for name in other
            if name not in row.settings and has_place_for(name, row.settings)
        }
        told = [f"{name}={row.settings[name]}" for name in sorted(names)] + [
            f"no {x}" for x in lacking
        ]
        texts.append(" ".join(told))
    return texts


def has_place_for(name: str, settings: Mapping[str, str]) -> bool:
    """Whether the stages and sources that a setting belongs to exist."""
    return all(
        match[2] in settings.get(name[: match.end(1)], "").split("+")
        for match in re.finditer(rf"(?:^|\.)({'|'.join(NAMED)})\.([^.]+)\.", name)
    )


def told_apart(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Starting points, with the file if the name does not distinguish two rows."""
    files = [" ".join(files_of(row)) for row in rows]
    return [
        name
        if all(files[j] == file for j, other in enumerate(names) if other == name)
        else f"{name} ({file})"
        for name, file in zip(names, files, strict=True)
    ]


def files_of(row: Row) -> list[str]:
    """The files that its runs started from, each once."""
    given = [(run.settings.get("weights"), run.settings.get("pretrained")) for run in row.runs]
    return sorted({next((x for x in pair if x not in (None, NONE)), NONE) for pair in given})


def starting_point(row: Row) -> str:
    """In Table 2's words; the file's name if it holds weights, is gone or is of another kind."""
    file, *others = files_of(row)
    if others:
        return "several files"
    if file == NONE:
        return SCRATCH
    if row.settings.get("weights", NONE) != NONE:
        return Path(file).name
    try:
        kind = kind_of(file)
    except InputError:
        kind = ""
    return {"ConvMAE": MAE, "MAE ViT": MAE, "MoCo v3 ViT": MOCO_V3}.get(kind, Path(file).name)


def make_table(rows: list[Row], objects: int) -> Table:
    """In the paper's order of variants."""
    order = list(TABLE_1)
    rows = sorted(rows, key=lambda row: order.index(row.model.variant))
    lines = []
    starts = [starting_point(row) for row in rows]
    columns = (starts, told_apart(starts, rows), distinctions(rows))
    for row, start, shown_start, settings in zip(rows, *columns, strict=True):
        model = row.model
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
                shown_start,
                settings,
                str(len(row.results)),
                *figures,
                number(float(np.median([speed.fps for speed in speeds]))),
                number(
                    max((s.peak_gigabytes for s in speeds if s.peak_gigabytes), default=None), 2
                ),
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
