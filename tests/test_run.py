"""Stages one after another."""

import dataclasses
import json

import pytest
import torch
from conftest import procedural_data
from test_trainer import config, equal_weights

from stma.data.config import DatasetConfig
from stma.data.dataset import DataConfig
from stma.errors import InputError
from stma.model.weights import load_model, read_weights
from stma.outputs import holding
from stma.training.config import TrainConfig
from stma.training.leaving import Preempted
from stma.training.run import train
from stma.training.trainer import Trainer


def two_stages(output, **settings) -> TrainConfig:
    one = config(output, **settings)
    stage = one.stages["only"]
    other = dataclasses.replace(stage, iterations=2, data=procedural_data(32, 32, 4))
    return dataclasses.replace(one, stages={"first": stage, "second": other})


def test_each_stage_starts_from_the_last_ones_weights(tmp_path) -> None:
    final = train(two_stages(tmp_path / "both"))
    assert final.read_bytes() == (tmp_path / "both/second/weights.safetensors").read_bytes()
    first = tmp_path / "both" / "first" / "weights.safetensors"
    assert read_weights(first)[1]["stage"] == "first"
    second = two_stages(tmp_path / "alone").stages["second"]
    alone = dataclasses.replace(
        two_stages(tmp_path / "alone", weights=str(first)), stages={"second": second}
    )
    assert equal_weights(load_model(train(alone)), load_model(final))


def test_finished_stages_are_skipped_even_if_their_data_are_gone(tmp_path, monkeypatch) -> None:
    """The run is told to leave in its second stage; by then the first one's set is deleted."""
    step = Trainer.step

    def told_in_second(self, *arguments):
        self.leave.asked = self.name == "second"
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", told_in_second)
    settings = two_stages(tmp_path)
    with pytest.raises(Preempted):
        train(settings)
    monkeypatch.undo()
    before = (tmp_path / "first" / "weights.safetensors").stat().st_mtime_ns
    built = []
    init = Trainer._build

    def recorded(self, weights):
        built.append((self.name, weights))
        init(self, weights)

    monkeypatch.setattr(Trainer, "_build", recorded)
    final = train(settings)
    assert built == [("second", None)]  # from its checkpoint, not from the first one's weights
    assert (tmp_path / "first" / "weights.safetensors").stat().st_mtime_ns == before
    whole = train(two_stages(tmp_path / "whole"))
    assert equal_weights(load_model(final), load_model(whole))


def test_faults_of_the_last_stage_are_told_before_the_first_starts(tmp_path) -> None:
    settings = two_stages(tmp_path / "run")
    missing = DataConfig(sources={"gone": DatasetConfig(root=str(tmp_path / "gone"))})
    bad = dataclasses.replace(settings.stages["second"], data=missing)
    settings = dataclasses.replace(settings, stages=settings.stages | {"second": bad})
    with pytest.raises(InputError, match="gone: no such folder"):
        train(settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="stages is empty"):
        train(TrainConfig(output=str(tmp_path / "run")))


def test_the_record_of_a_run(tmp_path) -> None:
    train(two_stages(tmp_path))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["device"] == "cpu"
    assert record["torch"] == torch.__version__
    assert {"git", "command", "python", "stma", "numpy"} <= set(record)
    log = (tmp_path / "train.log").read_text()
    assert "first: " in log
    assert "second: " in log
    assert "2 iterations" in log


def test_the_best_by_validation_is_kept_beside_the_newest(tmp_path) -> None:
    scores = iter([10.0, 30.0, 20.0])
    asked = []

    def validation(model, folder) -> float:
        assert not model.training
        asked.append(folder)
        return next(scores)

    settings = config(tmp_path, iterations=6, save_every=2, keep_checkpoints=1)
    settings = dataclasses.replace(
        settings, validation=dataclasses.replace(settings.validation, every=2)
    )
    train(settings, lambda config: validation)
    assert asked == [tmp_path / "only" / "validation"] * 3
    kept = sorted(path.name for path in (tmp_path / "only" / "checkpoints").iterdir())
    assert kept == ["00000006.pt", "best.pt"]
    best = torch.load(tmp_path / "only" / "checkpoints" / "best.pt", weights_only=True)
    assert (best["iteration"], best["best"]) == (4, 30.0)
    assert read_weights(tmp_path / "only" / "best.safetensors")[1]["iterations"] == 4


def test_an_output_folder_in_use_is_refused_before_training(tmp_path) -> None:
    settings = two_stages(tmp_path)
    with holding(tmp_path):
        with pytest.raises(InputError, match="in use by a live run"):
            train(settings)
        assert not (tmp_path / "first").exists()
    train(settings)
