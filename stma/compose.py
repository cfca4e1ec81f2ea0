"""Composing the YAML of configs/ where there is no command line."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from stma.config import parse_config
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
