"""One stage of training, in one process or many, that can be killed at any moment and goes on."""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from stma.data.dataset import ClipDataset, clip_batches
from stma.data.sampling import BatchNumbers
from stma.device import autocast, peak_gigabytes, uses_fp16
from stma.distributed import Processes
from stma.errors import InputError
from stma.model.factory import build_model
from stma.model.pretrained import load_pretrained
from stma.model.stma import STMA
from stma.model.weights import (
    check_same_architecture,
    load_state,
    read_weights,
    save_weights,
)
from stma.outputs import PARTIAL, replacing
from stma.provenance import versions
from stma.structures import ClipBatch, Prediction
from stma.training.board import prediction_picture
from stma.training.checkpoint import Checkpoints, rng_state, set_rng_state
from stma.training.config import TrainConfig
from stma.training.losses import Losses, bootstrap_fraction, clip_loss
from stma.training.optimizer import build_optimizer, learning_rate, set_learning_rate

log = logging.getLogger(__name__)

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_PREEMPTED = 75  # of a run that was told to leave, and goes on when it is started again
LOSS_SCALE = 2.0**14  # of fp16, at first
# What the result of a stage depends on, beside the stage itself. The rest may change from one start
# of a run to the next.
SETTINGS = ("seed", "precision", "ema", "weights", "pretrained", "strict_weights", "model")

Validation = Callable[[STMA, Path], float]


class Preempted(SystemExit):
    """The run was asked to leave (SIGTERM, SIGUSR1), has saved its state and goes on when the same
    command is given again. Not caught, it ends the program with status 75."""

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


