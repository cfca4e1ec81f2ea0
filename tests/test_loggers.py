"""W&B and MLflow as far as a fake stands for them, and themselves where they are installed."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from test_trainer import config

from stma.errors import InputError
from stma.training.losses import LossConfig
from stma.training.run import train

CURVES = {"loss/total", "loss/cross_entropy", "loss/dice", "loss/objects", "validation/jf"}


class FakeError(Exception):
    pass


class FakeRun:
    def __init__(self, calls: list, **settings: object) -> None:
        self.calls, self.settings = calls, settings

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "iteration")

    def log(self, values: dict) -> None:
        self.calls.append(values)

    def finish(self) -> None:
        self.calls.append("finished")


@pytest.fixture
def wandb(monkeypatch) -> types.SimpleNamespace:
    """A stand-in that keeps all it is given in ``runs``: ``(settings, calls)``."""
    fake = types.SimpleNamespace(runs=[], Image=lambda picture: picture)
    fake.errors = types.SimpleNamespace(Error=FakeError)

    def init(**settings: object) -> FakeRun:
        fake.runs.append((settings, []))
        return FakeRun(fake.runs[-1][1], **settings)

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def settings_of(folder: Path, **more):
    given = config(folder, loss=LossConfig(objects=0.1), **more)
    given.validation.every = 2
    return given


def test_a_stage_is_a_run_with_its_curves_and_pictures(tmp_path, wandb) -> None:
    train(settings_of(tmp_path, logger="wandb", iterations=4), lambda _: lambda *_: 50.0)
    ((settings, calls),) = wandb.runs
    assert settings["config"]["stages"]["only"]["iterations"] == 4
    assert settings["name"] == f"{tmp_path.name}/only"
    assert {name for call in calls if call != "finished" for name in call} >= CURVES | {
        "prediction"
    }
    assert calls[-1] == "finished"
    assert not (tmp_path / "only" / "tensorboard").exists()


def test_a_resumed_stage_goes_on_with_its_run(tmp_path, wandb) -> None:
    train(settings_of(tmp_path, logger="wandb", iterations=2))
    train(settings_of(tmp_path, logger="wandb", iterations=4))
    train(settings_of(tmp_path, logger="wandb", iterations=4, resume=False))
    first, second, third = (settings["id"] for settings, _ in wandb.runs)
    assert first == second != third


def test_a_server_that_is_lost_costs_no_training(tmp_path, wandb, monkeypatch, caplog) -> None:
    def lost(self, values: dict) -> None:
        raise FakeError("no network")

    monkeypatch.setattr(FakeRun, "log", lost)
    assert train(settings_of(tmp_path, logger="wandb")).is_file()
    assert caplog.text.count("no network") == 1


def test_a_server_that_is_not_there_ends_a_first_start_but_no_later_one(
    tmp_path, wandb, caplog
) -> None:
    def unreachable(**settings: object) -> None:
        raise FakeError("not logged in")

    wandb.init, init = unreachable, wandb.init
    with pytest.raises(InputError, match=r"logger=wandb: not logged in; WANDB_MODE=offline"):
        train(settings_of(tmp_path, logger="wandb", iterations=2))
    wandb.init = init
    train(settings_of(tmp_path, logger="wandb", iterations=2))
    wandb.init = unreachable
    assert train(settings_of(tmp_path, logger="wandb", iterations=4)).is_file()
    assert "training continues without it" in caplog.text


def test_a_logger_that_is_missing_is_named_before_anything_is_written(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"logger=mlflow needs a package .*pip install mlflow"):
        train(settings_of(tmp_path / "run", logger="mlflow"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="logger is 'visdom'"):
        config(tmp_path, logger="visdom")


def test_none_writes_none(tmp_path) -> None:
    train(settings_of(tmp_path, logger=None))
    assert not (tmp_path / "only" / "tensorboard").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself_offline(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(settings_of(tmp_path, logger="wandb"))
    (file,) = (tmp_path / "only" / "wandb").glob("offline-run-*/run-*.wandb")
    assert all(name.encode() in file.read_bytes() for name in CURVES - {"validation/jf"})


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_itself_in_a_folder(tmp_path, monkeypatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no other
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    train(settings_of(tmp_path / "run", logger="mlflow", iterations=2))
    train(settings_of(tmp_path / "run", logger="mlflow", iterations=4), lambda _: lambda *_: 50.0)
    (run,) = mlflow.search_runs(experiment_names=["stma"], output_format="list")
    assert set(run.data.metrics) >= CURVES
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss/total")
    assert [point.step for point in history] == [0, 1, 2, 3]
