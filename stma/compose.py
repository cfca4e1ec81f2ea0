"""Composing the YAML of configs/ without a command line."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from stma.data.config import NEEDLESS, DatasetConfig
from stma.data.dataset import DataConfig
from stma.errors import InputError
from stma.evaluation.eval_config import EvalConfig
from stma.inference.segmenter import SegmenterConfig
from stma.model.factory import ModelConfig
from stma.model.streams import VARIANTS
from stma.runtime.config import in_one_line, parse_config
from stma.training.config import StageConfig, TrainConfig

AUTO = "auto"  # a setting of the segmenter: the value stored with the weights, else the default


def store_defaults() -> None:
    """Give Hydra every setting with its default, from the dataclasses: ``train_defaults``,
    ``eval_defaults`` and the ``base`` of each group. A dataset has only the settings that mean
    something to its kind."""
    store = ConfigStore.instance().store

    def defaults(kind: type) -> dict[str, Any]:
        return OmegaConf.to_container(OmegaConf.structured(kind))  # type: ignore[return-value]

    segmenter = defaults(SegmenterConfig)
    store("train_defaults", defaults(TrainConfig) | {"segmenter": segmenter})
    store("eval_defaults", defaults(EvalConfig) | {"segmenter": dict.fromkeys(segmenter, AUTO)})
    store("base", defaults(ModelConfig), group="model")
    store("base", defaults(StageConfig), group="stage")
    for kind, needless in NEEDLESS.items():
        block = {k: v for k, v in defaults(DatasetConfig).items() if k not in needless}
        name = "base" if kind == DatasetConfig.kind else f"base_{kind}"
        store(name, block | {"kind": kind}, group="dataset")


store_defaults()


def load_config(config_dir: Path, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration outside of ``hydra.main``."""
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def load_resolved(
    config_dir: Path, name: str, overrides: Sequence[str], shown: str | None = None
) -> DictConfig:
    """As :func:`load_config`, for overrides given by the user.

    Args:
        shown: the overrides as the user wrote them, if different.

    Raises:
        InputError: an override is wrong; the message shows them.
    """
    check_choices(config_dir, overrides)
    try:
        config = load_config(config_dir, name, overrides)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # group=null: the last
        raise InputError(_explained(error, shown or ", ".join(overrides))) from error
    return config


def parse_train_config(config: DictConfig) -> TrainConfig:
    """The settings of train.py. Of the segmenter's, those that differ from the defaults remain, to
    be stored with the weights.

    Raises:
        InputError: see :func:`~stma.runtime.config.parse_config`.
    """
    parsed = parse_config(TrainConfig, config)
    segmenter = parse_config(SegmenterConfig, config.segmenter, "segmenter")
    values = {setting: getattr(segmenter, setting.name) for setting in fields(segmenter)}
    parsed.segmenter = {each.name: v for each, v in values.items() if v != each.default}
    return parsed


def _explained(error: Exception, shown: str) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return f"{shown}: {in_one_line(cause)}"
    reason = str(cause).splitlines()[0]
    return (
        f"{shown}: {reason} (put a value with spaces, brackets or an equals sign in quotes: "
        "\"root='/my data'\")"
    )


