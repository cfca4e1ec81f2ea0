import logging
import weakref

import pytest
import torch
from test_trainer import config, trainer_of

from stma.training.dry_run import dry_run, random_batch
from stma.training.learner import Learner
from stma.training.run import train


def test_memory_is_told_and_nothing_is_written(tmp_path, caplog) -> None:
    settings = config(tmp_path / "run", batch_size=4, accumulate=2, dry_run=True)
    with caplog.at_level(logging.INFO):
        train(settings)
    assert "only: 2 clips at once take" in caplog.text
    assert "the largest batch that fits is 2 clips a process" in caplog.text
    assert not (tmp_path / "run").exists()


def test_it_grows_until_the_memory_is_full(
    tmp_path,
    monkeypatch,
) -> None:
    """As on a GPU whose memory holds five clips; a process's share is two."""
    trainer = trainer_of(config(tmp_path, batch_size=2))
    tried = []

    def step(learner, count: int) -> float:
        tried.append(count)
        if count > 5:
            raise torch.OutOfMemoryError
        return 0.1

    monkeypatch.setattr("stma.training.dry_run._step", step)
    monkeypatch.setattr("stma.training.dry_run.peak_gigabytes", lambda device: 1.0)
    monkeypatch.setattr("stma.training.dry_run.Learner", lambda *arguments, **more: None)
    trainer.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert dry_run(trainer, None) == 5
    assert tried == [2, 4, 8, 6, 5]
    trainer = trainer_of(config(tmp_path, batch_size=16))
    trainer.device = torch.device("cuda")
    tried.clear()
    assert dry_run(trainer, None) == 5
    assert tried == [16, 8, 4, 6, 5]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_was_cut_short_leaves_nothing_behind(
    tmp_path, monkeypatch, precision: str
) -> None:
    """Memory runs out in the middle of a step, when the gradient exists and, in fp16, is already
    unscaled; a fresh network takes the steps after it."""
    trainer = trainer_of(config(tmp_path, batch_size=4, precision=precision))
    clip_norm, networks = torch.nn.utils.clip_grad_norm_, []
    monkeypatch.setattr("stma.training.dry_run.peak_gigabytes", lambda device: 1.0)

    def built(*arguments, **more) -> Learner:
        learner = Learner(*arguments, **more)
        networks.append(weakref.ref(learner.model))
        return learner

    def too_many(parameters, max_norm):
        parameters = list(parameters)
        if len(networks) == 1:
            raise torch.OutOfMemoryError
        return clip_norm(parameters, max_norm)

    monkeypatch.setattr("stma.training.dry_run.Learner", built)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", too_many)
    assert dry_run(trainer, None) == 2
    assert [network() for network in networks] == [None] * len(networks)


def test_parts_after_the_first_find_its_gradient_in_memory(
    tmp_path,
    monkeypatch,
) -> None:
    trainer = trainer_of(config(tmp_path, batch_size=8, accumulate=4))
    taken = []
    step = Learner.step

    def recorded(self, parts, iteration, progress):
        taken.append([len(part) for part in parts])
        return step(self, parts, iteration, progress)

    monkeypatch.setattr(Learner, "step", recorded)
    assert dry_run(trainer, None) == 2
    assert taken == [[2, 2]] * 2


def test_a_finished_run_can_be_tried_again(
    tmp_path,
    caplog,
) -> None:
    train(config(tmp_path, iterations=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    before.pop(tmp_path / "train.log")  # this process writes its log there still
    with caplog.at_level(logging.INFO):
        train(config(tmp_path, iterations=1, batch_size=4, dry_run=True))
    assert "the largest batch that fits is 4 clips" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_noise_has_the_shape_of_the_stages_clips(tmp_path) -> None:
    batch = random_batch(config(tmp_path).stages["only"], 2, torch.device("cpu"))
    assert batch.frames.shape == (2, 3, 3, 32, 48)
    assert batch.masks.max() == batch.valid_objects.shape[1] == 3
