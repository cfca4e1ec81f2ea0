"""Several processes on the CPU, through torchrun and gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_learner import learner_of
from test_trainer import config, trained, trainer_of

from stma.data.sampling import BatchNumbers
from stma.errors import InputError, ToldByAnother
from stma.model.weights import read_weights
from stma.runtime.distributed import Launch, Processes, join_processes, read_launch
from stma.training.run import train

TESTS = Path(__file__).parent

SCRIPT = """
import dataclasses, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_trainer import config
from stma.runtime.distributed import join_processes
from stma.errors import input_errors_end_the_program
from stma.training.learner import Learner
from stma.training.run import train
from stma.training.trainer import Trainer

what, output, accumulate = sys.argv[2], sys.argv[3], int(sys.argv[4])
settings = config(output, iterations=3, batch_size=4, accumulate=accumulate)
if what == "gradient":
    with join_processes("cpu") as (processes, device):
        trainer = Trainer(settings, "only", device, processes)
        trainer.learner = Learner(settings, trainer.stage, device, processes)
        trainer.learner.connect()
        batches = trainer.batches()
        parts = [next(batches) for _ in range(accumulate)]
        trainer.learner.step(parts, 0, 0.0)
        names = [name for part in parts for name in part.names]
        open(f"{output}.{processes.rank}", "w").write("|".join(names))
        if processes.is_main:
            model = trainer.learner.model
            gradients = {n: p.grad for n, p in model.named_parameters()}
            gradients["center"] = model.object_features.center
            torch.save(gradients, output)
            del model, gradients
        processes.wait()
        trainer.release()  # while there is a group that its network belongs to
if what == "leave":  # one of them is told
    step = Trainer.step
    def leave(self, *arguments):
        if self.iteration == 1 and self.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)
    Trainer.step = leave
if what == "spoil":  # the loss of the second process alone is not finite, once
    step = Learner.step
    def spoil(self, parts, iteration, *arguments, **more):
        spoiled = iteration == 1 and self.processes.rank == 1
        bias = self.model.decoder.head.bias
        before = bias.detach().clone()
        if spoiled:
            bias.data.fill_(float("nan"))
            open(output + ".names", "w").write("; ".join(parts[0].names))
            backward, torch.Tensor.backward = torch.Tensor.backward, lambda loss: restored(loss)
            def restored(loss):
                torch.Tensor.backward = backward
                bias.data.copy_(before)
                backward(loss)
        return step(self, parts, iteration, *arguments, **more)
    Learner.step = spoil
if what == "group":  # torchrun's signal reaches the workers too
    step = Trainer.step
    def tell(self, *arguments):
        if self.iteration == 1:
            self.processes.wait()
            os.killpg(os.getpgid(0), signal.SIGTERM)
        return step(self, *arguments)
    Trainer.step = tell
    settings = dataclasses.replace(settings, num_workers=2)
if what == "all":  # each draws masks of its own; average, recomputed and compiled blocks
    import functools
    from stma.model.stma import STMA
    STMA.compile_parts = functools.partialmethod(STMA.compile_parts, backend="eager")
    world = int(os.environ["WORLD_SIZE"])
    model = dataclasses.replace(settings.model, drop_path=0.5)
    settings = dataclasses.replace(
        settings, model=model, ema=0.9, checkpoint_blocks=True, compile=world > 1, save_every=1
    )
    step = Trainer.step
    def recorded(self, *arguments):
        name = f"{output}.{self.iteration}.{world}.{self.processes.rank}"
        torch.save(torch.get_rng_state(), name)
        return step(self, *arguments)
    Trainer.step = recorded
if what == "die":  # as if the system had killed it for its memory
    step = Learner.step
    def die(self, parts, iteration, *arguments, **more):
        if iteration == 1 and self.processes.rank == 1:
            open(output + ".died", "w").close()
            os._exit(9)
        return step(self, parts, iteration, *arguments, **more)
    Learner.step = die
if what == "clocks":  # the stage ends by time; the second one's clock runs ahead, and it is slow
    import time, types
    import stma.training.trainer as module
    stage = dataclasses.replace(settings.stages["only"], iterations=10**6, max_minutes=0.05)
    settings = dataclasses.replace(settings, stages={"only": stage})
    steps, step = [], Learner.step
    def slow(self, parts, iteration, *arguments, **more):
        steps.append(iteration)
        if self.processes.rank == 1:
            time.sleep(0.2 * (iteration % 2))
        return step(self, parts, iteration, *arguments, **more)
    Learner.step = slow
    if os.environ["RANK"] == "1":
        module.time = types.SimpleNamespace(monotonic=lambda: 3 * time.monotonic())
if what == "apart":  # as if the second machine had a disk of its own
    if os.environ["RANK"] == "1":
        settings = dataclasses.replace(settings, output=output + "-other")
if what != "gradient":
    with input_errors_end_the_program():
        train(settings)
if what == "clocks":
    open(f"{output}.{os.environ['RANK']}", "w").write(str(steps))
