"""Several processes on the CPU, through torchrun and gloo."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forking import end, start
from ranks import main
from test_learner import learner_of
from test_trainer import config, trained, trainer_of

from stma.data.sampling import BatchNumbers
from stma.errors import InputError
from stma.model.weights import read_weights
from stma.runtime import distributed
from stma.runtime.distributed import Processes, join_processes
from stma.training.preemption import EXIT_PREEMPTED
from stma.training.run import train

TESTS = Path(__file__).parent


def ranks(
    processes: int, what: str, output: Path, accumulate: int = 1, ends: tuple[int, ...] = ()
) -> str:
    """Start the processes as torchrun does, but at once, and wait for all of them: 300 s, while
    torch waits for half an hour.

    Args:
        ends: the status with which each of them has to end; none given: 0.

    Returns:
        What they have printed on stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    printed = [Path(f"{output}.printed.{rank}") for rank in range(processes)]
    started = [
        start(
            main,
            what,
            str(output),
            accumulate,
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            printed=printed[rank],
        )
        for rank in range(processes)
    ]
    ended = tuple(end(process, 300) for process in started)
    told = "".join(Path(f"{path}.err").read_text() for path in printed)
    assert ended == (ends or (0,) * processes), told
    return told


def torchrun(what: str, output: Path) -> subprocess.CompletedProcess:
    """Start two processes by torchrun itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               str(TESTS / "ranks.py"), what, str(output), "1"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_processes_and_parts_see_the_same_samples_and_give_the_same_gradient(tmp_path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = config(tmp_path / "alone", iterations=3, batch_size=4)
    learner, batch = learner_of(settings), next(trainer_of(settings).batches())
    learner.step([batch], 0, 0.0)
    torch.set_num_threads(threads)
    expected = {n: p.grad for n, p in learner.model.named_parameters()}
    expected["center"] = learner.model.object_features.center
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for processes, accumulate in ((2, 1), (1, 2), (2, 2)):
        path = tmp_path / f"{processes}-{accumulate}.pt"
        ranks(processes, "gradient", path, accumulate)
        names = [
            name
            for rank in range(processes)
            for name in Path(f"{path}.{rank}").read_text().split("|")
        ]
        assert names == batch.names
        gradients = torch.load(path)
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.slow
def test_two_processes_train_to_the_end_and_one_of_them_writes(tmp_path) -> None:
    run = torchrun("train", tmp_path / "run")
    assert run.returncode == 0, run.stderr[-4000:]
    assert "deprecated" not in run.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["details"]["processes"] == 2
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("an epoch is") == 1
    assert run.stderr.count("00:00<?\n") == 1  # a bar when it appears; the end may be drawn twice
    _, _, two = read_weights(tmp_path / "run" / "weights.safetensors")
    one = trained(config(tmp_path / "one", iterations=3, batch_size=4)).learner.model.state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_when_one_is_told_to_leave_all_do_and_go_on(tmp_path) -> None:
    ranks(2, "leave", tmp_path / "run", ends=(EXIT_PREEMPTED, EXIT_PREEMPTED))
    assert "asked to stop: saved after iteration 2" in (tmp_path / "run" / "train.log").read_text()
    assert [p.name for p in (tmp_path / "run" / "only" / "checkpoints").iterdir()] == [
        "00000002.pt"
    ]
    ranks(2, "train", tmp_path / "run")
    assert (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_although_it_reaches_the_workers(tmp_path) -> None:
    told = ranks(2, "group", tmp_path / "run", ends=(EXIT_PREEMPTED, EXIT_PREEMPTED))
    log = (tmp_path / "run" / "train.log").read_text()
    assert "asked to stop: saved after iteration 2" in log
    assert "exited unexpectedly" not in told


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_of_the_process_where_it_was(tmp_path) -> None:
    ranks(2, "spoil", tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    names = Path(f"{tmp_path}/run.names").read_text()
    assert f"skipped: loss nan, gradient norm nan at iteration 1 ({names})" in log
    assert "3 iterations, 1 of them skipped" in log


@pytest.mark.slow
def test_all_options_together_and_another_number_of_processes(tmp_path) -> None:
    """Two processes draw different stochastic depth; with one process it goes on from theirs. They
    have two groups, as between GPUs, of which gloo takes NCCL's part."""
    path = tmp_path / "run"
    ranks(2, "all", path)
    assert not torch.equal(*(torch.load(f"{path}.0.2.{rank}") for rank in range(2)))
    (path / "only" / "run.json").unlink()
    (path / "only" / "checkpoints" / "00000003.pt").unlink()
    ranks(1, "all", path)
    assert not Path(f"{path}.1.1.0").exists()
    assert not torch.equal(torch.load(f"{path}.2.1.0"), torch.load(f"{path}.2.2.0"))
    assert read_weights(path / "weights.safetensors")[1]["iterations"] == 3


