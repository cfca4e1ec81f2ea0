import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import box, write_clip

from stma.evaluation import spreading
from stma.evaluation.benchmarks import BenchmarkConfig, list_clips
from stma.evaluation.eval_config import EvalConfig
from stma.evaluation.running import ClipRun
from stma.evaluation.spreading import ClipWorker, Failure, own_share, run_clips
from stma.runtime.distributed import Processes

CPU = torch.device("cpu")


@pytest.fixture
def clips(tmp_path):
    for name, frames in (("a", 3), ("b", 9), ("c", 4), ("d", 5)):
        write_clip(tmp_path, name, {0: box(10, 10, 12, 12)}, frames=frames)
    return list_clips(BenchmarkConfig(), tmp_path).clips


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
    outcomes = dict(run_clips(settings, clips, tmp_path / "masks", CPU, worker, Processes()))
    by_name = {clip.name: outcome for clip, outcome in outcomes.items()}
    assert isinstance(by_name["a"], ClipRun)
    assert isinstance(by_name["d"], ClipRun)
    assert "c/00001.png: cannot be read" in by_name["c"].message
    assert by_name["c"].details is None
    assert by_name["b"].message == "RuntimeError: out of memory"
    assert "Traceback" in by_name["b"].details


@pytest.mark.slow
def test_when_a_process_is_killed_the_command_says_so_and_ends(
    clips, tmp_path, monkeypatch
) -> None:
    """The longest clip kills its process; others may be done by then, and are kept."""
    settings = config(tmp_path, workers=2)
    monkeypatch.setattr(spreading, "_run_in_worker", _killed_by_b)
    outcomes = dict(run_clips(settings, clips, tmp_path / "masks", CPU, None, Processes()))
    by_name = {clip.name: outcome for clip, outcome in outcomes.items()}
    assert by_name.keys() == {"a", "b", "c", "d"}
    assert isinstance(by_name["b"], Failure)
    failures = {each.message for each in by_name.values() if isinstance(each, Failure)}
    assert len(failures) == 1
    assert "was killed" in failures.pop()


def _killed_by_b(clip, output):
    """In a worker, as the system does when memory runs out."""
    if clip.name == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return ClipWorker(EvalConfig("root", "out", method="copy"), CPU).run(clip, output)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(clips, tmp_path) -> None:
    """However it ends; they would go on writing to an output that nobody holds."""
    program = (
        "import os, time, multiprocessing\n"
        "from stma.runtime.workers import worker_map\n"
        "if __name__ == '__main__':\n"
        "    with worker_map(2) as spread:\n"
        "        list(spread(print, [1, 2]))\n"
        "        print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "        time.sleep(600)\n"
    )
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline().split() for _ in range(3)]
    workers = [int(pid) for pid in max(lines, key=len)]
    assert len(workers) == 2
    process.kill()
    process.wait()
    for _ in range(3000):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_any_card_is_taken_when_none_is_named(weights, monkeypatch) -> None:
    """`cuda` without a number has no index, which set_device refuses."""
    chosen = []
    monkeypatch.setattr(spreading, "load_model", lambda path, device: device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    settings = EvalConfig("root", "out", weights=str(weights))
    ClipWorker(settings, torch.device("cuda"))
    ClipWorker(settings, torch.device("cuda", 3))
    assert chosen == [3]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    any_card = [spreading._worker_device(settings, torch.device("cuda"), n) for n in range(3)]
    assert [device.index for device in any_card] == [0, 1, 0]
    settings.device = "cuda:5"
    assert spreading._worker_device(settings, torch.device("cuda", 5), 1).index == 5
