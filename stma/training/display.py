"""What a stage shows while it trains: a progress bar, a line in the log, TensorBoard."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from stma.runtime.device import autocast, peak_gigabytes
from stma.structures import ClipBatch
from stma.training.board import Board, prediction_picture
from stma.training.config import TrainConfig
from stma.training.learner import Learner, Step
from stma.training.losses import Losses, bootstrap_fraction
from stma.training.optimizer import learning_rate
from stma.training.step_log import FILE, Row, StepLog

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
        self.board = Board(None)

    @contextmanager
    def opened(self, iteration: int, progress: float) -> Iterator["Display"]:
        """Show everything from this iteration on; earlier starts have made this progress."""
        self.pace = Pace(iteration)
        self._seen = (progress, time.monotonic())
        self.steps: StepLog | None = None
        board = None
        if self.folder is not None:
            self.steps = StepLog(self.folder.parent / FILE, self.name, iteration)
            board = self.folder / "tensorboard"
        with Board(board, iteration) as self.board, self.new_bar(progress) as self.bar:
            yield self

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
            processes = learner.processes
            losses = step.losses.map(lambda values: processes.sum(values) / processes.world_size)
            speed, waiting = self.pace.look(iteration + 1, waited)
            loss, rate = losses.total.item(), learning_rate(self.stage.optimizer, progress)
            self._show_loss(loss, iteration, speed)
            if self.steps is not None:
                left = self._seconds_left(progress, speed)
                norm = step.grad_norm.item()
                self.steps.write(Row(self.name, iteration, loss, rate, norm, speed, left))
                self._show_scalars(learner, losses, norm, iteration, rate, waiting)
        prediction = step.prediction
        due = self.board.is_open and iteration % self.config.picture_every == 0
        if due and prediction is not None:
            picture = prediction_picture(clip, prediction)
            self.board.picture("prediction", picture, iteration)
            with autocast(learner.device, self.config.precision):
                self.board.attention(learner.model, clip, iteration)

    def _seconds_left(self, progress: float, speed: float) -> float:
        """The speed since the last call."""
        (before, then), self._seen = self._seen, (progress, time.monotonic())
        if progress == before:  # the first step of a start
            return (1 - progress) * self.stage.iterations / speed
        return (1 - progress) * (self._seen[1] - then) / (progress - before)

    def show_validation(self, score: float, iteration: int) -> None:
        self.board.scalars({"validation/jf": score}, iteration)

    def _show_loss(self, loss: float, iteration: int, speed: float) -> None:
        if math.isfinite(loss):
            self.shown = loss if self.shown is None else 0.8 * self.shown + 0.2 * loss
        self.bar.set_postfix_str(
            f"iteration {iteration}, loss {self.shown or loss:.3f}, {speed:.1f} it/s"
        )

    def _show_scalars(
        self,
        learner: Learner,
        losses: Losses,
        grad_norm: float,
        iteration: int,
        rate: float,
        waiting: float,
    ) -> None:
        if not self.board.is_open:
            return
        scalars = {
            "loss/total": losses.total.item(),
            **{f"loss/{name}": term.item() for name, term in losses.terms.items()},
            "loss/bootstrap_fraction": bootstrap_fraction(self.stage.loss, iteration),
            "optimizer/learning_rate": rate,
            "optimizer/backbone_learning_rate": rate * self.stage.optimizer.backbone_rate,
            "optimizer/gradient_norm": grad_norm,
            "optimizer/skipped_steps": learner.skipped,
            "time/share_waiting_for_data": waiting,
            "memory/peak_gigabytes": peak_gigabytes(learner.device),
        }
        if learner.scaler.is_enabled():
            scalars["optimizer/loss_scale"] = learner.scaler.get_scale()
            scalars["optimizer/overflows"] = learner.overflows
        self.board.scalars(scalars, iteration)


class Pace:
    """The speed of the steps, from one reading to the next."""

    def __init__(self, iteration: int) -> None:
        self._last = (iteration, time.monotonic(), 0.0)

    def look(self, iteration: int, waited: float) -> tuple[float, float]:
        """Since the last reading: iterations per second, and the share of time spent fetching.

        Args:
            waited: see :class:`Feed`.
        """
        now = (iteration, time.monotonic(), waited)
        steps, seconds, waiting = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
        return steps / seconds, waiting / seconds
