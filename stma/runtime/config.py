"""From Hydra's YAML to the dataclasses that the package works with."""

from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from stma.errors import InputError
from stma.runtime.outputs import check_path

T = TypeVar("T")
ASKED = "InputError raised while resolving interpolation: "
_types_are_checked = ContextVar("types_are_checked", default=False)


def parse_config(kind: type[T], config: DictConfig, source: str = "configuration") -> T:
    """Check a configuration against a dataclass and build it.

    Args:
        source: where it comes from, for messages.

    Raises:
        InputError: an unknown key, a value of the wrong type, a missing one, or one that the
            dataclass refuses; the message names it.
    """
    token = _types_are_checked.set(True)  # by merging; once is enough
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), config)
        for key in OmegaConf.missing_keys(config):  # merging has taken their defaults
            OmegaConf.update(merged, key, "???")
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise InputError(f"{source}: {key} is missing; give {key}=...") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {in_one_line(error)}") from error
    except InputError as error:
        assert isinstance(merged, DictConfig)
        where = _locate(merged)
        named = not where or str(error).startswith(where.partition(".")[0])
        raise InputError(f"{source}: {'' if named else where + ': '}{error}") from error
    finally:
        _types_are_checked.reset(token)


def _ask(advice: str) -> None:
    raise InputError(advice)


# In YAML, ``${ask:"what to give"}`` must be given; ``???`` would not replace a default.
OmegaConf.register_new_resolver("ask", _ask, replace=True)


def in_one_line(error: OmegaConfBaseException) -> str:
    """What OmegaConf says in four lines; for an unknown key, with a similar one that exists."""
    key, section = str(error.full_key or ""), error.parent_node
    if not isinstance(error, (ConfigKeyError, ConfigAttributeError)) or section is None:
        reason = str(error).splitlines()[0].replace(ASKED, "is missing; ")
        return ": ".join(filter(None, (key, reason)))
    parent, _, last = key.rpartition(".")
    known = [str(name) for name in section if name != "hydra"]
    if like := get_close_matches(last, known, n=1):
        return f"no setting {key}; did you mean {f'{parent}.' if parent else ''}{like[0]}?"
    return f"no setting {key}; {parent or 'the top level'} has {', '.join(sorted(known))}"


def check_types(config: Any, prefix: str = "") -> None:
    """Check the values of a dataclass of settings against its annotations, as the command line
    does.

    Args:
        prefix: for the settings' names in the message.

    Raises:
        InputError: names the first setting whose value has the wrong type.
    """
    if _types_are_checked.get():
        return
    try:
        OmegaConf.structured(config)
    except OmegaConfBaseException as error:
        raise InputError(f"{prefix}{in_one_line(error)}") from error


def check_ranges(config: Any, prefix: str = "", **ranges: float | tuple[float, float]) -> None:
    """Check numbers of a dataclass of settings; None is always allowed.

    Args:
        ranges: the least value of a setting, or its least and largest.

    Raises:
        InputError: names the first setting outside of its range.
    """
    for name, limits in ranges.items():
        value = getattr(config, name)
        low, high = limits if isinstance(limits, tuple) else (limits, float("inf"))
        if value is not None and not low <= value <= high:
            up_to = "or more" if high == float("inf") else f"to {high:.3g}"
            raise InputError(f"{prefix}{name} is {value}; give {low:g} {up_to}")


def check_paths(config: Any, *names: str) -> None:
    """Refuse empty paths, which would mean the current folder, and those that no file can have.

    Raises:
        InputError: names the first.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value.strip():
            raise InputError(f"{name} is empty; give a path (. is the current folder)")
        if value is not None:
            check_path(Path(value))


def _locate(config: DictConfig) -> str:
    """The keys of the innermost part of a configuration that its dataclass refuses."""
    for key in config:
        part = None if OmegaConf.is_missing(config, key) else config[key]
        if isinstance(part, DictConfig):
            try:
                OmegaConf.to_object(part)
            except InputError:
                return ".".join(filter(None, (str(key), _locate(part))))
    return ""
