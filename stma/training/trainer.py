"""One stage of training, in one process, that can be killed at any moment and goes on."""

import logging
import math
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from stma.training.checkpoint import Checkpoints, rng_state, set_rng_state
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
        keep_checkpoints: how many of the newest stay.
        resume: go on from the output's newest checkpoint; false starts anew and removes them.
        max_skipped: steps in a row whose loss or gradient is not finite, until the run stops.
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
    keep_checkpoints: int = 2
    resume: bool = True
    max_skipped: int = 10
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in (
            "iterations",
            "batch_size",
            "log_every",
            "picture_every",
            "save_every",
            "keep_checkpoints",
            "max_skipped",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("num_workers", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 or more")
        check_precision(self.precision)
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise InputError(f"max_minutes is {self.max_minutes}; give more than 0, or null")


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_PREEMPTED = 75  # of a run that was told to leave, and goes on when it is started again
FREE = (  # settings that may change from one start of a run to the next
    "output",
    "num_workers",
    "device",
    "log_every",
    "picture_every",
    "save_every",
    "keep_checkpoints",
    "resume",
    "max_skipped",
)


class Preempted(SystemExit):
    """The run was asked to leave (SIGTERM, SIGUSR1), has saved its state and goes on when the same
    command is given again. Not caught, it ends the program with status 75."""

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


class Trainer:
    """Trains one network on one stage's clips.

    Attributes:
        iteration: steps taken, skipped ones included.
        skipped: steps that were not taken, as their loss or gradient was not finite.
    """

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
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.keep_checkpoints)
        self.iteration = 0
        self.seconds = 0.0  # of earlier starts
        self.shown: float | None = None  # running average of the loss
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.finished = False
        self.must_leave = False

    @property
    def weights_path(self) -> Path:
        return self.output / "weights.safetensors"

    def run(self) -> STMA:
        """Train to the end of the stage; the weights are in :attr:`weights_path`.

        Raises:
            InputError: see :meth:`resume`; a faulty file; a full disk; steps that are not finite.
            Preempted: SIGTERM or SIGUSR1 came.
        """
        config = self.config
        state = self.checkpoints.load_newest() if config.resume else None
        if state is not None:
            self.resume(state)
        prepare_output(self.output, "train.log")
        if self.finished:
            log.info("%s: finished already, %d iterations", self.weights_path, self.iteration)
            return self.model
        if state is None:
            self.checkpoints.clear()
        OmegaConf.save(OmegaConf.structured(config), self.output / "config.yaml")
        count = sum(p.numel() for p in self.model.parameters())
        log.info("%.2f M parameters, %s, %s", count / 1e6, self.device, config.output)
        for line in self.clips.describe().splitlines():
            log.info("%s", line)
        if state is not None:
            log.info("goes on after iteration %d", self.iteration)
        start = time.monotonic() - self.seconds
        first, resumed_at = self.iteration, time.monotonic()
        with (
            SummaryWriter(self.output / "tensorboard", purge_step=self.iteration) as board,
            tqdm(total=100, unit="%", desc="train", bar_format=BAR, mininterval=1) as bar,
            self._signals(),
        ):
            for batch in self._batches():
                progress = self._progress(time.monotonic() - start)
                if progress >= 1:
                    break
                losses, prediction, grad_norm = self.step(batch.to(self.device), progress)
                if self.iteration % config.log_every == 0:
                    total = losses.total.item()
                    if math.isfinite(total):
                        self.shown = total if self.shown is None else 0.8 * self.shown + 0.2 * total
                    self._log_scalars(board, losses, grad_norm, progress)
                    speed = (self.iteration + 1 - first) / (time.monotonic() - resumed_at)
                    bar.set_postfix_str(
                        f"iteration {self.iteration}, loss {self.shown or total:.3f}, "
                        f"{speed:.1f} it/s"
                    )
                if self.iteration % config.picture_every == 0:
                    picture = prediction_picture(batch, prediction)
                    board.add_image("prediction", picture, self.iteration, dataformats="HWC")
                self.iteration += 1
                self.seconds = time.monotonic() - start
                if self.must_leave or self.iteration % config.save_every == 0:
                    self.save()
                if self.must_leave:
                    log.warning(
                        "told to leave: saved after iteration %d; the same command goes on from "
                        "there (exit status %d)",
                        self.iteration,
                        EXIT_PREEMPTED,
                    )
                    raise Preempted
                bar.update(100 * progress - bar.n)
            bar.update(100 - bar.n)
        self.finished = True
        self.save()
        skipped = f", {self.skipped} of them skipped" if self.skipped else ""
        log.info("%d iterations%s; weights: %s", self.iteration, skipped, self.weights_path)
        return self.model

    def step(self, clip: ClipBatch, progress: float) -> tuple[Losses, Prediction, Tensor]:
        """One step of the optimiser; returns the losses, the prediction and the gradient norm.

        A step whose loss or gradient is not finite leaves the weights and all averages as they
        were.

        Raises:
            InputError: it was the last of ``max_skipped`` such steps in a row.
        """
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
        if math.isfinite(losses.total.item()) and math.isfinite(grad_norm.item()):
            self.optimizer.step()
            self.model.object_features.update_center()
            self.skipped_in_a_row = 0
        else:
            self.model.object_features.forget_observed()
            self._skip(losses.total.item(), grad_norm.item(), clip)
        return losses, prediction, grad_norm

    def _skip(self, loss: float, grad_norm: float, clip: ClipBatch) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        found = (
            f"loss {loss}, gradient norm {grad_norm} at iteration {self.iteration} "
            f"({'; '.join(clip.names)})"
        )
        log.warning("skipped: %s", found)
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise InputError(
                f"{found}: {self.skipped_in_a_row} steps in a row were not finite; checkpoints and "
                "weights are as last saved. Lower optimizer.learning_rate or set precision=fp32"
            )

    def save(self) -> None:
        """Write a checkpoint and the weights, with all that tells where they come from.

        Raises:
            InputError: they cannot be written; names the last checkpoint that is whole.
        """
        self.checkpoints.save(self.iteration, self._state())
        try:
            save_weights(self.weights_path, self.model, self.config.model, self._provenance())
        except OSError as error:
            raise InputError(
                f"{self.weights_path}: cannot be written ({error}); the checkpoint is whole. Make "
                "room and run the same command again"
            ) from error

    def _state(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "config": asdict(self.config),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "shown": self.shown,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "finished": self.finished,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng_state(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped; the data's position is the iteration.

        Raises:
            InputError: it comes from other settings; names those that differ.
        """
        if differences := _differences(state["config"], asdict(self.config)):
            raise InputError(
                f"{self.output}: holds a run with other settings; give another output, or "
                "resume=false to start anew\n  " + "\n  ".join(differences)
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("iteration", "seconds", "shown", "skipped", "skipped_in_a_row", "finished"):
            setattr(self, name, state[name])
        set_rng_state(state["rng"])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While training: a signal to leave is noted, and followed after the step."""

        def leave(number: int, frame: object) -> None:
            self.must_leave = True

        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = {number: signal.signal(number, leave) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _progress(self, seconds: float) -> float:
        done = self.iteration / self.config.iterations
        if self.config.max_minutes is not None:
            done = max(done, seconds / (60 * self.config.max_minutes))
        return done

    def _batches(self) -> Iterator[ClipBatch]:
        config = self.config
        return clip_batches(
            self.clips,
            BatchNumbers(self.iteration, config.iterations, config.batch_size),
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
            "optimizer/skipped_steps": self.skipped,
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


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Settings that differ, but for those that may; datasets may have moved."""
    found = []
    for key in sorted({*before, *now}):
        name = f"{path}{key}"
        a, b = before.get(key), now.get(key)
        if name in FREE or (name.startswith("data.") and key == "root"):
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {a} there, {b} here")
    return found


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
