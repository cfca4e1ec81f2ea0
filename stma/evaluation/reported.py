"""What the paper and its peers report, to show beside a result. Nothing here is ours.

STMA: Table 3 of the paper (Table 4 for LVOS, which does not say by which weights). Peers: the
tables in their own repositories, read in November 2026: XMem docs/RESULTS.md (f3b841d), STCN
README.md (eb83102), aot-benchmark MODEL_ZOO.md (601c138; its own re-implementation), JointFormer
docs/INFERENCE.md (b439094), OneVOS MODEL_ZOO.md (2d8b04b). Figures misprinted there are left out.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REGION = ("J&F", "J", "F")
SEEN_UNSEEN = ("G", "J seen", "F seen", "J unseen", "F unseen")
EVERY_5TH = "_every5th"  # of the same clips, scored by the same server


@dataclass(frozen=True)
class Reported:
    """One row of a published table.

    Attributes:
        training: the data it was trained on.
        figures: in percent, in the order of :func:`columns`; None if not given.
    """

    method: str
    training: str
    figures: tuple[float | None, ...]


# Table 1 of the paper: J&F, J and F on DAVIS 2017 val, then on test-dev; FPS on a V100. Trained on
# video only, ConvViT-B.
TABLE_1: dict[str, tuple[float, ...]] = {
    "no_object": (88.2, 84.8, 91.6, 83.8, 80.1, 86.8, 11.2),
    "no_spatial_memory": (87.8, 84.8, 90.9, 83.5, 80.4, 86.6, 22.1),
    "no_temporal_memory": (88.1, 84.9, 90.9, 81.0, 77.5, 84.6, 3.5),
    "joint": (87.8, 84.8, 90.8, 82.7, 79.5, 85.8, 9.6),
    "full": (88.9, 86.0, 91.8, 85.6, 81.9, 89.2, 10.7),
}

# Table 2: the full model trained on video, by backbone and the weights it starts from: J&F on DAVIS
# 2017 val and test-dev, G on YouTube-VOS 2019 val, FPS on a V100.
SCRATCH, MAE, MOCO_V3 = "scratch", "MAE", "MoCo v3"
TABLE_2: dict[tuple[str, str], tuple[float, ...]] = {
    ("vit", MOCO_V3): (84.1, 79.7, 83.4, 11.0),
    ("vit", MAE): (88.2, 82.1, 85.0, 11.0),
    ("convvit", SCRATCH): (83.6, 77.0, 82.3, 10.7),
    ("convvit", MAE): (88.9, 85.6, 86.3, 10.7),
}


@cache
def all_reported() -> dict[str, list[Reported]]:
    """The rows of `reported.csv`, by benchmark."""
    found: dict[str, list[Reported]] = {}
    with Path(__file__).with_name("reported.csv").open(newline="", encoding="utf-8") as file:
        for benchmark, method, training, text in list(csv.reader(file))[1:]:
            figures = tuple(None if each == "-" else float(each) for each in text.split())
            found.setdefault(benchmark, []).append(Reported(method, training, figures))
    return found


def reported(benchmark: str) -> list[Reported]:
    """The rows for a benchmark; empty if nothing is reported."""
    rows = all_reported().get(benchmark.removesuffix(EVERY_5TH), [])
    if benchmark.endswith(EVERY_5TH):  # the paper does not say which frames it used
        return [row for row in rows if not row.method.endswith("all frames")]
    return rows


def columns(benchmark: str) -> tuple[str, ...]:
    """Names of the figures in a benchmark's rows."""
    return SEEN_UNSEEN if benchmark.startswith("youtubevos") else REGION
