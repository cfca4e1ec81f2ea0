"""J and F of predicted masks, by vos-benchmark.

As it does, an object counts if the truth has it in any frame but the first and the last.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from vos_benchmark.evaluator import Evaluator

from stma.data.images import fit_mask, read_mask
from stma.data.video_folder import VideoFolder
from stma.errors import InputError
from stma.workers import worker_map


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


def score_videos(
    videos: Sequence[VideoFolder], result_root: Path, processes: int
) -> list[ObjectScore]:
    """Score videos of which every frame has a mask, several at a time.

    Args:
        result_root: holds ``<video>/<frame>.png``.

    Raises:
        InputError: a mask cannot be read, or is of another size than the truth.
    """
    arguments = (videos, [result_root / video.name for video in videos])
    with worker_map(max(1, min(processes, len(videos)))) as spread:
        scored = list(spread(score_video, *arguments))
    return [score for scores in scored for score in scores]


def score_video(video: VideoFolder, results: Path) -> list[ObjectScore]:
    """Score the masks ``<frame>.png`` in a folder."""
    evaluator = Evaluator(name=video.name)
    for frame in video.frames[1:-1]:
        truth_path, result_path = video.masks[frame.stem], results / f"{frame.stem}.png"
        result, _ = read_mask(result_path)
        truth = fit_mask(read_mask(truth_path)[0], result, truth_path)
        if truth.shape != result.shape:
            raise InputError(
                f"{truth_path}: {truth.shape[0]} x {truth.shape[1]}, but {result_path}: "
                f"{result.shape[0]} x {result.shape[1]}"
            )
        evaluator.feed_frame(result, truth)
    return object_scores(video.name, *evaluator.conclude())


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
