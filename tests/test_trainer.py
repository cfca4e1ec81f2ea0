import dataclasses
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo
from conftest import TINY, procedural_data

from stma.compose import load_config
from stma.data.dataset import ClipDataset
from stma.errors import InputError
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.factory import build_model
from stma.model.stma import STMA
from stma.model.weights import load_model, read_weights
from stma.runtime.config import parse_config
from stma.training.board import prediction_picture
from stma.training.config import StageConfig, TrainConfig
from stma.training.leaving import EXIT_PREEMPTED, Preempted, signals_noted
from stma.training.optimizer import OptimizerConfig
from stma.training.run import train
from stma.training.trainer import Trainer

CONFIGS = Path(__file__).parent.parent / "configs"


STAGE = ("iterations", "max_minutes", "batch_size", "data", "loss", "optimizer")


def config(output, **settings) -> TrainConfig:
    """Of one stage called ``only``; settings may be those of the stage or of the run."""
    stage = StageConfig(iterations=3, batch_size=2, data=procedural_data(32, 48, 3))
    of_stage = {name: settings.pop(name) for name in STAGE if name in settings}
    stage = dataclasses.replace(stage, **of_stage)
    defaults = TrainConfig(
        output=str(output),
        stages={"only": stage},
        num_workers=0,
        log_every=1,
        picture_every=2,
        device="cpu",
        model=TINY,
    )
    return dataclasses.replace(defaults, **settings)


def trainer_of(config: TrainConfig, kind: type[Trainer] = Trainer) -> Trainer:
    return kind(config, "only", torch.device("cpu"))


def trained(config: TrainConfig) -> Trainer:
    trainer = trainer_of(config)
    trainer.run(config.weights)
    return trainer


