"""Tests of stma.training.distilling."""

from itertools import repeat
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from stma.errors import InputError
from stma.model.factory import ModelConfig, build_model
from stma.structures import ClipBatch
from stma.training.distilling import CALIBRATION, Teacher, distill, frame_tokens
from stma.training.optimizer import OptimizerConfig

NETWORK = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model(NETWORK).state_dict()  # with its classifier, as public files have it


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(state, path)
    return path


def images(count: int, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_weights_under_other_names_are_taken_in_their_order(
    state: dict[str, Tensor], file: Path, tmp_path: Path
) -> None:
    kept = [x for name, x in state.items() if not name.endswith("num_batches_tracked")]
    torch.save({f"_{i}": tensor for i, tensor in enumerate(kept)}, tmp_path / "renamed.pth")
    batch = images(2)
    expected = Teacher(NETWORK, file)(batch)
    assert torch.equal(Teacher(NETWORK, tmp_path / "renamed.pth")(batch), expected)


def test_a_file_of_another_network_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher\.pth: not of this network"):
        Teacher("tf_efficientnet_lite1", file)
    (tmp_path / "broken.pth").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"broken\.pth: neither a torch\.save file nor"):
        Teacher(NETWORK, tmp_path / "broken.pth")
    with pytest.raises(InputError, match=r"timm .* has no network 'nothing'"):
        Teacher("nothing", file)


def test_targets_are_in_standard_deviations_and_never_change_once_calibrated(file: Path) -> None:
    teacher = Teacher(NETWORK, file).train()
    assert not any(module.training for module in teacher.modules())
    first = teacher(images(8))
    assert first.shape == (8, 16, 112 + 320)
    assert first.mean((0, 1)).abs().max() < 0.2  # 0 but for the clamp
    assert first.std((0, 1)).median() == pytest.approx(1, abs=0.05)
    calibrated = teacher.mean.clone()
    teacher.batches = CALIBRATION
    assert torch.equal(teacher(images(8)), teacher(images(8)))
    teacher(images(4))
    assert torch.equal(teacher.mean, calibrated)


def test_the_backbone_learns_the_features_and_nothing_else_moves(file: Path) -> None:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(dims=[16, 32, 64], depths=[1, 1, 2], num_heads=1, value_widths=[8, 16, 32])
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clip = ClipBatch(
        frames=images(4).unflatten(0, (2, 2)),
        masks=torch.zeros(2, 2, 64, 64, dtype=torch.uint8),
        valid_objects=torch.ones(2, 1, dtype=torch.bool),
        references=torch.zeros(2, 2, 1, dtype=torch.long),
        names=["a", "b"],
    )
    losses: list[float] = []
    config = OptimizerConfig(learning_rate=3e-3, schedule="cosine")
    teacher = Teacher(NETWORK, file)
    last = distill(
        model, teacher, repeat(clip), 40, config, each=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == 40
    assert last == pytest.approx(sum(losses[-4:]) / 4)
    assert last < 0.7 * losses[0]
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert moved
    assert all(name.startswith("backbone.") for name in moved)
    assert frame_tokens(model.eval(), images(1)).shape == (1, 16, 64)
