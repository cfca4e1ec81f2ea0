import numpy as np
import pytest
import torch

from stma.errors import InputError
from stma.model.stma import STMA
from stma.training.adapting import AdaptConfig, adapt, blend_weights

FEW = AdaptConfig(iterations=2, clips=1, num_frames=2, size=48, precision="fp32")


def annotated_frame() -> tuple[np.ndarray, np.ndarray]:
    """A bright square on noise, and its mask."""
    frame = np.random.default_rng(0).integers(0, 80, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1
    frame[mask == 1] += 150
    return frame, mask


def test_weights_move_and_the_given_network_stays(tiny_model: STMA) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    frame, mask = annotated_frame()
    steps: list[int] = []
    adapted = adapt(tiny_model, [frame], [mask], FEW, on_step=lambda: steps.append(1))
    assert len(steps) == FEW.iterations
    assert all(torch.equal(before[n], tensor) for n, tensor in tiny_model.state_dict().items())
    moved = [
        not torch.equal(ours, theirs)
        for ours, theirs in zip(adapted.parameters(), tiny_model.parameters(), strict=True)
    ]
    assert sum(moved) > len(moved) / 2
    assert not adapted.training
    assert all(parameter.requires_grad for parameter in adapted.parameters())
    assert torch.equal(adapted.object_features.center, tiny_model.object_features.center)


def test_only_the_chosen_parts_move(tiny_model: STMA) -> None:
    frame, mask = annotated_frame()
    adapted = adapt(
        tiny_model, [frame], [mask], AdaptConfig(**(vars(FEW) | {"parts": ("decoder",)}))
    )
    theirs = dict(tiny_model.named_parameters())
    moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, theirs[n])}
    assert moved
    assert all(name.startswith("decoder") for name in moved)


def test_a_blend_lies_between(tiny_model: STMA) -> None:
    frame, mask = annotated_frame()
    whole = adapt(tiny_model, [frame], [mask], AdaptConfig(**(vars(FEW) | {"blend": 1.0})))
    half = adapt(tiny_model, [frame], [mask], AdaptConfig(**(vars(FEW) | {"blend": 0.5})))
    blend_weights(whole, tiny_model, 0.5)
    for ours, theirs in zip(half.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_stopping_leaves_no_folder_behind(tiny_model: STMA, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    frame, mask = annotated_frame()

    def stop() -> None:
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(tiny_model, [frame], [mask], FEW, on_step=stop)
    assert not list(tmp_path.iterdir())


def test_faulty_input_is_named(tiny_model: STMA) -> None:
    frame, mask = annotated_frame()
    with pytest.raises(InputError, match="0 frames and 0 masks"):
        adapt(tiny_model, [], [], FEW)
    with pytest.raises(InputError, match="mask 1 holds no object"):
        adapt(tiny_model, [frame, frame], [mask, 0 * mask], FEW)
    with pytest.raises(InputError, match="frame 0 is 64 x 64 pixels, its mask 32 x 64"):
        adapt(tiny_model, [frame], [mask[:, :32]], FEW)
