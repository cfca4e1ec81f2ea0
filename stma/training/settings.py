"""What a stage's result depends on: a run does not continue with other settings."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stma.runtime.provenance import file_digest
from stma.training.config import TrainConfig

# Besides the stage itself and the weights it starts from. The rest may change from one start of a
# run to the next.
LENGTH = ("iterations", "max_minutes")  # of the stage; these may change as well
SETTINGS = ("seed", "precision", "ema", "strict_weights", "model")


def stage_settings(config: TrainConfig, name: str, weights: str | None) -> dict[str, Any]:
    """The settings of one stage, as stored with its results.

    Args:
        weights: that it starts from; see :func:`fingerprint`.
    """
    whole = asdict(config)
    settings = {key: whole[key] for key in SETTINGS}
    return settings | {"weights": weights, "stage": whole["stages"][name]}


def without_length(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings except the stage's length."""
    stage = {key: value for key, value in settings.get("stage", {}).items() if key not in LENGTH}
    return {**settings, "stage": stage}


def new_length(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes to the stage's length, a line for each."""
    old, new = before.get("stage", {}), now["stage"]
    return [
        f"stage.{key}: {old.get(key)} there, {new[key]} here"
        for key in LENGTH
        if old.get(key) != new[key]
    ]


def fingerprint(weights: str | Path) -> str:
    """Identifies a file's content, whatever its name."""
    return f"sha256:{file_digest(weights)[:16]}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Settings that differ, a line for each; datasets may be moved."""
    found = []
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if key == "root":
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {a} there, {b} here")
    return found
