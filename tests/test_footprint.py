"""Memory on paper, of training, compared with what Linux measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, make_batch, perturbed, procedural_data
from torch.torch_version import TorchVersion

from stma.compose import load_model_config
from stma.errors import InputError
from stma.model.factory import build_model
from stma.runtime.footprint import backward, on_paper
from stma.training.config import StageConfig, TrainConfig
from stma.training.dry_run import training_bytes
from stma.training.losses import LossConfig, clip_loss

CPU = torch.device("cpu")
MODEL = load_model_config(Path(__file__).parent.parent / "configs", "convvit_t")
STAGE = StageConfig(data=procedural_data(192, 256, 3, max_objects=2))
TRAIN = TrainConfig(output="unused", model=MODEL, precision="fp32")


def test_tensors_count_while_they_are_alive() -> None:
    with on_paper(CPU) as footprint:
        a = torch.zeros(1000)
        assert footprint.now == 4000
        b = a[10:].view(-1)  # of the same memory
        a.add_(1)
        assert footprint.now == 4000
        c = b + 1
        assert footprint.now == 4000 + 3960
        del c
        assert (footprint.now, footprint.peak) == (4000, 7960)
        del a, b
        assert footprint.now == 0


def test_what_an_operator_keeps_inside_counts_in_inference_too() -> None:
    with on_paper(CPU) as footprint, torch.inference_mode():
        torch.nn.functional.max_pool2d(torch.zeros(1, 1, 8, 8), 2)
    assert footprint.peak == 4 * 64 + 4 * 16 + 8 * 16  # with indices


def test_an_old_torch_needs_the_card(monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cu124"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with on_paper(CPU):
        pass
    told = pytest.raises(InputError, match=r"torch is 2\.6\.0\+cu124; install 2\.15 or newer")
    with told, on_paper(torch.device("cuda", 0)):
        pass


@pytest.mark.parametrize("recompute", [False, True])
def test_node_by_node_the_gradient_is_the_engines(recompute: bool) -> None:
    torch.manual_seed(0)
    model, clip = perturbed(build_model(TINY)).train(), make_batch()
    model.checkpoint_blocks(recompute)
    gradients = []
    for differentiate in (torch.Tensor.backward, backward):
        differentiate(clip_loss(model(clip), clip, LossConfig(), 0).total)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])


MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_footprint import CPU, STAGE, TRAIN
from stma.runtime.device import reset_peak
from stma.training.dry_run import random_batch
from stma.training.learner import Learner

def memory(what):
    status = Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) * 1024

def peak(function):
    reset_peak(CPU)
    before = memory("VmRSS")
    function()
    return memory("VmHWM") - before

def train():
    learner = Learner(TRAIN, STAGE, CPU)
    batch = random_batch(STAGE, 2, CPU)
    for iteration in range(2):
        learner.step([batch], iteration, 0.5)

learner = Learner(TRAIN, STAGE, CPU)  # so that what is loaded lately does not count
del learner
print(json.dumps(peak(train)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process's peak")
def test_the_paper_agrees_with_what_is_measured_on_the_cpu() -> None:
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent)]
    # Every tensor in pages of its own, which go back at once: the allocator's luck does not count.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    expected = training_bytes(TRAIN, STAGE, 2, CPU)
    assert json.loads(run.stdout) == pytest.approx(expected, rel=0.15)
