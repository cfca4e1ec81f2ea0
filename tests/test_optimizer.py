from dataclasses import replace

import pytest
import torch
from conftest import TINY

from stma.model.factory import build_model
from stma.model.stma import STMA
from stma.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)


def test_steps_multiply_the_rate() -> None:
    """The paper's last stage: x0.1 after 100k of 160k iterations."""
    config = OptimizerConfig(learning_rate=3e-5, decay_at=[100 / 160])
    rates = [learning_rate(config, i / 160) for i in (0, 99, 100, 159)]
    assert rates == pytest.approx([3e-5, 3e-5, 3e-6, 3e-6])


def test_cosine_falls_to_zero_after_a_warm_up() -> None:
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup=0.1)
    assert learning_rate(config, 0.0) == 0
    assert learning_rate(config, 0.05) == pytest.approx(0.5, abs=0.01)
    assert learning_rate(config, 0.5) == pytest.approx(0.5)
    assert learning_rate(config, 1.0) == pytest.approx(0)


def test_norms_biases_and_the_position_vector_do_not_decay(tiny_model: STMA) -> None:
    decaying, others = parameter_groups(tiny_model, 0.05)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in tiny_model.named_parameters()}
    spared = {names[id(p)] for p in others["params"]}  # type: ignore[attr-defined]
    assert {"object_features.position", "backbone.norm.weight", "decoder.head.bias"} <= spared
    assert all(name.endswith(("weight", "bias", "position")) for name in spared)
    count = len(decaying["params"]) + len(others["params"])  # type: ignore[arg-type]
    assert count == len(list(tiny_model.parameters()))


def test_a_class_token_does_not_decay() -> None:
    vit = replace(TINY, backbone="vit", depths=[0, 0, 2], class_token=True)
    groups = parameter_groups(model := build_model(vit), 0.05)
    (spared,) = (group for group in groups if group["weight_decay"] == 0)
    assert any(p is model.backbone.cls_token for p in spared["params"])


def test_the_backbone_can_learn_at_a_rate_of_its_own(tiny_model: STMA) -> None:
    optimizer = build_optimizer(tiny_model, OptimizerConfig(backbone_rate=0.1))
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rates) == len(list(tiny_model.parameters()))
    for name, parameter in tiny_model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.05 if name.startswith("backbone.") else 0.5)


def test_parts_that_no_pretrained_weights_fill_learn_at_the_full_rate() -> None:
    vit = replace(TINY, backbone="vit", depths=[1, 1, 2], conv_stem=True)
    groups = parameter_groups(model := build_model(vit), 0.05, backbone_rate=0.1)
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in model.backbone.stem.parameters()} == {1.0}
    assert {rates[id(p)] for p in model.backbone.blocks.parameters()} == {0.1}


def test_the_rate_reaches_every_group(tiny_model: STMA) -> None:
    optimizer = build_optimizer(tiny_model, OptimizerConfig())
    set_learning_rate(optimizer, 0.25)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "linear"},
        {"learning_rate": 0.0},
        {"clip_norm": 0.0},
        {"warmup": 1.0},
        {"backbone_rate": 0.0},
        {"betas": [0.9]},
    ],
)
def test_settings_that_make_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        OptimizerConfig(**settings)