"""


def torchrun(processes: int, what: str, output: Path, accumulate: int = 1, check: bool = True):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={processes}", "--no-python", sys.executable, "-c", SCRIPT,
               str(TESTS), what, str(output), str(accumulate)]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0 or not check, run.stderr[-4000:]
    return run


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
        torchrun(processes, "gradient", path, accumulate)
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
    run = torchrun(2, "train", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("an epoch is") == 1
    assert run.stderr.count("only: 100%") <= 1
    _, _, two = read_weights(tmp_path / "run" / "weights.safetensors")
    one = trained(config(tmp_path / "one", iterations=3, batch_size=4)).learner.model.state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_when_one_is_told_to_leave_all_do_and_go_on(tmp_path) -> None:
    left = torchrun(2, "leave", tmp_path / "run", check=False)
    assert left.returncode != 0
    assert "asked to stop: saved after iteration 2" in (tmp_path / "run" / "train.log").read_text()
    assert [p.name for p in (tmp_path / "run" / "only" / "checkpoints").iterdir()] == [
        "00000002.pt"
    ]
    torchrun(2, "train", tmp_path / "run")
    assert (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_although_it_reaches_the_workers(tmp_path) -> None:
    left = torchrun(2, "group", tmp_path / "run", check=False)
    assert left.returncode != 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert "asked to stop: saved after iteration 2" in log
    assert "exited unexpectedly" not in left.stderr


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_of_the_process_where_it_was(tmp_path) -> None:
    torchrun(2, "spoil", tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    names = Path(f"{tmp_path}/run.names").read_text()
    assert f"skipped: loss nan, gradient norm nan at iteration 1 ({names})" in log
    assert "3 iterations, 1 of them skipped" in log


@pytest.mark.slow
def test_all_options_together_and_another_number_of_processes(tmp_path) -> None:
    """Two processes draw different stochastic depth; with one process it goes on from theirs."""
    path = tmp_path / "run"
    torchrun(2, "all", path)
    assert not torch.equal(*(torch.load(f"{path}.0.2.{rank}") for rank in range(2)))
    (path / "only" / "finished.json").unlink()
    (path / "only" / "checkpoints" / "00000003.pt").unlink()
    torchrun(1, "all", path)
    assert not Path(f"{path}.1.1.0").exists()
    assert not torch.equal(torch.load(f"{path}.2.1.0"), torch.load(f"{path}.2.2.0"))
    assert read_weights(path / "weights.safetensors")[1]["iterations"] == 3


@pytest.mark.slow
def test_a_folder_that_the_machines_do_not_share_is_refused_by_one_process(tmp_path) -> None:
    train(config(tmp_path / "run", iterations=3, batch_size=4))
    apart = torchrun(2, "apart", tmp_path / "run", check=False)
    assert apart.returncode != 0
    assert apart.stderr.count("error: output: ") == 1
    assert "a disk shared by all machines" in apart.stderr
    assert "Traceback" not in apart.stderr.partition("ChildFailedError")[0].partition("error:")[0]


@pytest.mark.slow
def test_clocks_that_differ_change_no_collective(tmp_path) -> None:
    """What each does next depends on what all have agreed on, not on its own clock or clips."""
    torchrun(2, "clocks", tmp_path / "run")
    first, second = (Path(f"{tmp_path}/run.{rank}").read_text() for rank in range(2))
    assert first == second
    assert len(first.split(",")) > 1


@pytest.mark.slow
def test_when_one_dies_the_others_end_and_say_so(tmp_path) -> None:
    run = torchrun(2, "die", tmp_path / "run", check=False)
    assert run.returncode != 0
    assert time.time() - (tmp_path / "run.died").stat().st_mtime < 60
    before, told, _ = run.stderr.partition("error: process 0 can no longer reach another one")
    assert told
    assert "Traceback" not in before


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_processes_have_as_many_parts_of_one_size(world_size: int) -> None:
    """So that none waits for the gradient of a part that another does not have."""
    parts = [
        [len(numbers) for numbers in BatchNumbers(3, 7, 8, rank, world_size, 2)]
        for rank in range(world_size)
    ]
    assert parts == [[4 // world_size] * 8] * world_size


STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "11"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Launch(3, 4, 1)),
        (STEP | {"SLURM_LOCALID": "3"}, Launch(11, 16, 3, by_slurm=True)),
        (STEP | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, Launch(0, 2, 0)),
        ({"SLURM_NTASKS": "16"}, Launch()),  # a shell of salloc
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, Launch()),  # the script of a job
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "16"}, Launch()),
    ],
)
def test_who_has_started_this_process(environment: dict, expected: Launch) -> None:
    assert read_launch(environment) == expected


@pytest.mark.slow
def test_srun_with_a_task_for_each_process(tmp_path) -> None:
    """Only its environment; there is no torchrun."""
    command = [sys.executable, "-c", SCRIPT, str(TESTS), "train", str(tmp_path / "run"), "1"]
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    shared = os.environ | {"PYTHONPATH": str(TESTS.parent), "SLURM_JOB_ID": "4711"} | step
    tasks = [
        subprocess.Popen(command, env=shared | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    ]
    assert [task.wait(120) for task in tasks] == [0, 0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2


def test_several_machines_need_to_know_where_the_first_process_is(monkeypatch) -> None:
    for name, value in (
        STEP | {"SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    ).items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="export MASTER_ADDR="), join_processes("cpu"):
        pass
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(ToldByAnother), join_processes("cpu"):
        pass


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_loads(tmp_path) -> None:
    settings = config(tmp_path / "run", batch_size=6, accumulate=4)
    with pytest.raises(InputError, match=r"batch_size is 6.*multiple of 4"):
        trainer_of(settings)
    assert not (tmp_path / "run").exists()


def test_alone_nothing_is_exchanged(monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with join_processes("cpu") as (processes, device):
        assert processes == Processes(0, 1)
        assert processes.is_main
        assert device.type == "cpu"
        assert processes.maximum(torch.ones(2)).tolist() == [1, 1]
        assert processes.sum(torch.ones(2)).tolist() == [1, 1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
