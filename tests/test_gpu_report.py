import json
import runpy
import sys
from pathlib import Path

import pytest

from stma.inference import compiled

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.mark.slow
def test_the_rehearsal_takes_every_part_and_keeps_them(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("stma.inference.footprint.MAX_UPDATES", 4)  # toy frames never fill it
    monkeypatch.setattr(compiled, "BACKEND", compiled.BACKEND)  # the rehearsal has its own

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
        "video convvit_xs, 1 objects, eager",
        "video convvit_xs, 1 objects, compiled",
        "training video",
        "video convvit_t, 1 objects, eager",
        "video convvit_t, 1 objects, compiled",
        "small",
    ]
    assert not any("failed" in row for row in rows.values())
    assert rows["compare fp32"]["pixels_alike_percent"] == 100
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
