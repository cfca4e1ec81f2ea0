"""What an evaluation draws: a self-contained HTML page for one or two, and videos."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from stma.data.images import natural_order, read_image
from stma.data.masks import read_mask
from stma.data.pictures import draw_overlay, write_video
from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip
from stma.evaluation.results import FRAME_SCORES, RESULTS
from stma.runtime.opencv import cv2
from stma.runtime.outputs import replacing
from stma.runtime.workers import available_cores, worker_map

MAX_CLIPS = 40  # with pictures: the worst ones
STRIP_FRAMES, STRIP_HEIGHT = 6, 150
PLOT_WIDTH, PLOT_HEIGHT = 640, 160
COLOURS = ("#0b62a4", "#d1570a")  # of the first and the second result


@dataclass(frozen=True)
class Result:
    """What an evaluation has written to its output.

    Attributes:
        title: of the method.
        summary: its results.json.
        table: rows of its results.csv, the header first.
        frame_scores: J and F of every object over time, by clip.
    """

    folder: Path
    title: str
    summary: dict[str, Any]
    table: list[list[str]]
    frame_scores: dict[str, dict[str, dict[str, list]]]

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Raises :class:`InputError`: the folder holds no result of eval.py."""
        try:
            summary = json.loads((folder / RESULTS).read_text())
            with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
                table = list(csv.reader(file))
            path = folder / FRAME_SCORES
            frame_scores = json.loads(path.read_text()) if path.is_file() else {}
            return cls(folder, summary["method"], summary, table, frame_scores)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{folder}: not the complete output of an evaluation ({error!r}); give a folder "
                "that eval.py wrote to, with its results.json"
            ) from error

    def clip_row(self, clip: str) -> dict[str, Any] | None:
        """Its means, if it is scored."""
        return next((row for row in self.summary["clips"] or () if row["name"] == clip), None)


@dataclass(frozen=True)
class ClipPictures:
    """What the page shows of a clip; pictures are data URIs.

    Attributes:
        strips: title and pictures of each row.
        stems: of the frames in the strips.
        missing: why a row is missing.
    """

    strips: list[tuple[str, list[str]]]
    stems: list[str]
    missing: list[str]


def write_report(path: Path, results: Sequence[Result], clips: Sequence[EvalClip]) -> None:
    """Make the page.

    Args:
        results: one, or two to compare.
        clips: that the first one has segmented.

    Raises:
        InputError: the page cannot be written.
    """
    if len({result.title for result in results}) < len(results):
        results = [replace(each, title=f"{each.title} in {each.folder}") for each in results]
    first = results[0]
    rows = {clip.name: [result.clip_row(clip.name) for result in results] for clip in clips}

    def badness(clip: EvalClip) -> float:
        row = rows[clip.name][0]
        return row["jf"] if row is not None else float("inf")

    worst_first = sorted(clips, key=badness)
    shown = worst_first[:MAX_CLIPS]
    processes = available_cores() if len(shown) > 4 else 1
    with worker_map(processes) as spread:
        pictures = list(spread(draw_clip, shown, [results] * len(shown)))
    entries = []
    for clip, drawn in zip_longest(worst_first, pictures):
        scores = [None if row is None else row["jf"] for row in rows[clip.name]]
        known = [score for score in scores if score is not None]
        entries.append(
            {
                "name": clip.name,
                "frames": len(clip.frames),
                "rows": rows[clip.name],
                "jf": known[0] if known else None,
                "difference": known[0] - known[1] if len(known) == 2 else 0.0,
                "plot": plot([result.frame_scores.get(clip.name) for result in results]),
                "drawn": drawn,
            }
        )
    environment = Environment(loader=PackageLoader("stma.evaluation", "."), autoescape=True)
    page = environment.get_template("report.html.jinja").render(
        first=first,
        results=results,
        colours=COLOURS,
        header=first.table[0],
        table=[[each.title, *each.table[1][1:]] for each in results] + first.table[2:],
        ours=len(results),
        entries=entries,
        shown=len(shown),
        scored=first.summary["mean"] is not None,
    )
    try:
        with replacing(path, flush=False) as partial:
            partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path}: the page cannot be written ({error})") from error


def draw_clip(clip: EvalClip, results: Sequence[Result]) -> ClipPictures:
    """Strips of the ground truth, if there is one, and of every result."""
    frames = {path.stem: path for path in clip.frames}
    folders = [(result.title, result.folder / "masks" / clip.name) for result in results]
    rows: list[tuple[str, Path | None]] = [(t, folder) for t, folder in folders if folder.is_dir()]
    if clip.video.fully_annotated:
        rows.insert(0, ("truth", None))
    drawn = ClipPictures([], spaced(clip.output_stems, STRIP_FRAMES), [])
    for title, folder in rows:
        strip = []
        try:
            for stem in drawn.stems:
                path = None if folder is None else folder / f"{stem}.png"
                mask, _ = clip.read_mask(stem) if path is None else read_mask(path)
                strip.append(_small_overlay(read_image(frames[stem]), mask))
            drawn.strips.append((title, strip))
        except InputError as error:
            drawn.missing.append(f"{title}: {error}")
    return drawn


def draw_video(clip: EvalClip, output: Path) -> None:
    """Draw the masks of a segmented clip on its frames: ``videos/<clip>.mp4``."""
    masks = output / "masks" / clip.name
    frames = {path.stem: path for path in clip.frames}
    overlays = (
        draw_overlay(read_image(frames[stem]), read_mask(masks / f"{stem}.png")[0])
        for stem in clip.output_stems
    )
    write_video(output / "videos" / f"{clip.name}.mp4", overlays)


def spaced(items: Sequence[str], count: int) -> list[str]:
    """At most ``count`` of them, evenly spaced from the first to the last."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def _small_overlay(frame: np.ndarray, mask: np.ndarray) -> str:
    """A JPEG as a data URI."""
    size = (max(1, round(frame.shape[1] * STRIP_HEIGHT / frame.shape[0])), STRIP_HEIGHT)
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    picture = draw_overlay(small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def plot(sides: Sequence[dict[str, dict[str, list]] | None]) -> dict[str, Any] | None:
    """J (solid) and F (dashed) over time, means over the objects of a clip, as SVG polylines.

    Args:
        sides: for each result, its frame scores of the clip, by object.

    Returns:
        None if nothing is scored.
    """
    scored = {s for side in sides if side for each in side.values() for s in each["frames"]}
    stems = sorted(scored, key=natural_order)
    if not stems:
        return None
    position = {stem: i for i, stem in enumerate(stems)}
    lines = []
    for number, side in enumerate(sides):
        for measure in ("j", "f") if side else ():
            assert side is not None
            total, count = np.zeros(len(stems)), np.zeros(len(stems))
            for each in side.values():
                at = [position[stem] for stem in each["frames"]]
                total[at] += each[measure]
                count[at] += 1
            points = " ".join(
                f"{i / max(1, len(stems) - 1) * PLOT_WIDTH:.1f},"
                f"{PLOT_HEIGHT * (1 - total[i] / count[i]):.1f}"
                for i in np.flatnonzero(count)
            )
            lines.append({"points": points, "colour": COLOURS[number], "dashed": measure == "f"})
    return {
        "lines": lines,
        "first": stems[0],
        "last": stems[-1],
        "width": PLOT_WIDTH,
        "height": PLOT_HEIGHT,
    }
