import os
import signal

import pytest
import torch
from conftest import box, write_clip

from stma.distributed import Processes
from stma.inference import spreading
from stma.inference.benchmarks import BenchmarkConfig, list_clips
from stma.inference.config import EvalConfig
from stma.inference.running import ClipRun
from stma.inference.spreading import ClipWorker, Failure, own_share, run_clips

CPU = torch.device("cpu")


@pytest.fixture
def clips(tmp_path):
    for name, frames in (("a", 3), ("b", 9), ("c", 4), ("d", 5)):
        write_clip(tmp_path, name, {0: box(10, 10, 12, 12)}, frames=frames)
    return list_clips(BenchmarkConfig(), tmp_path)[0]


def config(tmp_path, **settings) -> EvalConfig:
    return EvalConfig(str(tmp_path), str(tmp_path / "out"), method="copy", **settings)


def test_shares_are_whole_disjoint_and_even(clips) -> None:
    assert own_share(clips, Processes()) == clips
    shares = [own_share(clips, Processes(rank, 2)) for rank in (0, 1)]
    assert [[clip.name for clip in share] for share in shares] == [["b", "a"], ["d", "c"]]
    # 9 + 3 against 5 + 4 frames: each clip went to who had the least.


def test_what_goes_wrong_is_told_and_costs_no_other_clip(clips, tmp_path, monkeypatch) -> None:
    def fails(clip, *arguments):
        if clip.name == "b":
            raise RuntimeError("out of memory")
        return run(clip, *arguments)

    run = spreading.run_clip
    monkeypatch.setattr(spreading, "run_clip", fails)
    (tmp_path / "JPEGImages/c/00001.png").write_bytes(b"")
    settings = config(tmp_path)
    worker = ClipWorker(settings, CPU)
    outcomes = dict(run_clips(settings, clips, tmp_path / "masks", worker, Processes()))
    by_name = {clip.name: outcome for clip, outcome in outcomes.items()}
    assert isinstance(by_name["a"], ClipRun)
    assert isinstance(by_name["d"], ClipRun)
    assert "c/00001.png: cannot be read" in by_name["c"].message
    assert by_name["c"].details is None
    assert by_name["b"].message == "RuntimeError: out of memory"
    assert "Traceback" in by_name["b"].details


@pytest.mark.slow
def test_a_killed_worker_is_told(clips, tmp_path, monkeypatch) -> None:
    settings = config(tmp_path, workers=2)
    worker = ClipWorker(settings, CPU)
    monkeypatch.setattr(spreading, "_run_in_worker", _kill_process)
    outcomes = dict(run_clips(settings, clips, tmp_path / "masks", worker, Processes()))
    assert len(outcomes) == 4
    assert all(isinstance(outcome, Failure) for outcome in outcomes.values())
    assert all("killed (too little memory" in each.message for each in outcomes.values())


def _kill_process(clip, output) -> None:
    """In a worker, as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
