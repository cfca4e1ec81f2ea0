"""Where a stage's curves and pictures go: TensorBoard, Weights & Biases or MLflow."""

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from stma.errors import InputError
from stma.training.config import TrainConfig

log = logging.getLogger(__name__)

RUN_ID = "logger.txt"  # in a stage's folder: what a resumed run goes on with


class Logger(Protocol):
    """Takes curves and pictures of one stage.

    Attributes:
        failures: what its calls raise if something cannot be written or sent.
    """

    failures: tuple[type[Exception], ...]

    def scalars(self, values: Mapping[str, float], iteration: int) -> None: ...

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        """``(H, W, 3)`` uint8."""

    def close(self) -> None: ...


class TensorBoard:
    """Files in ``tensorboard`` in the stage's folder."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: Path, first: int) -> None:
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, iteration)

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        self.writer.add_image(name, picture, iteration, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases for the stage, in the project ``stma`` unless its own variables
    (``WANDB_PROJECT``, ``WANDB_MODE=offline``, ...) say otherwise."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.wandb = _imported("wandb")
        self.failures: tuple[type[Exception], ...] = (self.wandb.errors.Error, OSError)
        try:
            self.run = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT", "stma"),
                name=f"{folder.parent.name}/{folder.name}",
                id=_run_id(folder, lambda: uuid4().hex[:8]),
                resume="allow",
                dir=str(folder),
                config=asdict(config),
            )
        except self.wandb.errors.Error as error:
            raise InputError(
                f"logger=wandb: {error}; WANDB_MODE=offline keeps the run in {folder}/wandb"
            ) from error
        # Not its own count of steps, which cannot go back to a checkpoint.
        self.run.define_metric("*", step_metric="iteration")

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        self.run.log({**values, "iteration": iteration})

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        self.run.log({name: self.wandb.Image(picture), "iteration": iteration})

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow for the stage, in the experiment ``stma``, where its own variables
    (``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``) say."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.mlflow = _imported("mlflow")
        refused = self.mlflow.exceptions.MlflowException
        self.failures: tuple[type[Exception], ...] = (refused, OSError)
        self.client = client = self.mlflow.MlflowClient()

        def new_run() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "stma")
            experiment = self.mlflow.set_experiment(name).experiment_id
            run_name = f"{folder.parent.name}/{folder.name}"
            return client.create_run(experiment, run_name=run_name).info.run_id

        try:
            self.run_id = _run_id(folder, new_run)
            client.log_dict(self.run_id, asdict(config), "config.yaml")
        except refused as error:
            raise InputError(f"logger=mlflow: {error}; see MLFLOW_TRACKING_URI") from error

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value, step=iteration)

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        self.client.log_image(self.run_id, picture, key=name, step=iteration)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def open_logger(config: TrainConfig, folder: Path, first: int) -> Logger | None:
    """The logger of ``config.logger`` for the stage in the folder.

    Args:
        first: iteration; what an earlier start wrote about later ones is not shown.

    Raises:
        InputError: its package is missing, or its server cannot be reached.
    """
    if config.logger == "wandb":
        return WandB(folder, config)
    if config.logger == "mlflow":
        return MLflow(folder, config)
    return None if config.logger is None else TensorBoard(folder, first)


def check_logger(name: str | None) -> None:
    """Raises :class:`InputError` if its package is missing."""
    if name in ("wandb", "mlflow"):
        _imported(name)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"logger={name} needs a package that is missing ({error}); pip install {name}, or "
            "choose logger=tensorboard"
        ) from error


def _run_id(folder: Path, new: Callable[[], str]) -> str:
    """That of an earlier start of the stage, or a new one."""
    path = folder / RUN_ID
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(new())
    return path.read_text().strip()
