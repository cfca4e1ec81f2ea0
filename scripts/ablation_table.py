"""The paper's Tables 1 and 2 from finished runs: python scripts/ablation_table.py RUNS KEY=VALUE

RUNS holds runs of train.py, as left by a sweep, at any depth:

  python train.py -m experiment=demo 'model.variant=full,no_object,no_spatial_memory,\
no_temporal_memory,joint' seed=0,1 'output=runs/table1/${model.variant}-${seed}'

Every run is evaluated, unless it already has been, as by eval.py with the same keys:
benchmark=davis2017_val datasets=/data, or root=CLIPS segmenter.memory_interval=3. Results stay in
the run's folder "table". Runs that differ only in their seed make one row, with mean and standard
deviation over the seeds; other settings in which rows differ get a column. Runs that are not
finished, or whose weights cannot be read, are named and left out. After an interruption, run the
same command again.
"""

import argparse
import hashlib
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
from stma.model.factory import ModelConfig
from stma.model.pretrained import kind_of
from stma.model.streams import VARIANTS
from stma.model.weights import read_weights
from stma.runtime.resume import file_digest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NAMED = ("stages", "sources")  # settings that hold others under the user's names
# Settings of a run that change nothing of what it learns but by chance.
INCIDENTAL = {
    *("output", "datasets", "seed", "num_workers", "device", "checkpoint_blocks", "compile"),
    *("log_every", "picture_every", "save_every", "save_minutes", "keep_checkpoints", "resume"),
    *("max_skipped", "dry_run", "validation"),
}
# Settings of an evaluation that change only speed and memory.
UNCOUNTED = ("output", "weights", "datasets", "overwrite", "report", "compare", "videos")


@dataclass
class Run:
    """A finished run of train.py, with all settings that distinguish it from runs of other rows."""

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


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of eval.py: KEY=VALUE")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="a setting in which runs of a row may differ (such as weights); repeatable",
    )
    arguments = parser.parse_intermixed_args()
    for each in arguments.overrides:
        key, equals, _ = each.lstrip("+").partition("=")
        if not equals:
            parser.error(f"{each}: settings of eval.py are KEY=VALUE")
        if key in ("output", "weights", "fps_only"):
            parser.error(f"{each}: the table itself sets it")
    rows = find_rows(arguments.runs, arguments.ignore)
    evaluate_all(rows, arguments.overrides)
    table = make_table(rows)
    path = arguments.runs / "table"
    (path.with_suffix(".md")).write_text(table.markdown() + "\n", encoding="utf-8")
    table.write_csv(path.with_suffix(".csv"))
    print(f"{table.markdown()}\n\n{path.with_suffix('.md')}, {path.with_suffix('.csv')}")
    print(
        "paper: trained on video, J&F on DAVIS 2017 val, FPS on a V100; Table 1 has ConvViT-B, MAE"
    )


def find_rows(folder: Path, ignored: Sequence[str]) -> list[Row]:
    """All finished runs under a folder.

    Raises:
        InputError: there is none, two runs of a row have the same seed, or no run has a setting to
            be ignored.
    """
    rows: dict[str, Row] = {}
    known: set[str] = set()
    for config in sorted(folder.rglob("config.yaml")):
        run = read_run(config)
        if not isinstance(run, Run):
            if run is not None:
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
        raise InputError(f"{folder}: no finished run of train.py there; give a sweep's folder")
    if unknown := [name for name in ignored if name not in known]:
        raise InputError(f"--ignore {', '.join(unknown)}: no run has such a setting")
    return list(rows.values())


def read_run(config: Path) -> Run | str | None:
    """A run, by its ``config.yaml``; or what is wrong with it; None if it is of something else."""
    folder, weights = config.parent, config.with_name("weights.safetensors")
    try:
        stages = OmegaConf.select(OmegaConf.load(config), "stages")
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        return f"{config}: {str(error).splitlines()[0]}"
    if not stages:
        return None
    if not weights.is_file():
        return f"{folder} (not finished)"
    try:
        model, provenance, _ = read_weights(weights)
    except InputError as error:
        return str(error)
    if provenance.get("stage") != list(stages)[-1]:
        return f"{folder} (not finished: its weights are from stage {provenance.get('stage')})"
    trained = provenance.get("config", {})
    theirs = {name: value for name, value in trained.items() if name not in INCIDENTAL}
    settings = dict(flattened(theirs | {"model": asdict(model)}))
    return Run(folder, weights, model, settings, int(trained.get("seed", 0)))


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted name, but for where data are; also the names of stages and sources."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            if name in NAMED:
                yield prefix + name, "+".join(sorted(value))
            yield from flattened(value, f"{prefix}{name}.")
        elif name in ("weights", "pretrained") and value is not None:
            yield prefix + name, str(Path(value).resolve())
        elif name != "root":
            yield prefix + name, str(value)