@contextmanager
def hydra_errors_told(arguments: Sequence[str]) -> Iterator[None]:
    """Wraps a ``hydra.main`` program: what Hydra refuses on its command line is reported in one
    line, instead of six whose advice would be refused next.

    Raises:
        InputError: names the setting, and a similar one that exists.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explained(error, ", ".join(arguments))) from error


def check_choices(config_dir: Path, arguments: Sequence[str]) -> None:
    """Check what a command line chooses from the groups (``stage=[static,video]``, ``model=vit_b``)
    before Hydra does, which would take a dozen lines to refuse it.

    Args:
        arguments: of the command line; those that choose nothing are left to Hydra.

    Raises:
        InputError: there is no such file or model variant; the message names those that exist.
    """
    _check_there(config_dir)
    # In a sweep, Hydra would notice an unknown variant only after training all runs before it.
    known: dict[str, Sequence[str]] = {"model.variant": VARIANTS, "+model.variant": VARIANTS}
    elsewhere = ("--config", "-cd", "-cp", "-cn", "hydra.searchpath")
    if not any(argument.startswith(elsewhere) for argument in arguments):
        groups = [each.name for each in config_dir.iterdir() if each.is_dir()]
        known |= {group: _names(config_dir, group) for group in groups}
    for argument in arguments:
        name, _, value = argument.partition("=")
        for chosen in (each.strip() for each in value.strip("[]'\"").split(",")):
            if name in known and re.fullmatch(r"[\w-]+", chosen) and chosen not in known[name]:
                raise InputError(
                    f"{argument}: no {name.rpartition('.')[2]} {chosen}; there are "
                    f"{', '.join(known[name])}"
                )


def _check_there(config_dir: Path) -> None:
    if not config_dir.is_dir():
        raise InputError(
            f"{config_dir}: no such folder; it holds the programs' settings, so run them from a "
            "checkout of the repository"
        )


def _names(config_dir: Path, group: str) -> list[str]:
    _check_there(config_dir)
    return sorted(path.stem for path in (config_dir / group).glob("*.yaml"))


def quoted(value: object) -> str:
    """Quoted as a value for Hydra's command line, whatever characters it contains."""
    # Hydra takes backslashes literally, except before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), str(value))
    return f"'{escaped}'"


def model_names(config_dir: Path) -> list[str]:
    """The configurations in ``model/``."""
    return _names(config_dir, "model")


def load_model_config(config_dir: Path, model: str) -> ModelConfig:
    """The configuration ``model/<model>.yaml``.

    Raises:
        InputError: there is none; the message names those that exist.
    """
    if model not in (known := model_names(config_dir)):
        raise InputError(f"no model {model}; there are {', '.join(known)}")
    return parse_config(ModelConfig, load_config(config_dir, "train", [f"model={model}"]).model)


def benchmark_names(config_dir: Path) -> list[str]:
    """The benchmarks in ``benchmark/``."""
    return _names(config_dir, "benchmark")


def dataset_names(config_dir: Path) -> list[str]:
    """The datasets in ``dataset/``."""
    return [name for name in _names(config_dir, "dataset") if name != "static"]  # shared by others


def load_data_config(config_dir: Path, dataset: str, overrides: Sequence[str] = ()) -> DataConfig:
    """The data settings for training on ``dataset/<dataset>.yaml`` alone.

    Args:
        overrides: ``key=value`` for the dataset's block, ``data.key=value`` for all data,
            ``cut_from.NAME=DATASET`` (or ``grounds``) to add a dataset to cut from, or
            ``datasets=...``, the folder of all.

    Raises:
        InputError: there is none, or an override is wrong; the message names it.
    """
    if dataset not in (known := dataset_names(config_dir)):
        raise InputError(f"no dataset {dataset}; there are {', '.join(known)}")
    data = "stages.alone.data"
    added = ["+stage@stages.alone=base", f"+dataset@{data}.sources.{dataset}={dataset}"]
    for override in overrides:
        if override.startswith("data."):
            added.append(f"stages.alone.{override}")
        elif override.startswith("datasets="):
            added.append(override)
        elif re.match(r"(cut_from|grounds)\.\w+=", override):
            added.append(f"+dataset@{data}.sources.{dataset}.{override}")
        else:
            added.append(f"{data}.sources.{dataset}.{override}")
    config = load_resolved(config_dir, "train", added, f"{dataset}: {', '.join(overrides)}")
    return parse_config(DataConfig, config.stages.alone.data, dataset)


def load_dataset_config(
    config_dir: Path, dataset: str, overrides: Sequence[str] = ()
) -> DatasetConfig:
    """The block ``dataset/<dataset>.yaml``; see :func:`load_data_config`."""
    return load_data_config(config_dir, dataset, overrides).sources[dataset]
