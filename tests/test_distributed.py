"""Several processes on the CPU, through torchrun and gloo."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_trainer import config, trained, trainer_of

from stma.distributed import Processes, join_processes
from stma.errors import InputError
from stma.model.weights import read_weights

TESTS = Path(__file__).parent

SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_trainer import config
from stma.distributed import join_processes
from stma.training.run import train
from stma.training.trainer import Trainer

what, output, accumulate = sys.argv[2], sys.argv[3], int(sys.argv[4])
settings = config(output, iterations=3, batch_size=4, accumulate=accumulate)
if what == "gradient":
    with join_processes("cpu") as (processes, device):
        trainer = Trainer(settings, "only", device, processes)
        trainer.build(None)
        batches = trainer.batches()
        parts = [next(batches) for _ in range(accumulate)]
        trainer.step(parts, 0.0)
        names = [name for part in parts for name in part.names]
        open(f"{output}.{processes.rank}", "w").write("|".join(names))
        if processes.is_main:
            gradients = {n: p.grad for n, p in trainer.model.named_parameters()}
            gradients["center"] = trainer.model.object_features.center
            torch.save(gradients, output)
        processes.wait()
if what == "leave":  # one of them is told
    step = Trainer.step
    def leave(self, *arguments):
        if self.iteration == 1 and self.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)
    Trainer.step = leave
if what in ("train", "leave"):
    train(settings)
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
    trainer = trainer_of(config(tmp_path / "alone", iterations=3, batch_size=4))
    trainer.build(None)
    batch = next(trainer.batches())
    trainer.step([batch], 0.0)
    torch.set_num_threads(threads)
    expected = {n: p.grad for n, p in trainer.model.named_parameters()}
    expected["center"] = trainer.model.object_features.center
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
    one = trained(config(tmp_path / "one", iterations=3, batch_size=4)).model.state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_when_one_is_told_to_leave_all_do_and_go_on(tmp_path) -> None:
    left = torchrun(2, "leave", tmp_path / "run", check=False)
    assert left.returncode != 0
    assert "told to leave: saved after iteration 2" in (tmp_path / "run" / "train.log").read_text()
    assert [p.name for p in (tmp_path / "run" / "only" / "checkpoints").iterdir()] == [
        "00000002.pt"
    ]
    torchrun(2, "train", tmp_path / "run")
    assert (tmp_path / "run" / "weights.safetensors").is_file()


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