def test_a_run_leaves_weights_that_say_where_they_come_from_and_tensorboard(tmp_path) -> None:
    path = train(config(tmp_path / "run"))
    model_config, provenance, _ = read_weights(path)
    assert model_config == TINY
    assert provenance["iterations"] == 3
    assert provenance["config"]["stages"]["only"]["batch_size"] == 2
    assert provenance["stage"] == "only"
    assert {"torch", "git", "command", "stma"} <= set(provenance)
    json.dumps(provenance)
    assert path == tmp_path / "run" / "weights.safetensors"
    assert path.read_bytes() == (tmp_path / "run" / "only" / "weights.safetensors").read_bytes()
    assert list((tmp_path / "run" / "only" / "tensorboard").glob("events*"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["processes"] == 1
    assert record["torch"] == torch.__version__
    assert (tmp_path / "run" / "train.log").is_file()
    assert "batch_size: 2" in (tmp_path / "run" / "config.yaml").read_text()
    load_model(path)


def test_equal_seeds_train_equal_weights(tmp_path) -> None:
    models = [trained(config(tmp_path / name)).model for name in "ab"]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_goes_on_from_weights_of_the_same_architecture(tmp_path) -> None:
    first = train(config(tmp_path / "first"))
    trainer = trainer_of(config(tmp_path / "second"))
    trainer.build(first)
    loaded = load_model(first)
    for a, b in zip(trainer.model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, value in (("value_depth", 2), ("num_heads", 4), ("similarity", "l2")):
        other = dataclasses.replace(TINY, **{name: value})
        with pytest.raises(InputError, match=rf"architecture\n  model.{name}: .*{value} here"):
            train(config(tmp_path / "third", weights=str(first), model=other))


def test_weights_that_do_not_fit_load_in_part_when_told_so(tmp_path, caplog) -> None:
    first = train(config(tmp_path / "first"))
    wider = dataclasses.replace(TINY, decoder_widths=[24, 8])
    trainer = trainer_of(config(tmp_path / "second", model=wider, strict_weights=False))
    trainer.build(first)
    theirs = load_model(first).state_dict()
    own = trainer.model.state_dict()
    fitting = [name for name in own if own[name].shape == theirs[name].shape]
    assert 0 < len(fitting) < len(own)
    assert all(torch.equal(own[name], theirs[name]) for name in fitting)
    for name in set(own) - set(fitting):
        assert f"shape of {name}" in caplog.text


def test_a_run_can_be_bounded_by_time(tmp_path) -> None:
    trainer = trained(config(tmp_path, iterations=100_000, max_minutes=0.02))
    assert 0 < trainer.iteration < 100_000
    assert trainer.weights_path.is_file()


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
        spoil(trainer.model)

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
        states.append([t.clone() for t in trainer.model.state_dict().values()])
        return result

    trainer.step = recorded  # type: ignore[method-assign]
    trainer.run()
    same = [
        all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in itertools.pairwise(states)
    ]
    assert same == [True, False, False]
    assert trainer.skipped == 1
    assert trainer.skipped_in_a_row == 0
    assert "skipped: loss" in caplog.text
    assert "at iteration 1 (procedural: clip" in caplog.text


def test_an_overflow_of_fp16_is_no_fault_of_a_clip(tmp_path, monkeypatch) -> None:
    """The gradient is infinite while the scale is above 2^12: it halves until then, and the limit
    of one faulty step is not touched."""
    trainer = trainer_of(config(tmp_path, iterations=4, precision="fp16", max_skipped=1))
    clip_norm = torch.nn.utils.clip_grad_norm_

    def explode(parameters, max_norm):
        parameters = list(parameters)
        if trainer.scaler.get_scale() > 2**12:
            trainer.scaler._per_optimizer_states[id(trainer.optimizer)]["found_inf_per_device"][
                torch.device("cpu")
            ].fill_(1)
            parameters[0].grad.fill_(float("inf"))
        return clip_norm(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    trainer.run()
    assert (trainer.overflows, trainer.skipped) == (2, 0)
    assert trainer.scaler.get_scale() == 2**12


def test_the_time_left_counts_from_where_this_start_began(tmp_path) -> None:
    trainer = trainer_of(config(tmp_path, iterations=8))
    trainer.iteration = 6
    with trainer._bar() as bar:
        bar.start_t -= 10  # seconds for a tenth of the whole
        bar.update(10)
        assert bar.initial == 75
        assert "85%" in str(bar)
        assert "00:15" in str(bar)  # and not the two seconds of 85 % in ten


def interrupted(folder, **settings) -> Trainer:
    """A run of six iterations that is told to leave during the third."""
    trainer = trainer_of(config(folder, iterations=6, **settings))
    step = trainer.step

    def step_and_signal(*arguments):
        if trainer.iteration == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(*arguments)

    trainer.step = step_and_signal  # type: ignore[method-assign]
    with signals_noted() as trainer.leave, pytest.raises(Preempted) as left:
        trainer.run()
    assert left.value.code == EXIT_PREEMPTED == 75
    return trainer


def equal_weights(a: STMA, b: STMA) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_told_to_leave_it_saves_and_goes_on_to_the_same_end(tmp_path, num_workers: int) -> None:
    handler = signal.getsignal(signal.SIGUSR1)
    settings = {"num_workers": num_workers, "model": dataclasses.replace(TINY, drop_path=0.3)}
    whole = trained(config(tmp_path / "whole", iterations=6, **settings)).model
    assert interrupted(tmp_path / "run", **settings).iteration == 3
    assert signal.getsignal(signal.SIGUSR1) is handler
    again = trained(config(tmp_path / "run", iterations=6, **settings))
    assert equal_weights(again.model, whole)
    assert again.iteration == 6


def test_a_finished_run_is_not_run_again(tmp_path, caplog) -> None:
    path = train(config(tmp_path))
    before = path.stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert train(config(tmp_path)) == path
    assert "finished already: " in caplog.text
    assert path.stat().st_mtime_ns == before
    train(config(tmp_path, resume=False))
    assert path.stat().st_mtime_ns != before


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path) -> None:
    interrupted(tmp_path)
    other = config(tmp_path, iterations=8, log_every=2, optimizer=OptimizerConfig(1e-4))
    with pytest.raises(InputError) as caught:
        train(other)
    message = str(caught.value)
    assert "stage.iterations: 6 there, 8 here" in message
    assert "stage.optimizer.learning_rate: 3e-05 there, 0.0001 here" in message
    assert "log_every" not in message
    assert "resume=false" in message


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
from test_trainer import config
import stma.runtime.outputs
from stma.training.run import train
from stma.training.trainer import Trainer
where, count, calls = sys.argv[1], int(sys.argv[2]), 0

def kill_at(function, moment):
    def called(*arguments, **keywords):
        global calls
        calls += 1
        if where == moment and calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return called

if where == "write":  # half of the file is there
    stma.runtime.outputs._flush = kill_at(stma.runtime.outputs._flush, "write")
if where == "step":
    Trainer.step = kill_at(Trainer.step, "step")
if where == "backward":
    import torch
    torch.Tensor.backward = kill_at(torch.Tensor.backward, "backward")
train(config(sys.argv[3], iterations=9, save_every=2))
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_equal_bits(tmp_path) -> None:
    """SIGKILL before a step, in a step, and while a checkpoint and the weights are written."""

    def start(folder: str, where: str, count: int = 0) -> int:
        command = [sys.executable, "-c", KILLED, where, str(count), str(tmp_path / folder)]
        return subprocess.run([*command, str(Path(__file__).parent)], timeout=120).returncode

    assert start("whole", "nowhere") == 0
    for where, count in (("step", 2), ("write", 1), ("backward", 4), ("write", 3), ("write", 6)):
        assert start("run", where, count) == -signal.SIGKILL
        assert not (tmp_path / "run" / "only" / "finished.json").exists()
    assert start("run", "nowhere") == 0
    one, other = (load_model(tmp_path / name / "weights.safetensors") for name in ("run", "whole"))
    assert equal_weights(one, other)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_full_disk_ends_the_run_and_the_last_checkpoint_is_whole(tmp_path, monkeypatch) -> None:
    trainer = trainer_of(config(tmp_path, iterations=6, save_every=2))
    save = trainer.save

    def full_at_four() -> None:
        if trainer.iteration == 4:
            monkeypatch.setattr(Path, "write_bytes", no_space)
        save()

    def no_space(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    trainer.save = full_at_four  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"00000004\.pt: .*No space left.*00000002\.pt"):
        trainer.run()
    monkeypatch.undo()
    whole = trained(config(tmp_path / "whole", iterations=6)).model
    again = trained(config(tmp_path, iterations=6, save_every=2))
    assert equal_weights(again.model, whole)


def test_bf16_trains_on_the_cpu_too(tmp_path) -> None:
    trainer = trained(config(tmp_path, precision="bf16"))
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert trainer.model.object_features.center.abs().sum() > 0


def test_fp16_trains_with_a_scale_that_is_kept(tmp_path) -> None:
    trainer = trained(config(tmp_path, precision="fp16", iterations=4))
    assert trainer.scaler.is_enabled()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    state = trainer.checkpoints.load_newest()
    assert state is not None
    assert state["scaler"]["scale"] == trainer.scaler.get_scale() > 1


def test_recomputed_blocks_give_the_same_gradient(tmp_path) -> None:
    gradients = []
    for recompute in (False, True):
        settings = config(
            tmp_path, model=dataclasses.replace(TINY, drop_path=0.3), checkpoint_blocks=recompute
        )
        trainer = trainer_of(settings)
        trainer.build(None)
        assert all(block.recompute is recompute for block in trainer.model.backbone.last_stage)
        trainer.step([next(trainer.batches())], 0.0)
        gradients.append([p.grad for p in trainer.model.parameters()])
        center = trainer.model.object_features.num_updates
        assert center == 1  # recomputing does not observe objects twice
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_average_of_weights_is_what_is_saved(tmp_path) -> None:
    """By hand: the first step's weights, then 0.75 of the average and 0.25 of the new ones."""
    trainer = trainer_of(config(tmp_path, ema=0.75, iterations=3))
    step, seen, centers = trainer.step, [], []

    def recorded(*arguments):
        result = step(*arguments)
        seen.append(trainer.model.decoder.head.weight.detach().clone())
        centers.append(trainer.model.object_features.center.clone())
        return result

    trainer.step = recorded  # type: ignore[method-assign]
    trainer.run()
    expected = seen[0]
    for weights in seen[1:]:
        expected = 0.75 * expected + 0.25 * weights
    saved = load_model(trainer.weights_path)
    torch.testing.assert_close(saved.decoder.head.weight, expected)
    center = centers[0]
    for other in centers[1:]:
        center = 0.75 * center + 0.25 * other
    torch.testing.assert_close(saved.object_features.center, center)
    assert not torch.equal(saved.decoder.head.weight, trainer.model.decoder.head.weight)


def test_an_average_goes_on_after_a_stop(tmp_path) -> None:
    whole = trained(config(tmp_path / "whole", iterations=6, ema=0.9))
    interrupted(tmp_path / "run", ema=0.9)
    again = trained(config(tmp_path / "run", iterations=6, ema=0.9))
    assert equal_weights(again.result, whole.result)


def test_what_tensorboard_shows(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trained(config(tmp_path, iterations=4))
    events = EventAccumulator(str(trainer.output / "tensorboard")).Reload()
    assert {
        "loss/total",
        "loss/cross_entropy",
        "loss/dice",
        "loss/bootstrap_fraction",
        "optimizer/learning_rate",
        "optimizer/backbone_learning_rate",
        "optimizer/gradient_norm",
        "optimizer/skipped_steps",
        "time/share_waiting_for_data",
        "memory/peak_gigabytes",
        "attention_of_references/block1_objects",
        "attention/block2_itself",
        "attention/block2_reference1",
        "attention/block2_reference2",
        "attention_spread/block0",
    } <= set(events.Tags()["scalars"])
    attention = [name for name in events.Tags()["scalars"] if name.startswith("attention/block2_")]
    assert sum(events.Scalars(name)[0].value for name in attention) == pytest.approx(1, abs=1e-4)
    assert events.Tags()["images"] == ["prediction"]
    assert [event.step for event in events.Scalars("loss/total")] == [0, 1, 2, 3]


@pytest.mark.slow
def test_compiled_parts_give_the_same_step_and_none_is_left_to_eager(tmp_path, monkeypatch) -> None:
    """Traced and differentiated ahead of time, but without minutes of generating code. Blocks that
    differ in their stochastic depth alone share their graphs: 12 of them would make 60 else."""
    traced = functools.partialmethod(STMA.compile_parts, backend="aot_eager")
    monkeypatch.setattr(STMA, "compile_parts", traced)
    model = dataclasses.replace(TINY, depths=[1, 1, 12], drop_path=0.3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses = []
    for compiled in (False, True):
        trainer = trainer_of(config(tmp_path, compile=compiled, model=model))
        trainer.build(None)
        losses.append(trainer.step([next(trainer.batches())], 0.0)[0].total)
    torch.testing.assert_close(*losses)
    frames = torch._dynamo.utils.counters["frames"]
    assert 0 < frames["ok"] == frames["total"] < 30


def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output: .*file cannot be written to"):
        train(config(tmp_path / "file"))
    with pytest.raises(InputError, match=r"precision is 'fp8'.*bf16"):
        config(tmp_path / "run", precision="fp8")
    with pytest.raises(InputError, match="no such weights file"):
        train(config(tmp_path / "run", weights="nowhere.safetensors"))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="0 CUDA devices"):
            train(config(tmp_path / "run", device="cuda"))
    for device in ("gpu", "meta", "mps"):
        with pytest.raises(InputError, match=f"device is '{device}'"):
            train(config(tmp_path / "run", device=device))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["iterations", "batch_size", "log_every", "save_every"])
def test_counts_have_to_be_positive(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        config(tmp_path, **{name: 0})


def test_the_picture_shows_every_frame_twice() -> None:
    from conftest import make_batch

    batch = make_batch(num_frames=3, size=32)
    picture = prediction_picture(batch, build_model(TINY)(batch))
    assert picture.shape[1] == 3 * (160 + 2)
    assert picture.dtype == np.uint8


@pytest.mark.slow
def test_the_debug_settings_bring_the_j_of_one_clip_above_90(tmp_path) -> None:
    """J of the segmenter on the very clip that training saw, first frame left out."""
    overrides = ["experiment=debug", f"output={tmp_path}", "device=cpu"]
    settings = parse_config(TrainConfig, load_config(CONFIGS, "train", overrides))
    network = load_model(train(settings))
    data = settings.stages["debug"].data
    clip = ClipDataset(data, 10, settings.seed).sample(7)  # any number: there is but one
    segmenter = Segmenter(network, SegmenterConfig(memory_interval=1))
    segmenter.step(clip.frames[0], clip.masks[0])
    scores = []
    for frame, truth in zip(clip.frames[1:], clip.masks[1:], strict=True):
        mask = segmenter.step(frame).mask
        for i in range(1, clip.num_objects + 1):
            union = ((mask == i) | (truth == i)).sum()
            if union:
                scores.append(((mask == i) & (truth == i)).sum() / union)
    assert np.mean(scores) > 0.9


@pytest.mark.gpu
def test_a_step_in_bf16_on_cuda(tmp_path) -> None:
    cuda = config(tmp_path, device="cuda", checkpoint_blocks=True)
    trainer = Trainer(cuda, "only", torch.device("cuda"))
    trainer.run()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
