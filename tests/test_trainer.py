import copy
import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
import torch._dynamo
from conftest import TINY, procedural_data
from forking import end, start

from stma.compose import load_config
from stma.data.dataset import ClipDataset
from stma.errors import InputError
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.stma import STMA
from stma.model.weights import load_model, read_weights
from stma.runtime import outputs
from stma.runtime.config import parse_config
from stma.runtime.distributed import Processes
from stma.training.config import StageConfig, TrainConfig
from stma.training.optimizer import OptimizerConfig
from stma.training.preemption import Preempted, stop_signals
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
    record = json.loads((tmp_path / "run" / "run.json").read_text())["details"]
    assert record["processes"] == 1
    assert record["torch"] == torch.__version__
    assert (tmp_path / "run" / "train.log").is_file()
    assert "batch_size: 2" in (tmp_path / "run" / "config.yaml").read_text()
    load_model(path)


def test_equal_seeds_train_equal_weights(tmp_path) -> None:
    models = [trained(config(tmp_path / name)).learner.model for name in "ab"]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_can_be_bounded_by_time(tmp_path) -> None:
    trainer = trained(config(tmp_path, iterations=100_000, max_minutes=0.005))
    assert 0 < trainer.iteration < 100_000
    assert trainer.weights_path.is_file()


def interrupted(folder, number=signal.SIGUSR1, status: int = 75, **settings) -> Trainer:
    """A run of six iterations that is asked to stop during the third."""
    trainer = trainer_of(config(folder, iterations=6, **settings))
    step = trainer.step

    def step_and_signal(*arguments):
        if trainer.iteration == 2:
            os.kill(os.getpid(), number)
        return step(*arguments)

    trainer.step = step_and_signal  # type: ignore[method-assign]
    with stop_signals() as trainer.stop, pytest.raises(Preempted) as left:
        trainer.run()
    assert left.value.code == status
    return trainer


def equal_weights(a: STMA, b: STMA) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_told_to_leave_it_saves_and_goes_on_to_the_same_end(tmp_path, num_workers: int) -> None:
    handler = signal.getsignal(signal.SIGUSR1)
    settings = {"num_workers": num_workers, "model": dataclasses.replace(TINY, drop_path=0.3)}
    whole = trained(config(tmp_path / "whole", iterations=6, **settings)).learner.model
    assert interrupted(tmp_path / "run", **settings).iteration == 3
    assert signal.getsignal(signal.SIGUSR1) is handler
    again = trained(config(tmp_path / "run", iterations=6, **settings))
    assert equal_weights(again.learner.model, whole)
    assert again.iteration == 6


def test_a_finished_run_is_not_run_again(tmp_path, caplog) -> None:
    path = train(config(tmp_path))
    before = path.stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert train(config(tmp_path)) == path
    assert "already finished: " in caplog.text
    assert path.stat().st_mtime_ns == before
    train(config(tmp_path, resume=False))
    assert path.stat().st_mtime_ns != before


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path) -> None:
    interrupted(tmp_path)
    other = config(tmp_path, seed=8, log_every=2, optimizer=OptimizerConfig(1e-4))
    with pytest.raises(InputError) as caught:
        train(other)
    message = str(caught.value)
    assert "seed: 0 there, 8 here" in message
    assert "stage.optimizer.learning_rate: 3e-05 there, 0.0001 here" in message
    assert "log_every" not in message
    assert "resume=false" in message


def train_until_killed(where: str, count: int, output: str) -> None:
    """Ended by SIGKILL at the ``count``-th step, gradient or write of a file, half of which is
    there then."""
    calls = itertools.count(1)

    def kill_at(function, moment: str):
        def called(*arguments, **keywords):
            if where == moment and next(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return called

    outputs._flush = kill_at(outputs._flush, "write")
    Trainer.step = kill_at(Trainer.step, "step")  # type: ignore[method-assign]
    torch.Tensor.backward = kill_at(torch.Tensor.backward, "backward")  # type: ignore[method-assign]
    train(config(output, iterations=9, save_every=2))


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_equal_bits(tmp_path) -> None:
    """SIGKILL before a step, in a step, and while a checkpoint and the weights are written."""

    def trained(folder: str, where: str, count: int = 0) -> int:
        return end(start(train_until_killed, where, count, str(tmp_path / folder)))

    assert trained("whole", "nowhere") == 0
    for where, count in (("step", 2), ("write", 1), ("backward", 4), ("write", 3), ("write", 6)):
        assert trained("run", where, count) == -signal.SIGKILL
        assert not (tmp_path / "run" / "only" / "run.json").exists()
    assert trained("run", "nowhere") == 0
    one, other = (load_model(tmp_path / name / "weights.safetensors") for name in ("run", "whole"))
    assert equal_weights(one, other)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_full_disk_ends_the_run_and_the_last_checkpoint_is_whole(tmp_path, monkeypatch) -> None:
    trainer = trainer_of(config(tmp_path, iterations=6, save_every=2))
    save = trainer.save

    def full_at_four(**how: bool) -> None:
        trainer._wait_for_writing()
        if trainer.iteration == 4:
            monkeypatch.setattr(Path, "write_bytes", no_space)
        save(**how)

    def no_space(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    trainer.save = full_at_four  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"00000004\.pt: .*No space left.*00000002\.pt"):
        trainer.run()
    monkeypatch.undo()
    whole = trained(config(tmp_path / "whole", iterations=6)).learner.model
    again = trained(config(tmp_path, iterations=6, save_every=2))
    assert equal_weights(again.learner.model, whole)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch) -> None:
    """What is written is as at the time of the save."""
    trainer = trainer_of(config(tmp_path, iterations=4, save_every=2, keep_checkpoints=9, ema=0.9))
    step, write_bytes, stepped, at_two = trainer.step, Path.write_bytes, Event(), {}

    def blocked(self: Path, data: bytes) -> int:
        assert stepped.wait(60), "the third step waits for the checkpoint"
        return write_bytes(self, data)

    def step_and_tell(*arguments) -> None:
        if trainer.iteration == 2:
            at_two.update(copy.deepcopy(trainer.learner.state()), generator=torch.get_rng_state())
        step(*arguments)
        if trainer.iteration == 3:
            assert not trainer.weights_path.exists()
            stepped.set()

    trainer.step = step_and_tell  # type: ignore[method-assign]
    monkeypatch.setattr(Path, "write_bytes", blocked)
    trainer.run()
    state = torch.load(tmp_path / "only" / "checkpoints" / "00000002.pt")
    assert state["iteration"] == 2
    assert torch.equal(state["generators"][0]["cpu"], at_two.pop("generator"))
    torch.testing.assert_close({name: state[name] for name in at_two}, at_two, rtol=0, atol=0)
    moved = trainer.learner.model.state_dict()
    assert not all(torch.equal(moved[name], tensor) for name, tensor in state["model"].items())


