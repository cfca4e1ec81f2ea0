"""From Hydra's YAML to the dataclasses that the package works with."""

import math
import numbers
import types
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

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
        for key in OmegaConf.missing_keys(config):  # merging has taken their defaults
            OmegaConf.update(merged, key, "???")
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {_explained(error, kind, config)}") from error
    except InputError as error:
        assert isinstance(merged, DictConfig)
        where = _locate(merged)
        named = not where or str(error).startswith(where.partition(".")[0])
        raise InputError(f"{source}: {'' if named else where + ': '}{error}") from error


def _explained(error: OmegaConfBaseException, kind: type, config: DictConfig) -> str:
    """The error in one line that names the setting."""
    key = error.full_key or _plain_section(kind, OmegaConf.to_container(config)) or ""
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is missing; give {key}=..."
    if isinstance(error, ConfigKeyError):
        return unknown_key(kind, key)
    hint, names = _described(kind, key)
    if hint is None:
        return f"{key}: {str(error).splitlines()[0]}"
    value = OmegaConf.select(config, key)
    if names:
        return f"{key} is {value!r}; give its settings, such as {key}.{names[0]}=..."
    example = (
        f": {key}=[{value}]" if list in [get_origin(option) for option in _options(hint)] else ""
    )
    return f"{key} is {value!r}; give {_in_words(hint)}{example}"


def _plain_section(kind: type, values: object, key: str = "") -> str | None:
    """The first section that is no mapping; OmegaConf does not name it."""
    if not isinstance(values, dict):
        return key if _described(kind, key)[1] else None
    for name, value in values.items():
        if found := _plain_section(kind, value, f"{key}.{name}" if key else name):
            return found
    return None


def unknown_key(kind: type, key: str) -> str:
    """The message that a dataclass of settings has no such key, with a similar one that exists."""
    parent, _, last = key.rpartition(".")
    _, known = _described(kind, parent)
    like = get_close_matches(last, known, n=1)
    if like:
        nearest = f"{parent}.{like[0]}" if parent else like[0]
        return f"no setting {key}; did you mean {nearest}?"
    return f"no setting {key}; {parent or 'the top level'} has {', '.join(sorted(known))}"


def _described(kind: Any, key: str) -> tuple[Any, list[str]]:
    """The annotation of a setting, and the names under it; None if there is no such setting."""
    hint = kind
    for name in filter(None, key.split(".")):
        option = next((o for o in _options(hint) if is_dataclass(o) or get_origin(o) is dict), None)
        if is_dataclass(option):
            hint = _hints(option).get(name)  # type: ignore[arg-type]
        else:
            hint = get_args(option)[1] if option is not None else None
        if hint is None:
            return None, []
    option = next((o for o in _options(hint) if is_dataclass(o)), None)
    return hint, [] if option is None else [field.name for field in fields(option)]


def check_types(config: Any, prefix: str = "") -> None:
    """Check the values of a dataclass of settings against its annotations, as the command line
    does; numbers must be finite.

    Args:
        prefix: for the settings' names in the message.

    Raises:
        InputError: names the first setting whose value has the wrong type.
    """
    hints = _hints(type(config))  # type: ignore[arg-type]
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not _fits(value, hint):
            raise InputError(f"{prefix}{field.name} is {value!r}; give {_in_words(hint)}")


_hints = cache(get_type_hints)


def _options(hint: Any) -> tuple[Any, ...]:
    """The allowed types: ``(int, NoneType)`` for ``int | None``."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: object, hint: Any) -> bool:
    return any(_is_a(value, option) for option in _options(hint))


def _is_a(value: object, hint: Any) -> bool:
    if hint is Any:
        return True
    kind = get_origin(hint) or hint
    if kind is list:
        (of,) = get_args(hint)
        return isinstance(value, list) and all(_fits(each, of) for each in value)
    if kind is dict:
        key, of = get_args(hint)
        return isinstance(value, dict) and all(
            _fits(name, key) and _fits(each, of) for name, each in value.items()
        )
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _in_words(hint: Any) -> str:
    words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
    words |= {type(None): "null", dict: "a mapping"}
    found = []
    for option in _options(hint):
        kind = get_origin(option) or option
        if kind is list:
            found.append(f"a list, each {_in_words(get_args(option)[0])}")
        else:
            found.append(words.get(kind, f"a {kind.__name__}"))
    return " or ".join(found)


def check_not_empty(config: Any, *names: str) -> None:
    """Refuse empty paths, which would mean the current folder.

    Raises:
        InputError: names the first.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value.strip():
            raise InputError(f"{name} is empty; give a path (. is the current folder)")


NAME_LISTS = ("exclude", "clips", "parts")


def _refuse_numbers_among_names(values: object, source: str, path: str = "") -> None:
    """YAML reads some names, such as 04259896e2, as numbers, and their text is lost."""
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
    """The keys of the innermost part of a configuration that its dataclass refuses."""
    for key in config:
        part = None if OmegaConf.is_missing(config, key) else config[key]
        if isinstance(part, DictConfig):
            try:
                OmegaConf.to_object(part)
            except InputError:
                return ".".join(filter(None, (str(key), _locate(part))))
    return ""
