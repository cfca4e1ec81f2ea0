import dataclasses
import functools
import itertools

import pytest
import torch
import torch._dynamo
from conftest import TINY
from test_trainer import config, trained, trainer_of

from stma.errors import InputError
from stma.model.stma import STMA
from stma.model.weights import load_model, read_segmenter_settings
from stma.training.config import TrainConfig
from stma.training.learner import Learner
from stma.training.run import train
from stma.training.trainer import Trainer


def learner_of(config: TrainConfig, weights=None) -> Learner:
    return Learner(config, config.stages["only"], torch.device("cpu"), weights=weights)


def test_training_goes_on_from_weights_of_the_same_architecture(tmp_path) -> None:
    first = train(config(tmp_path / "first"))
    learner = learner_of(config(tmp_path / "second"), first)
    loaded = load_model(first)
    for a, b in zip(learner.model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, value in (("value_depth", 2), ("num_heads", 4), ("similarity", "l2")):
        other = dataclasses.replace(TINY, **{name: value})
        with pytest.raises(InputError, match=rf"architecture\n  model.{name}: .*{value} here"):
            train(config(tmp_path / "third", weights=str(first), model=other))


def test_weights_that_do_not_fit_load_in_part_when_told_so(tmp_path, caplog) -> None:
    first = train(config(tmp_path / "first"))
    wider = dataclasses.replace(TINY, decoder_widths=[24, 8])
    learner = learner_of(config(tmp_path, model=wider, strict_weights=False), first)
    theirs = load_model(first).state_dict()
    own = learner.model.state_dict()
    fitting = [name for name in own if own[name].shape == theirs[name].shape]
    assert 0 < len(fitting) < len(own)
    assert all(torch.equal(own[name], theirs[name]) for name in fitting)
    for name in set(own) - set(fitting):
        assert f"shape of {name}" in caplog.text


def spoil(model) -> None:
    with torch.no_grad():
        model.decoder.head.bias.fill_(float("nan"))


def test_steps_that_are_never_finite_end_the_run_and_keep_the_weights(tmp_path) -> None:
    first = train(config(tmp_path))
    before = first.read_bytes()
    trainer = trainer_of(config(tmp_path, resume=False, max_skipped=2))
    build = trainer._build

    def build_spoiled(weights) -> None:
        build(weights)
        spoil(trainer.learner.model)

    trainer._build = build_spoiled  # type: ignore[method-assign]
    message = r"loss nan, .* at iteration 1 \(procedural: clip \d.*2 steps in a row"
    with pytest.raises(InputError, match=message):
        trainer.run()
    assert first.read_bytes() == before


def test_a_step_that_is_not_finite_changes_nothing_and_is_named(
    tmp_path, monkeypatch, caplog
) -> None:
    """The gradient of the second step is infinite: weights, averages and moments stay."""
    trainer = trainer_of(config(tmp_path, iterations=4))
    clip_norm, steps, states = torch.nn.utils.clip_grad_norm_, [], []

    def explode(parameters, max_norm):
        parameters = list(parameters)
        steps.append(len(steps))
        if len(steps) == 2:
            parameters[0].grad.fill_(float("inf"))
        return clip_norm(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    step = trainer.step

    def recorded(*arguments):
        result = step(*arguments)
        states.append([t.clone() for t in trainer.learner.model.state_dict().values()])
        return result

    trainer.step = recorded  # type: ignore[method-assign]
    trainer.run()
    same = [
        all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in itertools.pairwise(states)
    ]
    assert same == [True, False, False]
    assert trainer.learner.skipped == 1
    assert trainer.learner.skipped_in_a_row == 0
    assert "skipped: loss" in caplog.text
    assert "at iteration 1 (procedural: clip" in caplog.text


def test_an_overflow_of_fp16_is_no_fault_of_a_clip(tmp_path, monkeypatch) -> None:
    """The gradient is infinite while the scale is above 2^12: it halves until then, and the limit
    of one faulty step is not touched."""
    trainer = trainer_of(config(tmp_path, iterations=4, precision="fp16", max_skipped=1))
    clip_norm = torch.nn.utils.clip_grad_norm_

    def explode(parameters, max_norm):
        parameters = list(parameters)
        scaler, optimizer = trainer.learner.scaler, trainer.learner.optimizer
        if scaler.get_scale() > 2**12:
            state = scaler._per_optimizer_states[id(optimizer)]
            state["found_inf_per_device"][torch.device("cpu")].fill_(1)
            parameters[0].grad.fill_(float("inf"))
        return clip_norm(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    trainer.run()
    assert (trainer.learner.overflows, trainer.learner.skipped) == (2, 0)
    assert trainer.learner.scaler.get_scale() == 2**12


def test_bf16_trains_on_the_cpu_too(tmp_path) -> None:
    model = trained(config(tmp_path, precision="bf16")).learner.model
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert model.object_features.center.abs().sum() > 0


def test_fp16_trains_with_a_scale_that_is_kept(tmp_path) -> None:
    trainer = trained(config(tmp_path, precision="fp16", iterations=4))
    assert trainer.learner.scaler.is_enabled()
    assert all(torch.isfinite(p).all() for p in trainer.learner.model.parameters())
    state = trainer.checkpoints.load_newest()
    assert state is not None
    assert state["scaler"]["scale"] == trainer.learner.scaler.get_scale() > 1


def test_recomputed_blocks_give_the_same_gradient(tmp_path) -> None:
    gradients = []
    for recompute in (False, True):
        settings = config(
            tmp_path, model=dataclasses.replace(TINY, drop_path=0.3), checkpoint_blocks=recompute
        )
        learner = learner_of(settings)
        model = learner.model
        assert all(block.recompute is recompute for block in model.backbone.last_stage)
        learner.step([next(trainer_of(settings).batches())], 0, 0.0)
        gradients.append([p.grad for p in model.parameters()])
        center = model.object_features.num_updates
        assert center == 1  # recomputing does not observe objects twice
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_average_of_weights_is_what_is_saved(tmp_path) -> None:
    """By hand: the first step's weights, then 1/10 of the average and 9/10 of the new ones; the
    third would keep 2/11, which is more than 0.15."""
    trainer = trainer_of(config(tmp_path, ema=0.15, iterations=3))
    step, seen, centers = trainer.step, [], []

    def recorded(*arguments):
        result = step(*arguments)
        seen.append(trainer.learner.model.decoder.head.weight.detach().clone())
        centers.append(trainer.learner.model.object_features.center.clone())
        return result

    trainer.step = recorded  # type: ignore[method-assign]
    trainer.run()
    expected = seen[0]
    for keep, weights in zip((0.1, 0.15), seen[1:], strict=True):
        expected = keep * expected + (1 - keep) * weights
    saved = load_model(trainer.weights_path)
    torch.testing.assert_close(saved.decoder.head.weight, expected)
    center = centers[0]
    for keep, other in zip((0.1, 0.15), centers[1:], strict=True):
        center = keep * center + (1 - keep) * other
    torch.testing.assert_close(saved.object_features.center, center)
    assert not torch.equal(saved.decoder.head.weight, trainer.learner.model.decoder.head.weight)


@pytest.mark.slow
def test_compiled_parts_give_the_same_step_and_none_is_left_to_eager(tmp_path, monkeypatch) -> None:
    """Traced and differentiated ahead of time, but without minutes of generating code. Blocks that
    differ only in stochastic depth share their graphs: otherwise 12 of them would make 60."""
    traced = functools.partialmethod(STMA.compile_parts, backend="aot_eager")
    monkeypatch.setattr(STMA, "compile_parts", traced)
    model = dataclasses.replace(TINY, depths=[1, 1, 12], drop_path=0.3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses = []
    for compiled in (False, True):
        settings = config(tmp_path, compile=compiled, model=model)
        batch = next(trainer_of(settings).batches())
        losses.append(learner_of(settings).step([batch], 0, 0.0).losses.total)
    torch.testing.assert_close(*losses)
    frames = torch._dynamo.utils.counters["frames"]
    assert 0 < frames["ok"] == frames["total"] < 30


@pytest.mark.gpu
def test_a_step_in_bf16_on_cuda(tmp_path) -> None:
    cuda = config(tmp_path, device="cuda", checkpoint_blocks=True)
    trainer = Trainer(cuda, "only", torch.device("cuda"))
    trainer.run()
    assert all(torch.isfinite(p).all() for p in trainer.learner.model.parameters())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_weights_carry_the_settings_of_the_segmenter(tmp_path, ema: float) -> None:
    settings = {"memory_interval": 3, "short_side": 240}
    path = train(config(tmp_path, iterations=1, ema=ema, segmenter=settings))
    assert read_segmenter_settings(path) == settings


@pytest.mark.parametrize(("bad", "ends"), [([0, 2, 4], True), ([0, 2], False)])
def test_a_stage_of_which_most_steps_were_skipped_is_no_success(
    tmp_path, monkeypatch, bad: list[int], ends: bool
) -> None:
    """Of five steps, never two in a row."""
    clip_norm, taken = torch.nn.utils.clip_grad_norm_, itertools.count()

    def explode(parameters, max_norm):
        parameters = list(parameters)
        if next(taken) in bad:
            parameters[0].grad.fill_(float("inf"))
        return clip_norm(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    settings = config(tmp_path, iterations=5)
    if not ends:
        assert train(settings).is_file()
        return
    for _ in range(2):  # another start does not make it one
        with pytest.raises(InputError, match="only: 3 of 5 steps were skipped"):
            train(settings)
    assert not (tmp_path / "weights.safetensors").exists()
