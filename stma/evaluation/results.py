"""The results of an evaluation, as tables and as files."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stma.evaluation.reported import REGION, columns, reported
from stma.evaluation.running import ClipRun
from stma.evaluation.scoring import ObjectScore, Score, seen_and_unseen, summarize
from stma.evaluation.tables import Table, number, one_line
from stma.runtime.outputs import replacing

RESULTS = "results.json"
FRAME_SCORES = "frame_scores.json"


@dataclass(frozen=True)
class Speed:
    """As the field reports it: of the network and its memory, without reading and writing.

    Attributes:
        frames: from the first mask of each clip on.
        fps: all frames divided by all seconds.
        median_ms, p90_ms: per frame.
        peak_gigabytes: of the device's memory in one process; on a CPU, of the process; None if
            the system does not say.
        device: its name; several if clips ran on several.
        processes: that shared the clips, and perhaps the device: they slow one another down.
    """

    frames: int
    fps: float
    median_ms: float
    p90_ms: float
    peak_gigabytes: float | None
    device: str
    processes: int

    @classmethod
    def of(cls, runs: Sequence[ClipRun], processes: int = 1) -> "Speed":
        seconds = np.concatenate([run.seconds for run in runs])
        peak = max(run.peak_gigabytes for run in runs)
        return cls(
            len(seconds),
            len(seconds) / float(seconds.sum()),
            1000 * float(np.median(seconds)),
            1000 * float(np.percentile(seconds, 90)),
            None if math.isnan(peak) else peak,
            " and ".join(sorted({run.device for run in runs})),
            processes,
        )

    def __str__(self) -> str:
        parts = [
            f"{self.fps:.1f} FPS ({self.frames} frames; median {self.median_ms:.1f} ms, 90th "
            f"percentile {self.p90_ms:.1f} ms; without reading and writing)"
        ]
        if self.peak_gigabytes is not None:
            parts.append(f"{self.peak_gigabytes:.2f} GB at the peak")
        parts.append(self.device)
        if self.processes > 1:
            parts.append(f"{self.processes} processes at once")
        return ", ".join(parts)


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        benchmark: its name.
        frames: which frames of the videos were segmented, in words.
        method: its name in the table.
        runs: of the clips that were segmented.
        scores: one per object of each fully annotated clip; empty if there is none.
        faults: why a clip has no result, by its name.
        speed: None if no clip was segmented.
        archive: for the server; None if none was written.
        problems: with the archive, the pictures and the page, which leave the scores valid.
        speed_only: nothing else was to be measured.
        unseen: clips of classes that are not in training, if the benchmark averages by them.
    """

    benchmark: str
    frames: str
    method: str
    runs: list[ClipRun]
    scores: list[ObjectScore]
    faults: dict[str, str]
    speed: Speed | None
    archive: Path | None = None
    problems: list[str] = field(default_factory=list)
    speed_only: bool = False
    unseen: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Nothing went wrong."""
        return not self.faults and not self.problems

    def mean(self) -> Score | None:
        """Over all objects of all scored clips."""
        return summarize(self.scores)[-1] if self.scores else None

    def groups(self) -> list[Score]:
        """LVOS's seen and unseen classes and the mean of both; empty for other benchmarks."""
        return seen_and_unseen(self.scores, self.unseen)

    def why_no_score(self) -> str:
        """For a result without scores."""
        if not self.runs:
            return "nothing to score: no clip was segmented"
        if self.speed_only:
            return "only the speed was measured"
        if self.archive is not None:
            return "nothing to score here: the benchmark's server scores the archive"
        return "nothing to score: no clip has at least 3 frames and a mask for each"

    def table(self) -> Table:
        """This result with what the paper and its peers report for the benchmark."""
        region = columns(self.benchmark)
        mean = next(reversed(self.groups()), self.mean())
        if mean is None or region != REGION:
            ours = [""] * (len(region) + 4)
        else:
            ours = [number(figure) for figure in figures(mean)]
        speed = number(self.speed.fps if self.speed else None)
        rows = [[self.method, "", *ours, speed]]
        for row in reported(self.benchmark):
            rows.append([row.method, row.training, *map(number, row.figures), *[""] * 5])
        header = ["method", "training", *region, *FIGURES[3:], "FPS"]
        return Table(header, rows)

    def clip_table(self) -> Table:
        """Every clip, and the mean over all objects."""
        rows = [[row.name, *map(number, figures(row))] for row in summarize(self.scores)]
        return Table(["clip", *FIGURES], rows)

    def object_table(self) -> Table:
        """Every object, and the mean."""
        named = [((each.clip, str(each.object_id)), [each]) for each in self.scores]
        rows = [
            [*names, *(number(value, 3) for value in figures(Score.mean_of("", scores)))]
            for names, scores in [*named, (("mean", ""), self.scores)]
        ]
        return Table(["clip", "object", *FIGURES], rows)

    def text(self) -> str:
        """What is printed at the end, as Markdown."""
        parts = [f"{self.benchmark}, {self.frames}: {len(self.runs)} clips"]
        if self.scores:
            scored = len({score.clip for score in self.scores})
            parts[0] += f", {len(self.scores)} objects of {scored} clips scored"
            parts.append(self.clip_table().markdown())
            if groups := self.groups():
                rows = [[g.name, *map(number, (g.jf, g.j, g.f, g.v))] for g in groups]
                parts.append(Table(["classes", "J&F", "J", "F", "V"], rows).markdown())
        else:
            parts.append(self.why_no_score())
        if reported(self.benchmark):
            parts.append(self.table().markdown())
        if self.speed is not None:
            parts.append(str(self.speed))
        if self.archive is not None:
            parts.append(f"archive for the server: {one_line(str(self.archive))}")
        if self.problems:
            parts.append(
                "\n".join(["other problems:", *(f"- {one_line(p)}" for p in self.problems)])
            )
        if self.faults:
            lines = [f"- {one_line(f'{name}: {fault}')}" for name, fault in self.faults.items()]
            count = (
                f"{len(lines)} clip{'s' * (len(lines) > 1)} failed and are in none of the figures"
            )
            parts.append("\n".join([f"{count}:", *lines]))
        return "\n\n".join(parts)


