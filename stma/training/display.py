"""What a stage shows while it trains: a progress bar, a line in the log, curves and pictures."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from stma.data.pictures import contact_sheet, draw_overlay
from stma.errors import InputError
from stma.model.probing import Watched, mean_look, mean_shares, with_streams
from stma.model.stma import STMA
from stma.runtime.device import autocast, peak_gigabytes
from stma.runtime.outputs import FILE_ONLY
from stma.structures import ClipBatch, Prediction
from stma.training.config import TrainConfig
from stma.training.learner import Learner, Step
from stma.training.loggers import Logger, open_logger
from stma.training.losses import bootstrap_fraction
from stma.training.optimizer import learning_rate

log = logging.getLogger(__name__)
to_file = logging.getLogger(FILE_ONLY)

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Display:
    """The display of one stage, open while it trains.

    Args:
        name: of the stage.
        folder: of the stage; None shows nothing.

    Attributes:
        shown: running average of the loss; None before the first step.
    """

    def __init__(self, config: TrainConfig, name: str, folder: Path | None) -> None:
        self.config, self.stage, self.name = config, config.stages[name], name
        self.folder = folder
        self.shown: float | None = None
        self.logger: Logger | None = None

    @contextmanager
    def opened(self, iteration: int, progress: float) -> Iterator["Display"]:
        """Show everything from this iteration on; earlier starts have made this progress."""
        self._last = (iteration, progress, time.monotonic(), 0.0)
        if self.folder is not None:
            try:
                self.logger = open_logger(self.config, self.folder, iteration)
            except (InputError, OSError) as error:
                if isinstance(error, InputError) and iteration == 0:
                    raise
                self._give_up(error)
        try:
            with self.new_bar(progress) as self.bar:
                yield self
        finally:
            self._log(lambda logger: logger.close())
            self.logger = None

    def new_bar(self, progress: float) -> tqdm:
        return tqdm(
            total=100,
            initial=100 * progress,  # made by earlier starts
            unit="%",
            desc=self.name,
            bar_format=BAR,
            mininterval=1,
            disable=self.folder is None,
        )

    def advance(self, progress: float) -> None:
        """Move the bar."""
        self.bar.update(100 * progress - self.bar.n)

    def show_step(
        self,
        learner: Learner,
        step: Step,
        clip: ClipBatch,
        iteration: int,
        progress: float,
        waited: float,
    ) -> None:
        """Show what is due at this iteration; called in all processes.

        Args:
            clip: that the step's prediction belongs to.
            waited: seconds spent waiting for data since the start.
        """
        if iteration % self.config.log_every == 0:
            self._show_losses(learner, step, iteration, progress, waited)
        prediction = step.prediction
        due = self.logger is not None and iteration % self.config.picture_every == 0
        if due and prediction is not None:
            picture = prediction_picture(clip, prediction)
            self._log(lambda logger: logger.picture("prediction", picture, iteration))
            with autocast(learner.device, self.config.precision):
                shares = attention_shares(learner.model, clip)
            self._log(lambda logger: logger.scalars(shares, iteration))

    def show_validation(self, score: float, iteration: int) -> None:
        self._log(lambda logger: logger.scalars({"validation/jf": score}, iteration))

    def _show_losses(
        self, learner: Learner, step: Step, iteration: int, progress: float, waited: float
    ) -> None:
        processes = learner.processes
        means = step.losses.map(lambda values: processes.sum(values) / processes.world_size)
        if self.folder is None:
            return
        losses = {"total": means.total.item()}
        losses |= {name: term.item() for name, term in means.terms.items()}
        loss, rate = losses["total"], learning_rate(self.stage.optimizer, progress)
        speed, waiting, left = self._pace(iteration + 1, progress, waited)
        if math.isfinite(loss):
            self.shown = loss if self.shown is None else 0.8 * self.shown + 0.2 * loss
        self.bar.set_postfix_str(
            f"iteration {iteration}, loss {self.shown or loss:.3f}, {speed:.1f} it/s"
        )
        norm = step.grad_norm.item()
        to_file.info(
            "%s: iteration %d, %s, learning rate %.3g, gradient norm %.3g, %.2f it/s, %s left",
            self.name,
            iteration,
            ", ".join(f"{name} {value:.4f}" for name, value in losses.items()),
            rate,
            norm,
            speed,
            timedelta(seconds=round(left)),
        )
        scalars = {f"loss/{name}": value for name, value in losses.items()} | {
            "loss/bootstrap_fraction": bootstrap_fraction(self.stage.loss, iteration),
            "optimizer/learning_rate": rate,
            "optimizer/backbone_learning_rate": rate * self.stage.optimizer.backbone_rate,
            "optimizer/gradient_norm": norm,
            "optimizer/skipped_steps": learner.skipped,
            "time/iterations_per_second": speed,
            "time/share_waiting_for_data": waiting,
            "memory/peak_gigabytes": peak_gigabytes(learner.device),
        }
        if learner.scaler.is_enabled():
            scalars["optimizer/loss_scale"] = learner.scaler.get_scale()
            scalars["optimizer/overflows"] = learner.overflows
        self._log(lambda logger: logger.scalars(scalars, iteration))

    def _pace(self, iteration: int, progress: float, waited: float) -> tuple[float, float, float]:
        """Since the last call: iterations per second, the share of time spent waiting for data; and
        the seconds left of the stage at this speed."""
        now = (iteration, progress, time.monotonic(), waited)
        steps, gained, seconds, waiting = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
        # The first step of a start is made at the progress where the start began.
        left = (1 - progress) * (
            seconds / gained if gained else self.stage.iterations * seconds / steps
        )
        return steps / seconds, waiting / seconds, left

    def _log(self, write: Callable[[Logger], None]) -> None:
        if self.logger is None:
            return
        try:
            write(self.logger)
        except self.logger.failures as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.logger = None
        log.warning(
            "logger=%s: cannot be written (%s); training continues without it",
            self.config.logger,
            error,
        )


def attention_shares(model: STMA, clip: ClipBatch) -> dict[str, float]:
    """Where the test stream's attention goes and how far it spreads, and how much of the
    references' goes to the objects; in evaluation mode, so that it has no side effects.

    Returns:
        Values by the names of their curves.
    """
    model.eval()
    watched = Watched(model.streams)
    with torch.no_grad(), with_streams(model, watched):
        model(clip)
    found: dict[str, float] = {}
    if (look := mean_look(watched.looks)) is not None:
        for block, row in enumerate(look.shares.tolist()):
            for name, share in zip(look.groups, row, strict=True):
                found[f"attention/block{block}_{name}"] = share
        for block, spread in enumerate(look.spreads.tolist()):
            found[f"attention_spread/block{block}"] = spread
    if (received := mean_shares(watched.object_shares)) is not None:
        for block, share in enumerate(received.tolist()):
            found[f"attention_of_references/block{block}_objects"] = share
    return found


def prediction_picture(clip: ClipBatch, prediction: Prediction) -> np.ndarray:
    """The first clip of a batch with its ground truth and, from frame 1 on, its prediction.

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