def test_a_save_before_too_many_faulty_clips_end_the_run(tmp_path) -> None:
    class Two(Processes):
        """As if there were a second one."""

        def gather(self, value):
            return [value, {"b": "b: faulty", "c": "c: faulty"}] if value == {} else [value]

    data = dataclasses.replace(procedural_data(32, 48, 3), max_bad_clips=1)
    settings = config(tmp_path, iterations=4, save_every=2, data=data)
    trainer = Trainer(settings, "only", torch.device("cpu"), Two())
    with pytest.raises(InputError, match=r"max_bad_clips is 1, and 2 clips .*: b, c"):
        trainer.run()
    assert torch.load(tmp_path / "only" / "checkpoints" / "00000002.pt")["iteration"] == 2
    assert trained(settings).iteration == 4


def test_an_average_goes_on_after_a_stop(tmp_path) -> None:
    whole = trained(config(tmp_path / "whole", iterations=6, ema=0.9))
    interrupted(tmp_path / "run", ema=0.9)
    again = trained(config(tmp_path / "run", iterations=6, ema=0.9))
    assert equal_weights(again.learner.result, whole.learner.result)


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


@pytest.mark.slow
def test_the_debug_settings_bring_the_j_of_one_clip_above_90(tmp_path) -> None:
    """J of the segmenter on the very clip that training saw, first frame left out."""
    overrides = ["experiment=debug", f"output={tmp_path}", "device=cpu"]
    settings = parse_config(TrainConfig, load_config(CONFIGS, "train", overrides))
    network = load_model(train(settings))
    data = settings.stages["debug"].data
    clip = ClipDataset(data, 10, settings.seed, "debug").sample(7)  # any number: there is but one
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


def test_ctrl_c_saves_too_and_a_second_one_leaves_at_once(tmp_path, capfd) -> None:
    assert interrupted(tmp_path, signal.SIGINT, 130).saved == 3
    assert "saving after this step; Ctrl-C once more" in capfd.readouterr().err
    assert trained(config(tmp_path, iterations=6)).iteration == 6
    with stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_saves_after_minutes_too(tmp_path, monkeypatch) -> None:
    saved = []
    monkeypatch.setattr(Trainer, "_save", lambda self, *state: saved.append(self.iteration))
    trainer_of(config(tmp_path, iterations=3, save_minutes=1e-9)).run()
    trainer_of(config(tmp_path, iterations=3, save_minutes=60.0)).run()
    assert saved == [1, 2, 3, 3]
    with pytest.raises(InputError, match=r"save_minutes is 0\.0; give more than 0"):
        config(tmp_path, save_minutes=0.0)


def test_a_finished_run_can_be_made_longer(tmp_path, caplog) -> None:
    """And one under way; with a constant rate that changes nothing of the schedule."""
    trained(config(tmp_path / "run", iterations=2))
    before = (tmp_path / "run" / "only" / "weights.safetensors").read_bytes()
    longer = trained(config(tmp_path / "run", iterations=4))
    assert longer.iteration == 4
    assert longer.weights_path.read_bytes() != before
    assert "stage.iterations: 2 there, 4 here; the learning rate continues at 3e-05" in caplog.text
    assert trainer_of(config(tmp_path / "run", iterations=4)).finished
    interrupted(tmp_path / "begun")
    assert trained(config(tmp_path / "begun", iterations=7, max_minutes=60.0)).iteration == 7
    assert "stage.max_minutes: None there, 60.0 here" in caplog.text


def test_what_a_longer_run_means_for_the_learning_rate_is_told(tmp_path, caplog) -> None:
    cosine = OptimizerConfig(schedule="cosine")
    trained(config(tmp_path, iterations=2, optimizer=cosine))
    trained(config(tmp_path, iterations=4, optimizer=cosine))
    assert "follows the new length: 1.5e-05 from here on, instead of 0" in caplog.text


def test_a_run_that_cannot_be_made_longer_says_why(tmp_path) -> None:
    train(config(tmp_path, iterations=3))
    with pytest.raises(
        InputError, match=r"stages\.only\.iterations is 2, but .* has already made 3"
    ):
        train(config(tmp_path, iterations=2))
    for path in (tmp_path / "only" / "checkpoints").iterdir():
        path.unlink()
    assert train(config(tmp_path, iterations=3)).is_file()
    with pytest.raises(InputError, match="no checkpoint left to resume"):
        train(config(tmp_path, iterations=4))
