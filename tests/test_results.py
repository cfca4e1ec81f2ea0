import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from stma.evaluation.results import Evaluation, Speed, write_results
from stma.evaluation.running import ClipRun
from stma.evaluation.scoring import Measure, ObjectScore

RUNS = [ClipRun("a", [0.1, 0.1, 0.3], 1.0, "CPU"), ClipRun("b", [0.5], 2.0, "CPU")]


def score(clip: str, object_id: int, j: list[float], f: list[float]) -> ObjectScore:
    stems = [f"{i + 1:05d}" for i in range(len(j))]
    return ObjectScore(clip, object_id, stems, Measure(np.array(j)), Measure(np.array(f)))


def evaluation(**changes) -> Evaluation:
    settings = {
        "benchmark": "davis2017_val",
        "frames": "all frames",
        "method": "ours",
        "runs": RUNS,
        "scores": [score("a", 1, [0.8, 0.9], [0.6, 0.7]), score("b", 2, [0.1], [0.2])],
        "faults": {},
        "speed": Speed.of(RUNS),
    }
    return Evaluation(**{**settings, **changes})


def test_seen_and_unseen_classes_weigh_the_same() -> None:
    """By hand: the seen clip has two objects, the unseen one a single one. V of the first object:
    J&F is 0.4 and 0.8, so 0.2 from its mean; those of the other objects do not change."""
    scores = [
        score("a", 1, [0.4, 0.8], [0.4, 0.8]),
        score("a", 2, [0.8, 0.8], [0.6, 0.6]),
        score("b", 1, [0.1, 0.1], [0.3, 0.3]),
    ]
    result = evaluation(benchmark="lvos_val", scores=scores, unseen=["b", "elsewhere"])
    figures = [
        (round(g.jf, 9), round(g.j, 9), round(g.f, 9), round(g.v, 9)) for g in result.groups()
    ]
    assert figures == [
        (65, 70, 60, 10),
        (20, 10, 30, 0),
        (42.5, 40, 45, 5),
    ]
    assert round(result.mean().jf, 9) == 50
    assert result.table().rows[0][2] == "42.5"  # beside published figures
    line = next(line for line in result.text().splitlines() if "mean of both" in line)
    assert line.replace("|", "").split()[3:] == ["42.5", "40.0", "45.0", "5.0"]
    assert evaluation(scores=scores, unseen=["elsewhere"]).groups() == []
    assert evaluation(scores=scores).groups() == []


def test_speed_by_hand() -> None:
    speed = Speed.of(RUNS, processes=2)
    assert speed.frames == 4
    assert speed.fps == 4.0
    assert round(speed.median_ms, 6) == 200
    assert round(speed.p90_ms, 6) == 440  # 0.3 of the way from 0.3 to 0.5 s is 0.44
    assert speed.peak_gigabytes == 2
    assert str(speed).endswith("CPU, 2 processes at once")
    mixed = Speed.of([RUNS[0], replace(RUNS[1], device="H100")])
    assert mixed.device == "CPU and H100"


def test_the_papers_and_the_peers_rows_stand_beside_ours() -> None:
    table = evaluation().table()
    assert table.header[:5] == ["method", "training", "J&F", "J", "F"]
    # J: (85 + 10) / 2, F: (65 + 20) / 2; the second object has one frame, above no half.
    assert list(table.rows[0][:5]) == ["ours", "", "45.0", "47.5", "42.5"]
    assert table.rows[0][5] == "50.0"  # recall of J
    assert table.rows[0][-1] == "4.0"
    by_method = {(row[0], row[1]): row for row in table.rows}
    assert by_method["STMA (paper)", "video"][2:5] == ["88.9", "86.0", "91.8"]
    assert by_method["XMem", "static + video"][2] == "86.2"
    youtube = evaluation(benchmark="youtubevos2019_val", scores=[]).table()
    assert youtube.header[2:7] == ["G", "J seen", "F seen", "J unseen", "F unseen"]
    assert set(youtube.rows[0][2:-1]) == {""}  # the server has our figures
    assert len(evaluation(benchmark="folder").table().rows) == 1


def test_the_text_says_what_went_wrong(tmp_path) -> None:
    fine = evaluation()
    assert fine.ok
    assert "failed" not in fine.text()
    bad = evaluation(
        faults={"c": "c/00002.jpg: cannot be read"},
        archive=tmp_path / "x.zip",
        problems=["c: the clip is missing"],
    )
    assert not bad.ok
    for part in ("1 clip failed", "- c: c/00002.jpg", "archive for the server", "- c: the clip"):
        assert part in bad.text()
    empty = evaluation(scores=[], runs=[], speed=None)
    assert "FPS (" not in empty.text()


def test_the_text_of_a_name_that_is_not_utf_8_can_be_printed() -> None:
    odd = os.fsdecode(b"bad\xff")
    text = evaluation(archive=Path(odd), faults={odd: odd}, problems=[odd]).text()
    assert text.encode().count(b"bad\\udcff") == 4


def test_files(tmp_path) -> None:
    write_results(tmp_path, evaluation(), {"versions": {"stma": "1"}})
    summary = json.loads((tmp_path / "results.json").read_text())
    assert round(summary["mean"]["j"], 6) == 47.5
    assert [row["name"] for row in summary["clips"]] == ["a", "b"]
    assert summary["versions"] == {"stma": "1"}
    frames = json.loads((tmp_path / "frame_scores.json").read_text())
    assert frames["a"]["1"] == {"frames": ["00001", "00002"], "j": [0.8, 0.9], "f": [0.6, 0.7]}
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert ",".join(rows[0]) == "clip,object,J&F,J,F,J recall,J decay,F recall,F decay"
    assert rows[2][:5] == ["b", "2", "15.000", "10.000", "20.000"]
    assert rows[3][:5] == ["mean", "", "45.000", "47.500", "42.500"]
    assert "88.9" in (tmp_path / "results.csv").read_text()
    assert "| a " in (tmp_path / "results.md").read_text()