FIGURES = ("J&F", "J", "F", "J recall", "J decay", "F recall", "F decay")


def figures(score: Score) -> tuple[float, ...]:
    """In the order of ``FIGURES``."""
    of_j, of_f = (score.j_recall, score.j_decay), (score.f_recall, score.f_decay)
    return score.jf, score.j, score.f, *of_j, *of_f


def write_results(output: Path, result: Evaluation, made_with: dict[str, Any]) -> None:
    """Write tables as Markdown and CSV, and everything as JSON.

    Args:
        made_with: settings, versions and the command, for the JSON.

    Raises:
        OSError: for example, the disk is full.
    """
    rows = None
    if result.scores:
        rows = [asdict(row) | {"jf": row.jf} for row in summarize(result.scores)]
    groups = [asdict(group) | {"jf": group.jf} for group in result.groups()]
    summary = {
        "benchmark": result.benchmark,
        "frames": result.frames,
        "method": result.method,
        "mean": None if rows is None else rows[-1],
        "clips": None if rows is None else rows[:-1],
        "seen_and_unseen": groups or None,
        "why_no_score": None if rows is not None else result.why_no_score(),
        "speed": None if result.speed is None else asdict(result.speed),
        "archive": None if result.archive is None else result.archive.name,
        "problems": result.problems,
        "faults": result.faults,
        **made_with,
    }
    frames: dict[str, dict[str, Any]] = {}
    for score in result.scores:
        frames.setdefault(score.clip, {})[str(score.object_id)] = {
            "frames": score.stems,
            "j": [round(float(value), 4) for value in score.j.values],
            "f": [round(float(value), 4) for value in score.f.values],
        }
    writers: dict[str, Callable[[Path], object]] = {
        "results.md": lambda path: path.write_text(result.text() + "\n", encoding="utf-8"),
        "results.csv": result.table().write_csv,
        RESULTS: lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"),
    }
    if result.scores:
        writers["scores.csv"] = result.object_table().write_csv
        writers[FRAME_SCORES] = lambda path: path.write_text(json.dumps(frames) + "\n")
    for name, write in writers.items():
        with replacing(output / name, flush=False) as partial:
            write(partial)