def evaluate_all(rows: Sequence[Row], overrides: Sequence[str]) -> None:
    """Fill in the rows' results.

    Raises:
        InputError: a setting is wrong, the clips have no masks to score with, or a clip failed.
    """
    configs = [[evaluation_of(run, overrides) for run in row.runs] for row in rows]
    some = configs[0][0]
    clips = list_clips(some.benchmark, some.root, some.split, some.clips).clips
    if not any(clip.can_be_scored for clip in clips):
        raise InputError(f"{some.root}: no clip has all the masks needed for a score")
    if not all(Path(each.output, RESULTS).exists() for row in configs for each in row):
        # A warm-up, or the first row's FPS would include one-time costs.
        evaluate(replace(some, fps_only=True, clips=[clips[0].name]))
    for row, its_configs in zip(rows, configs, strict=True):
        for config in its_configs:
            result = evaluate(config)
            if result is None or not result.ok or not result.scores:
                raise InputError(f"{config.output}: {result.text() if result else 'no result'}")
            row.results.append(result)


def evaluation_of(run: Run, overrides: Sequence[str]) -> EvalConfig:
    """In a folder that no other evaluation of the run uses."""
    own = [f"weights={quoted(run.weights)}", f"output={quoted(run.folder / 'table')}"]
    given = ["report=false", *overrides]
    config = parse_eval_config(load_resolved(CONFIGS, "eval", [*given, *own], ", ".join(overrides)))
    settings = {name: value for name, value in asdict(config).items() if name not in UNCOUNTED}
    text = repr(settings) + file_digest(run.weights)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return replace(config, output=f"{config.output}/{config.benchmark.name}-{digest}")


def starting_point(row: Row) -> str:
    """In Table 2's words if the backbone's file is still there, else the file's name."""
    given = [{run.settings.get(key) for run in row.runs} for key in ("weights", "pretrained")]
    files = set.union(*given) - {None, str(None)}
    if len(files) != 1:
        return "several files" if files else SCRATCH
    (file,) = files
    try:
        kind = kind_of(str(file)) if file in given[1] else ""
    except InputError:
        kind = ""
    words = {"ConvMAE": MAE, "MAE ViT": MAE, "MoCo v3 ViT": MOCO_V3}
    return words.get(kind, Path(str(file)).name)


def distinctions(rows: Sequence[Row]) -> list[str]:
    """For each row, the settings in which it differs from others with the same backbone; of stages
    and sources that only some of them have, the names alone."""
    texts = []
    for row in rows:
        alike = [
            other.runs[0].settings
            for other in rows
            if other.runs[0].model.backbone == row.runs[0].model.backbone
        ]
        names = {name for each in alike for name in each if name != "model.variant"}
        differing = [
            name
            for name in sorted(names)
            if len({each.get(name) for each in alike}) > 1
            and (name.endswith(NAMED) or all(name in each for each in alike))
        ]
        theirs = row.runs[0].settings
        texts.append(" ".join(f"{name}={theirs.get(name, 'none')}" for name in differing))
    return texts


def make_table(rows: list[Row]) -> Table:
    """The full model first."""
    rows = sorted(rows, key=lambda row: VARIANTS.index(row.runs[0].model.variant))
    lines = []
    for row, settings in zip(rows, distinctions(rows), strict=True):
        model, start = row.runs[0].model, starting_point(row)
        means = [result.mean() for result in row.results]
        figures = []
        for name in ("jf", "j", "f"):
            values = [getattr(mean, name) for mean in means]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            figures.append(f"{np.mean(values):.1f}{spread}")
        speeds = [result.speed for result in row.results if result.speed is not None]
        none: tuple[None, ...] = (None,) * 7
        table_1 = TABLE_1.get(model.variant, none) if model.backbone == "convvit" else none
        table_2 = TABLE_2.get((model.backbone, start), none) if model.variant == "full" else none
        lines.append(
            [
                model.variant,
                f"{model.backbone} {model.dims[2]}",
                start,
                settings,
                str(len(row.results)),
                *figures,
                number(float(np.median([speed.fps for speed in speeds]))),
                *map(number, (table_1[0], table_1[6], table_2[0], table_2[3])),
            ]
        )
    header = ["variant", "backbone", "from", "settings", "runs", "J&F", "J", "F", "FPS"]
    paper = ["J&F, Table 1", "FPS, Table 1", "J&F, Table 2", "FPS, Table 2"]
    table = Table([*header, *paper], lines)
    shown = [i for i in range(len(table.header)) if any(row[i] for row in table.rows)]
    return Table([table.header[i] for i in shown], [[row[i] for i in shown] for row in table.rows])


if __name__ == "__main__":
    main()
