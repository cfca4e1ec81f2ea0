"""How sure the network is of each object in each frame, in a file beside the masks."""

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from stma.data.images import natural_order
from stma.runtime.outputs import replacing

log = logging.getLogger(__name__)

SCORES = "scores.csv"
DOUBTFUL = 0.85  # measured (docs/own_video.md)
MAX_DOUBTS = 5


class Doubt(NamedTuple):
    """A frame to look at, by its name."""

    confidence: float
    frame: str
    object_id: int


class Scores:
    """``scores.csv``: frame, object and :attr:`~stma.inference.segmenter.FrameResult.confidence`.

    Args:
        folder: of the outputs; what an earlier start wrote there is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SCORES
        self._confidences: dict[str, dict[int, float]] = {}
        if not self._path.exists():
            return
        try:
            with self._path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    self.add(row["frame"], {int(row["object"]): float(row["confidence"])})
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            log.warning("%s: damaged (%s); it will lack some earlier frames", self._path, error)

    def add(self, frame: str, confidences: Mapping[int, float]) -> None:
        """Note the confidence in each object of a frame."""
        self._confidences.setdefault(frame, {}).update(confidences)

    def write(self) -> None:
        """Write all, atomically."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["frame", "object", "confidence"])
        for frame in sorted(self._confidences, key=natural_order):
            for object_id, confidence in self._confidences[frame].items():
                rows.writerow([frame, object_id, f"{confidence:.3f}"])
        with replacing(self._path) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")

    def doubts(self) -> list[Doubt]:
        """For each object the frame of least confidence, if that is low; at most ``MAX_DOUBTS``,
        the least sure first."""
        least: dict[int, Doubt] = {}
        for frame, confidences in self._confidences.items():
            for object_id, confidence in confidences.items():
                doubt = Doubt(confidence, frame, object_id)
                least[object_id] = min(doubt, least.get(object_id, doubt))
        return [doubt for doubt in sorted(least.values()) if doubt.confidence < DOUBTFUL][
            :MAX_DOUBTS
        ]