@pytest.mark.slow
def test_a_folder_that_the_machines_do_not_share_is_refused_by_one_process(tmp_path) -> None:
    train(config(tmp_path / "run", iterations=3, batch_size=4))
    told = ranks(2, "apart", tmp_path / "run", ends=(1, 1))
    assert told.count("error: output: ") == 1
    assert "a disk shared by all machines" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_clocks_that_differ_change_no_collective(tmp_path) -> None:
    """What each does next depends on what all have agreed on, not on its own clock or clips."""
    ranks(2, "clocks", tmp_path / "run")
    first, second = (Path(f"{tmp_path}/run.{rank}").read_text() for rank in range(2))
    assert first == second
    assert len(first.split(",")) > 1


@pytest.mark.slow
def test_when_one_dies_the_others_end_within_a_minute_and_say_so(tmp_path) -> None:
    told = ranks(2, "die", tmp_path / "run", ends=(1, 9))
    died, said = (Path(f"{tmp_path}/run.{each}").stat().st_mtime
                  for each in ("died", "printed.0.err"))  # fmt: skip
    assert said - died < 60
    assert "error: process 0 can no longer reach another one" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_the_jobs_of_a_sweep_meet_in_groups_of_their_own(tmp_path) -> None:
    """Ten groups one after another, the second process late or early."""
    ranks(2, "again", tmp_path / "run")
    assert Path(f"{tmp_path}/run.0").read_text() == "[1, 3, 5, 7, 9, 11, 13, 15, 17, 19]"


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_processes_have_as_many_parts_of_one_size(world_size: int) -> None:
    """So that none waits for the gradient of a part that another does not have."""
    parts = [
        [len(numbers) for numbers in BatchNumbers(3, 7, 8, rank, world_size, 2)]
        for rank in range(world_size)
    ]
    assert parts == [[4 // world_size] * 8] * world_size


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_loads(tmp_path) -> None:
    settings = config(tmp_path / "run", batch_size=6, accumulate=4)
    with pytest.raises(InputError, match=r"batch_size is 6.*multiple of 4"):
        trainer_of(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("again", [{"TORCHELASTIC_RESTART_COUNT": "1"}, {}])
def test_a_group_never_finds_the_keys_of_an_earlier_one(monkeypatch, again) -> None:
    """Neither of a sweep's earlier job, nor of the processes that torchrun has started again; the
    store is torchrun's and outlives both."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(distributed, "_meeting_place", lambda rank, world_size: store)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed.Processes, "wait", lambda self: None)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def leave_a_key(backend, store, **settings) -> None:
        assert not store.check(["here"])
        store.set("here", "")

    monkeypatch.setattr(distributed.dist, "init_process_group", leave_a_key)
    for environment in ({}, again):
        if again:  # new processes count from 0
            monkeypatch.setattr(distributed, "_joined", itertools.count())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with join_processes("cpu"):
            pass


def test_alone_nothing_is_exchanged(monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with join_processes("cpu") as (processes, device):
        assert processes == Processes(0, 1)
        assert processes.is_main
        assert device.type == "cpu"
        assert processes.maximum(torch.ones(2)).tolist() == [1, 1]
        assert processes.sum(torch.ones(2)).tolist() == [1, 1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
