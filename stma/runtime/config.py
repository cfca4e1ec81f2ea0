"""From Hydra's YAML to the dataclasses that the package works with."""

from typing import TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stma.errors import InputError

T = TypeVar("T")


def parse_config(kind: type[T], config: DictConfig, source: str = "configuration") -> T:
    """Check a configuration against a dataclass and build it.

    Args:
        source: where it comes from, for messages.

    Raises:
        InputError: an unknown key, a value of the wrong type, a missing one, or one that the
            dataclass refuses; the message names it.
    """
    _refuse_numbers_among_names(OmegaConf.to_container(config), source)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), config)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        where = f"{error.full_key}: " if error.full_key else ""
        raise InputError(f"{source}: {where}{reason}") from error
    except InputError as error:
        assert isinstance(merged, DictConfig)
        where = _locate(merged)
        named = not where or str(error).startswith(where.partition(".")[0])
        raise InputError(f"{source}: {'' if named else where + ': '}{error}") from error


NAME_LISTS = ("exclude", "clips", "parts")


def _refuse_numbers_among_names(values: object, source: str, path: str = "") -> None:
    """YAML reads some names, such as 04259896e2, as numbers: by then their text is lost."""
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        _refuse_numbers_among_names(value, source, f"{path}{key}.")
        for name in value if key in NAME_LISTS and isinstance(value, list) else []:
            if not isinstance(name, str):
                raise InputError(
                    f"{source}: {path}{key}: {name!r} is a number; put names that look like "
                    f"numbers in quotes: {key}=['...']"
                )


def _locate(config: DictConfig) -> str:
    """The innermost part of a configuration that its dataclass refuses, by its keys."""
    for key in config:
        part = None if OmegaConf.is_missing(config, key) else config[key]
        if isinstance(part, DictConfig):
            try:
                OmegaConf.to_object(part)
            except InputError:
                return ".".join(filter(None, (str(key), _locate(part))))
    return ""
