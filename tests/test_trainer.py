import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, procedural_data

from stma.compose import load_model_config
from stma.errors import InputError
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.factory import build_model
from stma.model.weights import load_model, read_weights
from stma.structures import Clip, ClipBatch
from stma.training.optimizer import OptimizerConfig
from stma.training.trainer import TrainConfig, Trainer, prediction_picture, train

CONFIGS = Path(__file__).parent.parent / "configs"


def config(output, **settings) -> TrainConfig:
    defaults = TrainConfig(
        output=str(output),
        iterations=3,
        batch_size=2,
        num_workers=0,
        log_every=1,
        picture_every=2,
        device="cpu",
        model=TINY,
        data=procedural_data(32, 48, 3),
    )
    return dataclasses.replace(defaults, **settings)


def test_a_run_leaves_weights_that_say_where_they_come_from_and_tensorboard(tmp_path) -> None:
    path = train(config(tmp_path / "run"))
    model_config, provenance, _ = read_weights(path)
    assert model_config == TINY
    assert provenance["iterations"] == 3
    assert provenance["config"]["batch_size"] == 2
    assert {"torch", "git", "command", "stma"} <= set(provenance)
    json.dumps(provenance)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert (tmp_path / "run" / "train.log").is_file()
    assert "batch_size: 2" in (tmp_path / "run" / "config.yaml").read_text()
    load_model(path)


def test_equal_seeds_train_equal_weights(tmp_path) -> None:
    models = [Trainer(config(tmp_path / name)).run() for name in "ab"]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_goes_on_from_weights_of_the_same_architecture(tmp_path) -> None:
    first = train(config(tmp_path / "first"))
    trainer = Trainer(config(tmp_path / "second", weights=str(first)))
    loaded = load_model(first)
    for a, b in zip(trainer.model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, value in (("value_depth", 2), ("num_heads", 4), ("similarity", "l2")):
        other = dataclasses.replace(TINY, **{name: value})
        with pytest.raises(InputError, match=rf"architecture\n  model.{name}: .*{value} here"):
            Trainer(config(tmp_path / "third", weights=str(first), model=other))


def test_a_run_can_be_bounded_by_time(tmp_path) -> None:
    trainer = Trainer(config(tmp_path, iterations=100_000, max_minutes=0.02))
    trainer.run()
    assert 0 < trainer.iteration < 100_000
    assert trainer.weights_path.is_file()


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_weights(tmp_path) -> None:
    first = train(config(tmp_path))
    before = first.read_bytes()
    trainer = Trainer(config(tmp_path, weights=str(first)))
    with torch.no_grad():
        trainer.model.decoder.head.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"loss is nan at iteration 0 .*procedural: clip \d"):
        trainer.run()
    assert first.read_bytes() == before


def test_bf16_trains_on_the_cpu_too(tmp_path) -> None:
    trainer = Trainer(config(tmp_path, precision="bf16"))
    trainer.run()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert trainer.model.object_features.center.abs().sum() > 0


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
            Trainer(config(tmp_path / "run", device="cuda"))
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


class OneClip(Trainer):
    """Trains on one clip for ever."""

    clip: Clip

    def _batches(self):
        while True:
            yield ClipBatch.collate([self.clip])


@pytest.mark.slow
def test_overfitting_one_clip_brings_its_j_above_90(tmp_path) -> None:
    """150 steps of ConvViT-T; J of the segmenter on the same clip, first frame left out."""
    from stma.data.dataset import ClipDataset

    model = load_model_config(CONFIGS, "convvit_t")
    data = procedural_data(96, 96, 4, min_objects=2, max_objects=3, leave=0.0, blur=0.0)
    settings = config(
        tmp_path,
        iterations=150,
        log_every=50,
        model=model,
        data=data,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=0.05),
    )
    trainer = OneClip(settings)
    trainer.clip = clip = ClipDataset(data, 1, seed=5).sample(0)
    network = trainer.run().eval()

    segmenter = Segmenter(network, SegmenterConfig(memory_interval=1))
    segmenter.step(clip.frames[0], clip.masks[0])
    scores = []
    for frame, truth in zip(clip.frames[1:], clip.masks[1:], strict=True):
        mask = segmenter.step(frame).mask
        for i in range(1, clip.num_objects + 1):
            union = ((mask == i) | (truth == i)).sum()
            if union:
                scores.append(((mask == i) & (truth == i)).sum() / union)
    assert clip.num_objects >= 2
    assert np.mean(scores) > 0.9


@pytest.mark.gpu
def test_a_step_in_bf16_on_cuda(tmp_path) -> None:
    trainer = Trainer(config(tmp_path, device="cuda"))
    trainer.run()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
