"""J and F of predicted masks, by vos-benchmark (the figures of the official DAVIS tool)."""

import csv
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from vos_benchmark.benchmark import VideoEvaluator

from stma.errors import InputError


@dataclass(frozen=True)
class ObjectScore:
    """Means over a clip's frames without its first and last, in percent."""

    clip: str
    object_id: int
    j: float
    f: float

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2


def score_clips(
    truth_root: Path, result_root: Path, clips: Sequence[str], processes: int
) -> list[ObjectScore]:
    """Score clips whose masks exist in full, several at a time.

    Args:
        truth_root, result_root: hold ``<clip>/<frame>.png``.

    Raises:
        InputError: a mask of the truth is of another size than the result.
    """
    evaluator = VideoEvaluator(str(truth_root), str(result_root))
    processes = min(processes, len(clips))
    try:
        if processes <= 1:
            scored = [evaluator(clip) for clip in clips]
        else:
            # Not forked: the parent has threads of its own by now.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=context) as pool:
                scored = list(pool.map(evaluator, clips))
    except AssertionError as error:  # its only one: a mask of another size than the truth
        raise InputError(f"cannot be scored: {error}") from error
    return [score for clip, j, f in scored for score in object_scores(clip, j, f)]


def object_scores(clip: str, j: Mapping[int, float], f: Mapping[int, float]) -> list[ObjectScore]:
    """What vos-benchmark concludes of one clip: J and F by object ID."""
    return [ObjectScore(clip, int(i), float(j[i]), float(f[i])) for i in sorted(j)]


@dataclass(frozen=True)
class Score:
    """A mean over objects, in percent."""

    name: str
    j: float
    f: float

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2


def summarize(scores: Sequence[ObjectScore]) -> list[Score]:
    """One line per clip, and last the mean over all objects (as DAVIS has it, not over clips)."""
    rows = [
        _mean(clip, [score for score in scores if score.clip == clip])
        for clip in dict.fromkeys(score.clip for score in scores)
    ]
    return [*rows, _mean("mean", scores)]


def _mean(name: str, scores: Sequence[ObjectScore]) -> Score:
    return Score(name, float(np.mean([s.j for s in scores])), float(np.mean([s.f for s in scores])))


def write_csv(path: Path, scores: Sequence[ObjectScore]) -> None:
    """One line per object, and the mean."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "object", "J&F", "J", "F"])
        for score in scores:
            row = [f"{x:.3f}" for x in (score.jf, score.j, score.f)]
            writer.writerow([score.clip, score.object_id, *row])
        mean = _mean("mean", scores)
        writer.writerow(["mean", "", *(f"{x:.3f}" for x in (mean.jf, mean.j, mean.f))])
