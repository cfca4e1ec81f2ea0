"""Composing the YAML of configs/ where there is no command line."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from stma.config import parse_config
from stma.data.config import DatasetConfig
from stma.errors import InputError
from stma.model.factory import ModelConfig


def load_config(config_dir: Path, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration outside of ``hydra.main``."""
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def model_names(config_dir: Path) -> list[str]:
    """What there is in ``model/``."""
    return sorted(path.stem for path in (config_dir / "model").glob("*.yaml"))


def load_model_config(config_dir: Path, model: str) -> ModelConfig:
    """The configuration ``model/<model>.yaml``.

    Raises:
        InputError: there is none; names those there are.
    """
    if model not in (known := model_names(config_dir)):
        raise InputError(f"no model {model}; there are {', '.join(known)}")
    return parse_config(ModelConfig, load_config(config_dir, "train", [f"model={model}"]).model)


def dataset_names(config_dir: Path) -> list[str]:
    """The datasets that ``dataset/`` describes."""
    shared = ("base", "static")
    names = sorted(path.stem for path in (config_dir / "dataset").glob("*.yaml"))
    return [name for name in names if name not in shared]


def load_dataset_config(
    config_dir: Path, dataset: str, overrides: Sequence[str] = ()
) -> DatasetConfig:
    """The block ``dataset/<dataset>.yaml``.

    Args:
        overrides: ``key=value`` of the block, or ``data.root=...``.

    Raises:
        InputError: there is none, or an override is wrong; names those there are.
    """
    if dataset not in (known := dataset_names(config_dir)):
        raise InputError(f"no dataset {dataset}; there are {', '.join(known)}")
    added = [f"+dataset@data.sources.it={dataset}"]
    for override in overrides:
        added.append(override if override.startswith("data.") else f"data.sources.it.{override}")
    try:
        config = load_config(config_dir, "train", added)
        OmegaConf.resolve(config)
    except HydraException as error:
        raise InputError(f"{dataset}: {str(error).splitlines()[0]}") from error
    return parse_config(DatasetConfig, config.data.sources.it, dataset)