class Trainer:
    """Trains one network on one stage's clips.

    Args:
        name: of the stage.
        validation: gives J&F of a model, given a folder to work in.

    Attributes:
        iteration: steps taken, skipped ones included.
        skipped: steps that were not taken, as their loss or gradient was not finite.
        finished: the stage is at its end, in this start or an earlier one.

    Raises:
        InputError: the data are at fault, the batch cannot be divided, or the output holds a stage
            with other settings.
    """

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        device: torch.device,
        processes: Processes | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.config, self.stage, self.name = config, config.stages[name], name
        self.device = device
        self.processes = processes or Processes()
        self.validation = validation
        self.output = Path(config.output) / name
        self.weights_path = self.output / "weights.safetensors"
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.keep_checkpoints)
        self.iteration = 0
        self.seconds = 0.0  # of earlier starts
        self.shown: float | None = None  # running average of the loss
        self.skipped = self.skipped_in_a_row = 0
        self.best: float | None = None  # J&F of the validation
        self.must_leave = False
        self.finished = self._is_finished()
        if not self.finished:
            self.numbers(0)  # refuses a batch that cannot be divided
            self.clips = ClipDataset(
                self.stage.data,
                length=self.stage.iterations * self.stage.batch_size,
                seed=config.seed,
            )

    def _is_finished(self) -> bool:
        """An earlier start has written the mark of the end."""
        if not self.config.resume or not self._mark.is_file() or not self.weights_path.is_file():
            return False
        self._check_settings(json.loads(self._mark.read_text()))
        return True

    @property
    def started(self) -> bool:
        """There is something to go on from."""
        return self.config.resume and (self.finished or bool(self.checkpoints.paths()))

    @property
    def _mark(self) -> Path:
        return self.output / "finished.json"

    def build(self, weights: str | Path | None) -> None:
        """The network and all that belongs to it.

        Args:
            weights: of the whole network, or the public backbone ``config.pretrained``.

        Raises:
            InputError: the weights do not fit.
        """
        config = self.config
        torch.manual_seed(config.seed)
        self.model = build_model(config.model)
        if weights is not None and weights == config.pretrained:
            load_pretrained(self.model.backbone, weights)
        elif weights is not None:
            their_config, _, tensors = read_weights(weights)
            if config.strict_weights:
                check_same_architecture(their_config, config.model, weights)
            load_state(self.model, tensors, weights, strict=config.strict_weights)
        self.model.to(self.device)
        self.model.checkpoint_blocks(config.checkpoint_blocks)
        self.optimizer = build_optimizer(self.model, self.stage.optimizer)
        self.scaler = torch.amp.GradScaler(
            self.device.type, LOSS_SCALE, enabled=uses_fp16(config.precision)
        )
        self.average: AveragedModel | None = None
        if config.ema > 0:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        if config.compile:
            self.model.compile_parts()
        self.network: nn.Module = self.model
        if self.processes.world_size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=devices)

    @property
    def result(self) -> STMA:
        """The network that is saved and validated: the average, where there is one."""
        return self.model if self.average is None else cast(STMA, self.average.module)

    def run(self, weights: str | Path | None = None) -> None:
        """Train to the end of the stage; the weights are in :attr:`weights_path`.

        Args:
            weights: to start from, where there is no checkpoint to go on from.

        Raises:
            InputError: a faulty file; a full disk; steps that are not finite; weights or a
                checkpoint that do not fit.
            Preempted: SIGTERM or SIGUSR1 came.
        """
        config, processes = self.config, self.processes
        if self.finished:
            log.info("%s: finished already: %s", self.name, self.weights_path)
            return
        if processes.is_main:
            for leftover in self.output.rglob(f"*{PARTIAL}"):  # of a start that was killed
                leftover.unlink()
        state = self.checkpoints.load_newest() if config.resume else None
        self.build(weights if state is None else None)
        if state is not None:
            self.resume(state)
        elif processes.is_main:
            self.checkpoints.clear()
            self._mark.unlink(missing_ok=True)
        count = sum(p.numel() for p in self.model.parameters())
        log.info("%s: %.2f M parameters, %s", self.name, count / 1e6, self.device)
        for line in self.clips.describe().splitlines():
            log.info("%s", line)
        if state is not None:
            log.info("goes on after iteration %d", self.iteration)
        with self._board() as board, self._bar() as bar, self._signals():
            self._loop(board, bar)
        self.save()
        if processes.is_main:
            with replacing(self._mark) as unfinished:
                unfinished.write_text(json.dumps(self._settings()))
            skipped = f", {self.skipped} of them skipped" if self.skipped else ""
            log.info("%d iterations%s; weights: %s", self.iteration, skipped, self.weights_path)
        self.finished = True
        processes.wait()

    def _loop(self, board: SummaryWriter | None, bar: tqdm) -> None:
        config, stage = self.config, self.stage
        start = time.monotonic() - self.seconds
        first, resumed_at, waited = self.iteration, time.monotonic(), 0.0
        batches = self._batches()
        while self.iteration < stage.iterations:
            progress, leave = self.processes.maximum(
                [self._progress(time.monotonic() - start), float(self.must_leave)], self.device
            )
            if leave:
                self._leave()
            if progress >= 1:
                break
            before = time.monotonic()
            parts = list(islice(batches, config.accumulate))
            waited += time.monotonic() - before
            parts = [part.to(self.device) for part in parts]
            losses, prediction, grad_norm = self.step(parts, progress)
            if self.iteration % config.log_every == 0:
                total = losses.total.item()
                if math.isfinite(total):
                    self.shown = total if self.shown is None else 0.8 * self.shown + 0.2 * total
                taken = time.monotonic() - resumed_at
                self._log_scalars(board, losses, grad_norm, progress, waited / taken)
                speed = (self.iteration + 1 - first) / taken
                bar.set_postfix_str(
                    f"iteration {self.iteration}, loss {self.shown or total:.3f}, {speed:.1f} it/s"
                )
            if board is not None and self.iteration % config.picture_every == 0:
                picture = prediction_picture(parts[-1], prediction)
                board.add_image("prediction", picture, self.iteration, dataformats="HWC")
            self.iteration += 1
            self.seconds = time.monotonic() - start
            if self.iteration % config.validation.every == 0:
                self.validate(board)
            if self.iteration % config.save_every == 0:
                self.save()
            bar.update(100 * progress - bar.n)
        if self.iteration % config.validation.every:
            self.validate(board)
        bar.update(100 - bar.n)

    def _leave(self) -> None:
        self.save()
        log.warning(
            "told to leave: saved after iteration %d; the same command goes on from there (exit "
            "status %d)",
            self.iteration,
            EXIT_PREEMPTED,
        )
        raise Preempted

    def step(self, parts: list[ClipBatch], progress: float) -> tuple[Losses, Prediction, Tensor]:
        """One step of the optimiser on a batch in parts of equal size.

        A step whose loss or gradient is not finite, in any process, leaves the weights and all
        averages as they were.

        Returns:
            The losses of this process's share, the prediction of its last part, the gradient norm.

        Raises:
            InputError: it was the last of ``max_skipped`` such steps in a row.
        """
        config, stage = self.config, self.stage
        self.network.train()
        set_learning_rate(self.optimizer, learning_rate(stage.optimizer, progress))
        self.optimizer.zero_grad(set_to_none=True)
        all_losses = []
        for index, part in enumerate(parts):
            last = index + 1 == len(parts)
            with self._no_sync(last):
                with autocast(self.device, config.precision):
                    prediction = self.network(part)
                losses = clip_loss(prediction, part, stage.loss, self.iteration)
                self.scaler.scale(losses.total / len(parts)).backward()
            all_losses.append(losses.detach())
        losses = Losses.mean(all_losses)
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), stage.optimizer.clip_norm
        )
        values = [losses.total.item(), grad_norm.item()]  # here the host waits for the device
        bad = float(not all(map(math.isfinite, values)))
        if self.processes.maximum([bad], self.device)[0]:
            self.scaler.update()
            self.model.object_features.forget_observed()
            self._skip(values, parts)
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.model.object_features.update_center(self.processes.sum)
            if self.average is not None:
                self.average.update_parameters(self.model)
            self.skipped_in_a_row = 0
        return losses, prediction, grad_norm

    def _no_sync(self, last: bool) -> Any:
        """Gradients are exchanged once, after the last part."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return nullcontext()

    def _skip(self, values: list[float], parts: list[ClipBatch]) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        names = "; ".join(name for part in parts for name in part.names)
        found = (
            f"loss {values[0]}, gradient norm {values[1]} at iteration {self.iteration} ({names})"
        )
        log.warning("skipped: %s", found)
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise InputError(
                f"{found}: {self.skipped_in_a_row} steps in a row were not finite; checkpoints and "
                "weights are as last saved. Lower the stage's optimizer.learning_rate or set "
                "precision=fp32"
            )

    def validate(self, board: SummaryWriter | None) -> None:
        """Score the result so far on the validation set, and keep the best."""
        if self.validation is None:
            return
        if self.processes.is_main:
            self.result.eval()
            score = self.validation(self.result, self.output / "validation")
            log.info("iteration %d: validation J&F %.1f", self.iteration, score)
            if board is not None:
                board.add_scalar("validation/jf", score, self.iteration)
            if self.best is None or score > self.best:
                self.best = score
                self.checkpoints.save_best(self._state())
                self._save_weights(self.output / "best.safetensors")
        self.processes.wait()

    def save(self) -> None:
        """Write a checkpoint and the weights, with all that tells where they come from.

        Raises:
            InputError: they cannot be written; names the last checkpoint that is whole.
        """
        if self.processes.is_main:
            self.checkpoints.save(self.iteration, self._state())
            self._save_weights(self.weights_path)
        self.processes.wait()

    def _save_weights(self, path: Path) -> None:
        try:
            save_weights(path, self.result, self.config.model, self._provenance())
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error}); the checkpoint is whole. Make room and run "
                "the same command again"
            ) from error

    def _settings(self) -> dict[str, Any]:
        """What the result of the stage depends on."""
        whole = asdict(self.config)
        return {name: whole[name] for name in SETTINGS} | {"stage": asdict(self.stage)}

    def _check_settings(self, theirs: Mapping[str, Any]) -> None:
        if differences := _differences(theirs, self._settings()):
            raise InputError(
                f"{self.output}: holds a run with other settings; give another output, or "
                "resume=false to start anew\n  " + "\n  ".join(differences)
            )

    def _state(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "settings": self._settings(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "shown": self.shown,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped; the data's position is the iteration.

        Raises:
            InputError: it comes from other settings; names those that differ.
        """
        self._check_settings(state["settings"])
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name in ("iteration", "seconds", "shown", "skipped", "skipped_in_a_row", "best"):
            setattr(self, name, state[name])
        set_rng_state(state["rng"])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While training: a signal to leave is noted, and followed before the next step."""

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

    def _board(self) -> Any:
        if not self.processes.is_main:
            return nullcontext()
        return SummaryWriter(str(self.output / "tensorboard"), purge_step=self.iteration)

    def _bar(self) -> tqdm:
        return tqdm(
            total=100,
            unit="%",
            desc=self.name,
            bar_format=BAR,
            mininterval=1,
            disable=not self.processes.is_main,
        )

    def _progress(self, seconds: float) -> float:
        done = self.iteration / self.stage.iterations
        if self.stage.max_minutes is not None:
            done = max(done, seconds / (60 * self.stage.max_minutes))
        return done

    def numbers(self, start: int) -> BatchNumbers:
        """Of this process's clips from an iteration on."""
        return BatchNumbers(
            start,
            self.stage.iterations,
            self.stage.batch_size,
            self.processes.rank,
            self.processes.world_size,
            self.config.accumulate,
        )

    def _batches(self) -> Iterator[ClipBatch]:
        return clip_batches(
            self.clips,
            self.numbers(self.iteration),
            self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _log_scalars(
        self,
        board: SummaryWriter | None,
        losses: Losses,
        grad_norm: Tensor,
        progress: float,
        waiting: float,
    ) -> None:
        if board is None:
            return
        optimizer = self.stage.optimizer
        rate = learning_rate(optimizer, progress)
        scalars = {
            "loss/total": losses.total.item(),
            "loss/cross_entropy": losses.cross_entropy.item(),
            "loss/dice": losses.dice.item(),
            "loss/bootstrap_fraction": bootstrap_fraction(self.stage.loss, self.iteration),
            "optimizer/learning_rate": rate,
            "optimizer/backbone_learning_rate": rate * optimizer.backbone_rate,
            "optimizer/gradient_norm": grad_norm.item(),
            "optimizer/skipped_steps": self.skipped,
            "time/share_waiting_for_data": waiting,
            "memory/peak_gigabytes": peak_gigabytes(self.device),
        }
        if self.scaler.is_enabled():
            scalars["optimizer/loss_scale"] = self.scaler.get_scale()
        for name, value in scalars.items():
            board.add_scalar(name, value, self.iteration)

    def _provenance(self) -> dict[str, Any]:
        return versions() | {
            "stage": self.name,
            "iterations": self.iteration,
            "config": asdict(self.config),
        }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Settings that differ; datasets may have moved."""
    found = []
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if key == "root":
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {a} there, {b} here")
    return found
