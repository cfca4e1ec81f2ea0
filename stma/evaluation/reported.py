"""What the paper and its peers report, to show beside a result. Nothing here is ours.

STMA: Table 3 of the paper (Table 4 for LVOS, which does not say by which weights). Peers: the
tables in their own repositories, read in November 2026: XMem docs/RESULTS.md (f3b841d), STCN
README.md (eb83102), aot-benchmark MODEL_ZOO.md (601c138; its own re-implementation), JointFormer
docs/INFERENCE.md (b439094), OneVOS MODEL_ZOO.md (2d8b04b). Figures misprinted there are left out.
"""

from dataclasses import dataclass

REGION = ("J&F", "J", "F")
SEEN_UNSEEN = ("G", "J seen", "F seen", "J unseen", "F unseen")
VIDEO, STATIC, BL30K = "video", "static + video", "static + BL30K + video"


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


def _row(method: str, training: str, *figures: float | None) -> Reported:
    return Reported(method, training, figures)


REPORTED: dict[str, tuple[Reported, ...]] = {
    "davis2016_val": (
        _row("STMA (paper)", VIDEO, 91.6, 90.3, 93.0),
        _row("STMA (paper)", STATIC, 93.4, 91.9, 94.8),
        _row("STMA (paper)", BL30K, 93.5, 92.1, 94.9),
        _row("XMem", VIDEO, 90.8, 89.6, 91.9),
        _row("XMem", STATIC, 91.5, 90.4, 92.7),
        _row("XMem", BL30K, 92.0, 90.7, 93.2),
        _row("STCN", BL30K, 91.7, 90.4, 93.0),
        _row("R50-AOT-L", STATIC, 91.7, 90.4, 93.0),
        _row("SwinB-AOT-L", STATIC, 92.2, 90.6, 93.8),
        _row("OneVOS", STATIC, 92.7, None, None),
    ),
    "davis2017_val": (
        _row("STMA (paper)", VIDEO, 88.9, 86.0, 91.8),
        _row("STMA (paper)", STATIC, 90.4, 87.3, 93.5),
        _row("STMA (paper)", BL30K, 90.8, 87.8, 93.9),
        _row("XMem", VIDEO, 84.5, 81.4, 87.6),
        _row("XMem", STATIC, 86.2, 82.9, 89.5),
        _row("XMem", BL30K, 87.7, 84.0, 91.4),
        _row("STCN", BL30K, 85.3, 82.0, 88.6),
        _row("R50-AOT-L", STATIC, 85.2, 82.5, 87.9),
        _row("SwinB-AOT-L", STATIC, 85.9, 82.9, 88.9),
        _row("JointFormer", VIDEO, 89.1, 85.9, 92.2),
        _row("JointFormer", STATIC, 89.7, 86.7, 92.7),
        _row("JointFormer", BL30K, 90.1, 87.0, 93.2),
        _row("OneVOS", STATIC, 88.8, None, None),
    ),
    "davis2017_test_dev": (
        _row("STMA (paper)", VIDEO, 85.6, 81.9, 89.2),
        _row("STMA (paper)", STATIC, 87.1, 83.7, 90.5),
        _row("STMA (paper)", BL30K, 87.7, 84.4, 91.0),
        _row("XMem", VIDEO, 79.8, None, None),
        _row("XMem", STATIC, 81.0, 77.4, 84.5),
        _row("XMem", BL30K, 81.2, 77.6, 84.7),
        _row("STCN", BL30K, 79.9, 76.3, 83.5),
        _row("R50-AOT-L", STATIC, 79.5, 76.0, 83.0),
        _row("SwinB-AOT-L", STATIC, 82.1, 78.2, 85.9),
        _row("JointFormer", VIDEO, 87.0, 83.4, 90.6),
        _row("JointFormer", STATIC, 87.6, 84.2, 91.1),
        _row("JointFormer", BL30K, 88.1, 84.7, 91.6),
        _row("OneVOS", STATIC, 84.8, None, None),
    ),
    "youtubevos2018_val": (
        _row("STMA (paper)", VIDEO, 86.1, 85.1, 90.1, 80.1, 89.1),
        _row("STMA (paper)", STATIC, 86.4, 85.0, 89.6, 81.5, 89.3),
        _row("STMA (paper)", BL30K, 87.0, 85.7, 90.2, 82.0, 90.0),
        _row("XMem, all frames", VIDEO, 84.3, 83.9, 88.8, 77.7, 86.7),
        _row("XMem, all frames", STATIC, 85.7, 84.6, 89.3, 80.2, 88.7),
        _row("XMem, all frames", BL30K, 86.1, 85.1, 89.8, 80.3, 89.2),
        _row("STCN", BL30K, 84.3, 83.2, 87.9, 79.0, 87.2),
        _row("R50-AOT-L, all frames", STATIC, 85.5, 84.5, 89.5, 79.6, 88.2),
        _row("SwinB-AOT-L, all frames", STATIC, 85.1, 85.1, 90.1, 78.4, 86.9),
        _row("R50-AOT-L, every 5th", STATIC, 84.6, 83.7, 88.5, 78.8, 87.3),
        _row("SwinB-AOT-L, every 5th", STATIC, 84.7, 84.5, 89.5, 78.1, 86.7),
        _row("R50-DeAOT-L, every 5th", STATIC, 86.0, 84.9, 89.9, 80.4, 88.7),
        _row("SwinB-DeAOT-L, every 5th", STATIC, 86.2, 85.6, 90.6, 80.0, 88.4),
        _row("JointFormer, all frames", VIDEO, 86.0, 86.0, 91.0, 79.5, 87.5),
        _row("JointFormer, all frames", STATIC, 87.0, 86.2, 91.0, 81.4, 89.3),
        _row("JointFormer, all frames", BL30K, 87.6, 86.4, 91.0, 82.2, 90.7),
    ),
    "youtubevos2019_val": (
        _row("STMA (paper)", VIDEO, 86.3, 85.0, 89.5, 81.3, 89.2),
        _row("STMA (paper)", STATIC, 86.8, 85.6, 90.0, 81.8, 89.5),
        _row("STMA (paper)", BL30K, 87.1, 85.6, 90.0, 82.4, 90.1),
        _row("XMem, all frames", VIDEO, 84.2, 83.8, 88.3, 78.1, 86.7),
        _row("XMem, all frames", STATIC, 85.5, 84.3, 88.6, 80.3, 88.6),
        _row("XMem, all frames", BL30K, 85.8, 84.8, 89.2, 80.3, 88.8),
        _row("STCN", BL30K, 84.2, 82.6, 87.0, 79.4, 87.7),
        _row("R50-AOT-L, all frames", STATIC, 85.3, 83.9, 88.8, 79.9, 88.5),
        _row("SwinB-AOT-L, all frames", STATIC, 85.3, 84.6, 89.5, 79.3, 87.7),
        _row("R50-AOT-L, every 5th", STATIC, 84.4, 83.4, 88.1, 78.7, 87.2),
        _row("SwinB-AOT-L, every 5th", STATIC, 84.7, 84.0, 88.8, 78.7, 87.1),
        _row("R50-DeAOT-L, every 5th", STATIC, 85.9, 84.6, 89.4, 80.8, 88.9),
        _row("SwinB-DeAOT-L, every 5th", STATIC, 86.1, 85.3, 90.2, 80.4, 88.6),
        _row("JointFormer, all frames", VIDEO, 86.2, 85.7, 90.5, 80.4, 88.2),
        _row("JointFormer, all frames", STATIC, 87.0, 86.1, 90.6, 82.0, 89.5),
        _row("JointFormer, all frames", BL30K, 87.4, 86.5, 90.9, 82.0, 90.3),
        _row("OneVOS", STATIC, 86.1, None, None, None, None),
    ),
    "lvos_test": (
        _row("STMA (paper)", "without LVOS", 56.8, 52.7, 60.9),
        _row("STMA (paper)", "fine-tuned on LVOS", 57.4, 53.3, 61.5),
        _row("JointFormer", STATIC, 59.9, 55.8, 64.1),
        _row("JointFormer", BL30K, 60.4, 56.5, 64.2),
    ),
    "lvos_val": (
        _row("JointFormer", STATIC, 63.1, 58.7, None),
        _row("JointFormer", BL30K, 66.6, 62.1, 71.1),
        _row("OneVOS", STATIC, 67.4, None, None),
    ),
    "mose_val": (_row("OneVOS", STATIC, 62.3, None, None),),
}
# Every 5th frame of the same clips, scored by the same server. Rows for all frames are not
# comparable; the paper does not say which frames it used.
for _name in ("youtubevos2018_val", "youtubevos2019_val"):
    REPORTED[f"{_name}_every5th"] = tuple(
        row for row in REPORTED[_name] if not row.method.endswith("all frames")
    )

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


def reported(benchmark: str) -> tuple[Reported, ...]:
    """The rows for a benchmark; empty if nothing is reported."""
    return REPORTED.get(benchmark, ())


def columns(benchmark: str) -> tuple[str, ...]:
    """Names of the figures in a benchmark's rows."""
    return SEEN_UNSEEN if benchmark.startswith("youtubevos") else REGION
