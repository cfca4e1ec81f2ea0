import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from stma.inference import segmenter as segmenter_module

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.mark.slow
def test_the_rehearsal_takes_every_part_and_keeps_them(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("stma.inference.footprint.MAX_UPDATES", 4)  # toy frames never fill it
    monkeypatch.setattr(
        segmenter_module, "BACKEND", segmenter_module.BACKEND
    )  # the rehearsal has its own

    def run() -> None:
        command = ["gpu_report.py", "--rehearse", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(SCRIPTS / "gpu_report.py"), run_name="__main__")

    run()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert list(rows) == [
        "machine",
        "tests",
        "compare fp32",
        "compare bf16",
        "video convvit_xs, 1 object, eager",
        "video convvit_xs, 1 object, compiled",
        "training video",
        "video convvit_t, 1 object, eager",
        "video convvit_t, 1 object, compiled",
        "small",
    ]
    assert not any("failed" in row for row in rows.values())
    assert rows["compare fp32"]["pixels_differ_percent"] == 0
    assert rows["tests"]["status"] in (0, 5)  # without a card all are skipped
    assert rows["small"]["status"] == 0
    page = (tmp_path / "gpu.md").read_text()
    assert "these figures mean nothing" in page
    for title in ("Tests marked", "The shipped network", "Videos", "Training", "Roofline"):
        assert f"## {title}" in page
    assert "<circle" in (tmp_path / "images" / "roofline.svg").read_text()

    page_again = tmp_path / "gpu.md"
    page_again.unlink()
    del rows["compare bf16"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    capsys.readouterr()
    run()  # as after an interruption
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.endswith("...")] == ["compare bf16 ..."]
    assert page_again.is_file()


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "gpu_report.py"))


def video_row(fps: float) -> dict[str, float]:
    return {"fps": fps, "peak_gb": 1.5, "paper_gb": 1.25, "flops": 3e11, "bytes": 2e9}


@pytest.fixture
def kept(report, tmp_path) -> Any:
    kept = report["Kept"](tmp_path / "rows.json", deadline=0)
    kept.rows = {
        "machine": {"card": "NVIDIA H100 80GB HBM3"},
        "compare bf16": {"pixels_differ_percent": 0.04, "loss_differs_percent": 0.5},
        "video convvit_b, 3 objects, eager": video_row(60),
        "video convvit_b, 3 objects, captured": video_row(1234.5),
        "video vit_b, 3 objects, eager": video_row(50),
        "video vit_b, 3 objects, compiled": {"failed": "out of memory"},
    }
    return kept


def test_the_page_has_a_row_for_a_model_and_tells_what_failed(report, kept) -> None:
    lines = report["render"](kept, False).splitlines()
    assert "| model, objects | eager, frames/s | compiled, frames/s | captured, frames/s |" in (
        "\n".join(lines)
    )
    assert "| bf16 | 0.04 | 0.5 |" in lines
    assert "| convvit_b, 3 objects | 60 |  | 1234 | 1.5 | 1.25 |" in lines
    assert "| vit_b, 3 objects | 50 | failed |  | 1.5 | 1.25 |" in lines
    assert "- vit_b, 3 objects, compiled failed: `out of memory`" in lines


def test_the_roofline_names_models_modes_and_the_cards_limits(report, kept) -> None:
    texts = re.findall(r"<text[^>]*>([^<]+)<", report["roofline"](kept))
    expected = {"convvit_b", "vit_b", "eager", "compiled", "captured", "989 TFLOP/s, 3.35 TB/s"}
    assert expected <= set(texts)


def test_tests_that_fail_are_named(report, kept, tmp_path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_of_it():\n    assert 1 > 2\n"
    )
    kept.rows["tests"] = report["run_tests"]((str(tmp_path),))
    assert kept.rows["tests"]["status"] == 1
    failed = [line for line in report["render"](kept, False).splitlines() if "FAILED" in line]
    assert len(failed) == 1
    assert "test_it.py::test_of_it" in failed[0]


def test_a_kernel_does_not_count_beside_the_operator_that_starts_it(report) -> None:
    events = [
        SimpleNamespace(key=key, device_type=kind, time=time)
        for key, kind, time in (
            ("aten::add", DeviceType.CPU, 25),
            ("gemm_kernel", DeviceType.CUDA, 75),
            ("aten::mm", DeviceType.CPU, 75),
        )
    ]
    assert report["busiest"](events, "time") == [["aten::mm", 75.0], ["aten::add", 25.0]]


def test_figures_of_another_card_are_not_mixed_with_these(
    report, kept, monkeypatch, capsys
) -> None:
    kept.path.write_text(json.dumps(kept.rows))
    command = ["gpu_report.py", "--rehearse", "--output", str(kept.path.parent)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(segmenter_module, "BACKEND", segmenter_module.BACKEND)
    with pytest.raises(SystemExit, match="holds figures of NVIDIA H100 80GB HBM3; give another"):
        report["main"]()


def test_a_driver_that_nothing_tells_is_unknown(report, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert report["driver"]() == "unknown"


def test_a_machine_is_told_what_it_lacks(monkeypatch, capsys) -> None:
    wheels = runpy.run_path(str(SCRIPTS / "wheels.py"))
    assert "torch>=2.6" in wheels["requirements"](wheels["PROJECT"].read_text())
    wheels["main"]()
    assert capsys.readouterr().out == "nothing is missing\n"
    monkeypatch.setitem(wheels["main"].__globals__, "is_missing", lambda name: "hydra" in name)
    wheels["main"]()
    told = capsys.readouterr().out
    assert "missing here: hydra-core>=1.3.2\n" in told
    assert "pip wheel --no-deps --wheel-dir wheels 'hydra-core>=1.3.2'" in told
