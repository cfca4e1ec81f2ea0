"""scripts/benchmark.py: every section prints its rows, and rows of one comparison are compared."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"
QUICK = ["--frames=3", "--size", "48", "64", "--rounds=1", "--count=2", "--device=cpu"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture
def rows(monkeypatch, capsys) -> Callable[..., dict[str, dict[str, str]]]:
    """Runs the script, and gives the cells of the table by row and column."""

    def run(*arguments: str) -> dict[str, dict[str, str]]:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, *QUICK])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        lines = [each for each in capsys.readouterr().out.splitlines() if each.startswith("|")]
        header, _, *cells = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
        header[-1] = "remark"
        return {row[0]: dict(zip(header, row, strict=True)) for row in cells}

    return run


def test_a_video_by_number_of_objects_and_settings_beside_the_peers(rows, weights) -> None:
    model, page = f"--model={weights}", weights.parent / "page.md"
    settings = ["--against", "memory_interval=1", "top_k=4", "--against", "precision=fp32"]
    table = rows("video", model, "--objects", "1", "3", *settings, f"--output={page}")
    one, three = (table[f"{weights}, 48 x 64, objects: {count}"] for count in (1, 3))
    assert float(one["per second"]) == pytest.approx(1 / float(one["wall s"]), rel=0.01)
    assert one["ratio"] == ""
    assert float(three["ratio"]) > 0
    assert "% of the pixels differ" in table["memory_interval=1 top_k=4"]["remark"]
    assert table["precision=fp32"]["remark"] == "0.000 % of the pixels differ"
    assert table["SAM 2.1 tiny"]["CPU s"] == "8.7"
    assert f"| {weights}, 48 x 64, objects: 3 | " in page.read_text()


@pytest.mark.slow
def test_the_command(rows, weights) -> None:
    table = rows("command", f"--model={weights}")
    assert float(table["stma segment of one frame"]["wall s"]) > 0
    assert {"stma segment, a later frame", f"{weights}, the network alone"} <= set(table)


def test_training_and_its_data(rows) -> None:
    size = ["stages.demo.data.height=32", "stages.demo.data.width=32", "stages.demo.batch_size=2"]
    table = rows("training", "loader", "--train", "experiment=demo", "accumulate=2", *size)
    assert "TFLOPs a clip" in table["training demo, 2 clips of 3 x 32 x 32"]["remark"]
    loading = table["loading demo, clips of 3 x 32 x 32"]
    assert "workers, whose CPU time is not counted" in loading["remark"]


def test_ratios_are_medians_over_rounds_that_are_compared_in_turns() -> None:
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    order, cpu = [], {"a": iter([1.0, 2.0, 4.0]), "b": iter([3.0, 4.0, 4.0])}

    def work(name: str) -> Callable[[], np.ndarray]:
        def measure() -> np.ndarray:
            order.append(name)
            return np.array([10.0, next(cpu[name]), 0.5])

        return measure

    works = {name: work(name) for name in cpu}
    first, second = script["in_turns"](works, 3, torch.device("cpu"))
    assert order == ["a", "b"] * 3
    assert (first.cpu, first.ratio, second.cpu, second.ratio) == (2, None, 4, 2)


def test_what_cannot_be_measured_is_named(rows, capsys) -> None:
    for arguments, named in (
        (["vidoe"], "vidoe"),
        (["video", "--objects=1", "--against", "nope=1"], "nope"),
        (["training", "--train", "stage=nope"], "nope"),
        (["video", "--objects=1", "--model=nope"], "nope"),
    ):
        with pytest.raises(SystemExit) as error:
            rows(*arguments)
        assert named in f"{error.value} {capsys.readouterr().err}"
