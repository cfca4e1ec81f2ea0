"""docs/extending.md: its diffs fit this version, and what they add works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import box, gradient, write_clip, write_clip_file

from stma.data.pictures import save_mask

ROOT = Path(__file__).parent.parent


@pytest.fixture
def changed(tmp_path) -> Path:
    """A copy of the code with all diffs of the page applied."""
    tree = tmp_path / "tree"
    for name in ("stma", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tree)
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for number, diff in enumerate(re.findall(r"^```diff\n(.*?)^```", page, re.S | re.M)):
        # Lines may have moved, but the code around a change must be as shown.
        command = ["git", "apply", "--recount", "--unidiff-zero", "-"]
        applied = subprocess.run(command, input=diff, text=True, cwd=tree, capture_output=True)
        assert applied.returncode == 0, f"diff {number}: {applied.stderr}"
    return tree


@pytest.mark.slow
def test_all_changes_at_once_train_and_segment(changed: Path, tmp_path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=changed, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    masks = dict.fromkeys(range(0, 12, 3), box(8, 8, 20, 20))
    write_clip(tmp_path / "data" / "birds", "robin", masks, frames=12)
    data = "stages.debug.data"
    run(
        "train.py", "experiment=debug", f"datasets={tmp_path}/data", f"output={tmp_path}/run",
        "device=cpu", "num_workers=0", f"+dataset@{data}.sources.birds=birds",
        f"{data}.sources.birds.weight=0.9", f"{data}.sources.procedural.weight=0.1",
        "model=vit_tiny", "model.variant=first_reference",
        "stages.debug.loss.area=0.1", "stages.debug.iterations=3",
        f"{data}.height=32", f"{data}.width=48",
    )  # fmt: skip
    video = write_clip_file(tmp_path / "a.mp4", map(gradient, range(6)))
    save_mask(tmp_path / "first.png", box(8, 8, 24, 24, size=(48, 64)))
    run(
        "-m", "stma", "segment", str(video), f"--mask={tmp_path}/first.png", "--save=masks,matte",
        f"--weights={tmp_path}/run", f"--output={tmp_path}/out", "--device=cpu",
    )  # fmt: skip
    assert (tmp_path / "out" / "matte.mp4").stat().st_size > 0
    script = (
        "import torch; from stma.memory.temporal import least_used as f; age = torch.tensor([[1, 5,"
        "3.]]); print(f(torch.ones(1, 3), age, torch.zeros(1, 3, dtype=bool), 1).item())"
    )
    oldest = subprocess.run(
        [sys.executable, "-c", script], cwd=changed, capture_output=True, text=True
    )
    assert oldest.stdout.strip() == "1", oldest.stderr


def test_the_page_has_every_kind_of_change() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    kinds = ("stream", "loss", "dataset", "backbone", "memory policy", "output")
    assert np.all([f"## A {kind}\n" in page or f"## An {kind}\n" in page for kind in kinds])
