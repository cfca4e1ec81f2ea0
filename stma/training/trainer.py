"""One stage of training, in one process."""

import logging
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from stma import __version__
from stma.data.dataset import ClipDataset, DataConfig, clip_batches
from stma.data.sampling import BatchNumbers
from stma.device import autocast, check_precision, resolve_device
from stma.errors import InputError
from stma.model.factory import ModelConfig, build_model
from stma.model.stma import STMA
from stma.model.weights import (
    check_same_architecture,
    load_state,
    read_weights,
    save_weights,
)
from stma.outputs import prepare_output
from stma.pictures import contact_sheet, draw_overlay
from stma.structures import ClipBatch, Prediction
from stma.training.losses import LossConfig, Losses, bootstrap_fraction, clip_loss
from stma.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    learning_rate,
    set_learning_rate,
)

log = logging.getLogger(__name__)


@dataclass
class TrainConfig:
    """A run of training.

    Attributes:
        output: folder for weights, TensorBoard and the log.
        iterations: length of the stage.
        max_minutes: end sooner, after this time; schedules follow whichever comes first. Runs
            that end by time are not reproducible.
        batch_size: clips per iteration.
        num_workers: processes that make clips; 0 makes them between the steps.
        weights: start from this file of the same architecture; null starts fresh.
        precision: ``auto`` (bf16 on CUDA, fp32 elsewhere), ``fp32`` or ``bf16``.
        log_every, picture_every, save_every: in iterations.
    """

    output: str
    iterations: int = 250_000
    max_minutes: float | None = None
    batch_size: int = 16
    num_workers: int = 4
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    weights: str | None = None
    log_every: int = 50
    picture_every: int = 1000
    save_every: int = 5000
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "log_every", "picture_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("num_workers", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 or more")
        check_precision(self.precision)
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise InputError(f"max_minutes is {self.max_minutes}; give more than 0, or null")


class Trainer:
    """Trains one network on one stage's clips."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.output = Path(config.output)
        self.clips = ClipDataset(
            config.data, length=config.iterations * config.batch_size, seed=config.seed
        )
        torch.manual_seed(config.seed)
        self.model = build_model(config.model)
        if config.weights is not None:
            their_config, _, tensors = read_weights(config.weights)
            check_same_architecture(their_config, config.model, config.weights)
            load_state(self.model, tensors, config.weights)
        self.model.to(self.device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.iteration = 0

    @property
    def weights_path(self) -> Path:
        return self.output / "weights.safetensors"

    def run(self) -> STMA:
        """Train to the end of the stage; the weights are in :attr:`weights_path`."""
        config = self.config
        prepare_output(self.output, "train.log")
        OmegaConf.save(OmegaConf.structured(config), self.output / "config.yaml")
        count = sum(p.numel() for p in self.model.parameters())
        log.info("%.2f M parameters, %s, %s", count / 1e6, self.device, config.output)
        for line in self.clips.describe().splitlines():
            log.info("%s", line)
        start = time.monotonic()
        shown: float | None = None
        with (
            SummaryWriter(self.output / "tensorboard") as board,
            tqdm(total=100, unit="%", desc="train", bar_format=BAR, mininterval=1) as bar,
        ):
            for batch in self._batches():
                progress = self._progress(time.monotonic() - start)
                if progress >= 1:
                    break
                losses, prediction, grad_norm = self.step(batch.to(self.device), progress)
                if self.iteration % config.log_every == 0:
                    total = losses.total.item()  # here the host waits for the device
                    self._check_finite(total, batch)
                    shown = total if shown is None else 0.8 * shown + 0.2 * total
                    self._log_scalars(board, losses, grad_norm, progress)
                    speed = (self.iteration + 1) / (time.monotonic() - start)
                    bar.set_postfix_str(
                        f"iteration {self.iteration}, loss {shown:.3f}, {speed:.1f} it/s"
                    )
                if self.iteration % config.picture_every == 0:
                    picture = prediction_picture(batch, prediction)
                    board.add_image("prediction", picture, self.iteration, dataformats="HWC")
                self.iteration += 1
                if self.iteration % config.save_every == 0:
                    self.save()
                bar.update(100 * progress - bar.n)
            bar.update(100 - bar.n)
        self.save()
        log.info("%d iterations; weights: %s", self.iteration, self.weights_path)
        return self.model

    def step(self, clip: ClipBatch, progress: float) -> tuple[Losses, Prediction, Tensor]:
        """One step of the optimiser; returns the losses, the prediction and the gradient norm."""
        config = self.config
        self.model.train()
        set_learning_rate(self.optimizer, learning_rate(config.optimizer, progress))
        with autocast(self.device, config.precision):
            prediction = self.model(clip)
        losses = clip_loss(prediction, clip, config.loss, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), config.optimizer.clip_norm
        )
        self.optimizer.step()
        self.model.object_features.update_center()
        return losses, prediction, grad_norm

    def save(self) -> None:
        """Write the weights, with all that tells where they come from."""
        save_weights(self.weights_path, self.model, self.config.model, self._provenance())

    def _check_finite(self, loss: float, batch: ClipBatch) -> None:
        """Stop a run that has failed; seen when logged, where the host waits anyway."""
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at iteration {self.iteration} ({', '.join(batch.names)}); "
                f"weights are as last saved; lower optimizer.learning_rate or set precision=fp32"
            )

    def _progress(self, seconds: float) -> float:
        done = self.iteration / self.config.iterations
        if self.config.max_minutes is not None:
            done = max(done, seconds / (60 * self.config.max_minutes))
        return done

    def _batches(self) -> Iterator[ClipBatch]:
        config = self.config
        return clip_batches(
            self.clips,
            BatchNumbers(0, config.iterations, config.batch_size),
            config.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _log_scalars(
        self, board: SummaryWriter, losses: Losses, grad_norm: Tensor, progress: float
    ) -> None:
        config = self.config
        scalars = {
            "loss/total": losses.total.item(),
            "loss/cross_entropy": losses.cross_entropy.item(),
            "loss/dice": losses.dice.item(),
            "loss/bootstrap_fraction": bootstrap_fraction(config.loss, self.iteration),
            "optimizer/learning_rate": learning_rate(config.optimizer, progress),
            "optimizer/gradient_norm": grad_norm.item(),
        }
        for name, value in scalars.items():
            board.add_scalar(name, value, self.iteration)

    def _provenance(self) -> dict[str, Any]:
        return {
            "stma": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "git": _git_revision(),
            "command": sys.argv,
            "iterations": self.iteration,
            "config": asdict(self.config),
        }


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def prediction_picture(clip: ClipBatch, prediction: Prediction) -> np.ndarray:
    """The first clip of a batch with its truth and, from frame 1 on, its prediction.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    frames = clip.frames[0].permute(0, 2, 3, 1).cpu().numpy()
    truth = clip.masks[0].cpu().numpy()
    predicted = prediction.logits[0].argmax(dim=1).to(torch.uint8).cpu().numpy()
    return contact_sheet(
        [
            ("truth", [draw_overlay(f, m) for f, m in zip(frames, truth, strict=True)]),
            (
                "frame 0, prediction",
                [
                    frames[0],
                    *(draw_overlay(f, m) for f, m in zip(frames[1:], predicted, strict=True)),
                ],
            ),
        ]
    )


def _git_revision() -> str | None:
    """The commit of the code, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def train(config: TrainConfig) -> Path:
    """Train one stage.

    Returns:
        The weights file.

    Raises:
        InputError: something in the input is wrong; the message names it.
    """
    trainer = Trainer(config)
    trainer.run()
    return trainer.weights_path
