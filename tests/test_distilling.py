from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file
from torch import Tensor

from stma.errors import InputError
from stma.model.factory import build_model
from stma.model.vit import ViT
from stma.structures import ClipBatch
from stma.training.config import StageConfig, TrainConfig
from stma.training.distilling import Distillation, build_teacher, lone_tokens
from stma.training.learner import Learner
from stma.training.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of two blocks 64 wide, as MAE writes it."""
    torch.manual_seed(0)
    vit = ViT(dim=64, depth=2, num_heads=1, fine_dims=(8, 8), class_token=True)
    state = {n: x for n, x in vit.state_dict().items() if not n.startswith("to_stride")}
    path = tmp_path_factory.mktemp("teacher") / "vit.safetensors"
    save_file(state, path)
    return path


def batch(count: int = 2) -> ClipBatch:
    generator = torch.Generator().manual_seed(count)
    frames = torch.randint(0, 256, (count, 2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return ClipBatch(
        frames=frames,
        masks=torch.zeros(count, 2, 64, 64, dtype=torch.uint8),
        valid_objects=torch.ones(count, 1, dtype=torch.bool),
        references=torch.zeros(count, 2, 1, dtype=torch.long),
        names=["clip"] * count,
    )


def test_a_teacher_is_built_from_its_file(teacher: Path, tmp_path: Path) -> None:
    vit = build_teacher(teacher)
    assert (vit.dim, len(vit.blocks), vit.num_prefix) == (64, 2, 1)
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    assert lone_tokens(vit, torch.randn(2, 3, 32, 48)).shape == (2, 6, 64)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors: not a ViT's weights"):
        build_teacher(tmp_path / "other.safetensors")


def test_a_perfect_head_has_no_loss(teacher: Path) -> None:
    """With the teacher's own backbone, and a head that normalises as targets are."""
    model = build_model(TINY)
    distillation = Distillation(model, teacher).eval()
    distillation.backbone = distillation._teacher[0]
    distillation.head = torch.nn.LayerNorm(64, elementwise_affine=False)
    assert distillation(batch()).item() == pytest.approx(0, abs=1e-9)


def learner(teacher: Path) -> Learner:
    optimizer = OptimizerConfig(learning_rate=3e-3)
    stage = StageConfig(teacher=str(teacher), optimizer=optimizer)
    config = TrainConfig(output="runs", stages={"distill": stage}, model=TINY, precision="fp32")
    return Learner(config, stage, torch.device("cpu"))


def losses_of(student: Learner, steps: range) -> list[float]:
    clip = batch()
    return [student.step([clip], i, progress=0.5).losses.total.item() for i in steps]


def test_the_backbone_learns_the_features_and_nothing_else_moves(teacher: Path) -> None:
    student = learner(teacher)
    before: dict[str, Tensor] = {n: x.clone() for n, x in student.model.state_dict().items()}
    losses = losses_of(student, range(30))
    assert losses[-1] < 0.8 * losses[0]
    after = student.model.state_dict()
    moved = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert moved
    assert all(name.startswith("backbone.") for name in moved)


def test_a_stage_resumes_exactly(teacher: Path) -> None:
    whole, first, second = (learner(teacher) for _ in range(3))
    expected = losses_of(whole, range(4))
    begun = losses_of(first, range(2))
    second.load_state(first.state())
    assert begun + losses_of(second, range(2, 4)) == expected
