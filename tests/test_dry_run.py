import logging

import torch
from test_trainer import config, trainer_of

from stma.training.dry_run import dry_run, random_batch
from stma.training.run import train


def test_memory_is_told_and_nothing_is_written(tmp_path, caplog) -> None:
    settings = config(tmp_path / "run", batch_size=4, accumulate=2, dry_run=True)
    with caplog.at_level(logging.INFO):
        train(settings)
    assert "only: 2 clips at once take" in caplog.text
    assert "the largest batch that fitted is 2 clips a process" in caplog.text
    assert not (tmp_path / "run").exists()


def test_it_grows_until_the_memory_is_full(tmp_path, monkeypatch) -> None:
    """As on a GPU of which the memory holds five clips; the share of a process is two."""
    trainer = trainer_of(config(tmp_path, batch_size=2))
    tried = []

    def step(trainer, count: int) -> float:
        tried.append(count)
        if count > 5:
            raise torch.OutOfMemoryError
        return 0.1

    monkeypatch.setattr("stma.training.dry_run._step", step)
    monkeypatch.setattr("stma.training.dry_run.peak_gigabytes", lambda device: 1.0)
    trainer.build = lambda weights: None  # type: ignore[method-assign]
    trainer.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert dry_run(trainer, None) == 4
    assert tried == [2, 4, 8]
    trainer = trainer_of(config(tmp_path, batch_size=16))
    trainer.build = lambda weights: None  # type: ignore[method-assign]
    trainer.device = torch.device("cuda")
    tried.clear()
    assert dry_run(trainer, None) == 4
    assert tried == [16, 8, 4]


def test_noise_has_the_shape_of_the_stages_clips(tmp_path) -> None:
    batch = random_batch(trainer_of(config(tmp_path)), 2)
    assert batch.frames.shape == (2, 3, 3, 32, 48)
    assert batch.masks.max() == batch.valid_objects.shape[1] == 3
