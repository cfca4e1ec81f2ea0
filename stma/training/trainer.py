"""One stage of training, in one process or many, that can be killed at any moment and goes on."""

import gc
import logging
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from stma.data.dataset import ClipDataset, clip_batches
from stma.data.sampling import BatchNumbers
from stma.errors import InputError
from stma.model.factory import build_backbone, build_model
from stma.model.pretrained import load_pretrained
from stma.model.stma import STMA
from stma.model.weights import (
    check_fits,
    check_same_architecture,
    load_state,
    read_weights,
    save_weights,
)
from stma.runtime.device import autocast, peak_gigabytes, resolve_precision, uses_fp16
from stma.runtime.distributed import Processes
from stma.runtime.outputs import full_disks_told
from stma.runtime.provenance import versions
from stma.structures import ClipBatch, Prediction
from stma.training.averaging import build_average, update_average
from stma.training.board import Board, prediction_picture
from stma.training.checkpoint import rng_state, seed_generators, set_rng_state
from stma.training.config import TrainConfig
from stma.training.feed import Feed, Pace
from stma.training.leaving import EXIT_PREEMPTED, Leave, Preempted
from stma.training.losses import Losses, bootstrap_fraction, clip_loss
from stma.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from stma.training.settings import differences, fingerprint, stage_settings
from stma.training.stage_folder import COUNTS, StageFolder

log = logging.getLogger(__name__)

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
LOSS_SCALE = 2.0**14  # of fp16, at first

Validation = Callable[[STMA, Path], float]


class Trainer:
    """Trains one network on one stage's clips.

    Args:
        name: of the stage.
        validation: gives J&F of a model, given a folder to work in.
        leave: noted here that the run is asked to leave.

    Attributes:
        iteration: steps taken, skipped ones included.
        skipped: steps that were not taken, as their loss or gradient was not finite.
        overflows: steps that were not taken as the loss scale of fp16 was too large.
        finished: the stage is at its end, in this start or an earlier one.

    Raises:
        InputError: the data are at fault, the batch cannot be divided, or the mark of the end is
            damaged.
    """

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        device: torch.device,
        processes: Processes | None = None,
        validation: Validation | None = None,
        leave: Leave | None = None,
    ) -> None:
        self.config, self.stage, self.name = config, config.stages[name], name
        self.device = device
        self.processes = processes or Processes()
        self.validation = validation
        self.leave = leave or Leave()
        self.output = Path(config.output) / name
        self.folder = StageFolder(self.output, config.keep_checkpoints)
        self.weights_path, self.checkpoints = self.folder.weights, self.folder.checkpoints
        self.iteration = 0
        self.seconds = 0.0  # of all starts, at the end of the last step
        self.shown: float | None = None  # running average of the loss
        self.skipped = self.skipped_in_a_row = self.overflows = 0
        self.best: float | None = None  # J&F of the validation
        self.validated = self.saved = -1  # iterations of the last ones
        self.progress, self.must_leave = 0.0, False  # as agreed on by all processes
        self.weights: str | None = None  # fingerprint of those that the stage starts from
        self._since = time.monotonic()
        self.finished = config.resume and self.folder.finished_settings() is not None
        if not self.finished:
            self.numbers(0)  # refuses a batch that cannot be divided
            self.clips = ClipDataset(
                self.stage.data,
                length=self.stage.iterations * self.stage.batch_size,
                seed=config.seed,
            )

    @property
    def started(self) -> bool:
        """There is something to go on from."""
        return self.config.resume and (self.finished or bool(self.checkpoints.paths()))

    def check(self, weights: str | Path | None) -> None:
        """Compare what the stage would start or go on from with what it is told, without a change
        to anything.

        Args:
            weights: that the stage starts from; None also where they are not there yet.

        Raises:
            InputError: the output holds a stage with other settings, or from other weights; a file
                is faulty; the weights do not fit.
        """
        theirs = None
        if self.config.resume:
            theirs = self.folder.finished_settings() or self.folder.begun_settings()
        if theirs is not None:
            self._check_settings(theirs, weights)
        elif weights is not None:
            if weights == self.config.pretrained:
                load_pretrained(build_backbone(self.config.model), weights)
                return
            with torch.device("meta"):
                model = build_model(self.config.model)
            tensors = self._read_weights(weights)
            if self.config.strict_weights:
                check_fits(model, tensors, weights)

    def _read_weights(self, weights: str | Path) -> dict[str, Tensor]:
        theirs, _, tensors = read_weights(weights)
        if self.config.strict_weights:
            check_same_architecture(theirs, self.config.model, weights)
        return tensors

    def build(self, weights: str | Path | None) -> None:
        """The network and all that belongs to it.

        Args:
            weights: of the whole network, or the public backbone ``config.pretrained``.

        Raises:
            InputError: the weights do not fit.
        """
        self._build(weights)
        self._connect()

    def _build(self, weights: str | Path | None) -> None:
        """In this process alone."""
        config = self.config
        torch.manual_seed(config.seed)
        self.model = build_model(config.model)
        if weights is not None and weights == config.pretrained:
            load_pretrained(self.model.backbone, weights)
        elif weights is not None:
            tensors = self._read_weights(weights)
            load_state(self.model, tensors, weights, strict=config.strict_weights)
        self.model.to(self.device)
        self.model.checkpoint_blocks(config.checkpoint_blocks)
        self.optimizer = build_optimizer(self.model, self.stage.optimizer)
        self.scaler = torch.amp.GradScaler(
            self.device.type, LOSS_SCALE, enabled=uses_fp16(config.precision)
        )
        self.average: AveragedModel | None = None
        if config.ema > 0:
            self.average = build_average(self.model, config.ema)
        if config.compile:
            self.model.compile_parts()
        self.network: nn.Module = self.model
        # The weights are alike in all processes; what is drawn from here on is not.
        seed_generators(config.seed, self.processes.rank, 0)

    def _connect(self) -> None:
        """With the networks of the other processes."""
        if self.processes.world_size > 1:
            self.network = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,  # all processes compute the same ones
            )

    def release(self) -> None:
        """Give back the memory of the network and all that belongs to it; `build` makes it anew."""
        for name in ("network", "model", "optimizer", "scaler", "average"):
            self.__dict__.pop(name, None)
        gc.collect()  # compiled parts and their module hold one another
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

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
        processes = self.processes
        if self.finished:
            log.info("%s: finished already: %s", self.name, self.weights_path)
            return
        processes.together(lambda: self._start(weights))
        if len(places := set(processes.gather(self.iteration))) > 1:
            raise processes.common_error(
                f"output: the processes would go on after different iterations {sorted(places)}; "
                f"{self.output} has to be on a disk that all machines share"
            )
        self._connect()
        with self._board() as board, self._bar() as bar:
            self._loop(board, bar)
        processes.together(self._finish)
        skipped = f", {self.skipped} of them skipped" if self.skipped else ""
        log.info("%d iterations%s; weights: %s", self.iteration, skipped, self.weights_path)
        self.finished = True

    def _start(self, weights: str | Path | None) -> None:
        """From the newest checkpoint, or else from the weights."""
        if self.processes.is_main and not self.config.resume:
            self.folder.clear()
        state = self.checkpoints.load_newest() if self.config.resume else None
        self._build(weights if state is None else None)
        if state is not None:
            self.resume(state, weights)
        elif weights is not None:
            self.weights = fingerprint(weights)
        count = sum(p.numel() for p in self.model.parameters())
        precision = resolve_precision(self.device, self.config.precision)
        log.info("%s: %.2f M parameters, %s, %s", self.name, count / 1e6, self.device, precision)
        for line in self.clips.describe().splitlines():
            log.info("%s", line)
        if state is not None:
            log.info("goes on after iteration %d", self.iteration)

    def _finish(self) -> None:
        if self.processes.is_main:
            self.folder.finish(self._settings())

    def _loop(self, board: Board, bar: tqdm) -> None:
        with closing(self.batches()) as batches:
            self._train(Feed(batches, self.config.accumulate, self.device), board, bar)
        self.save()
        if self.validated != self.iteration:
            self.validate(board)
        bar.update(100 - bar.n)

    def _train(self, feed: Feed, board: Board, bar: tqdm) -> None:
        config, stage = self.config, self.stage
        pace = Pace(self.iteration)
        self._since = time.monotonic() - self.seconds
        self._agree(self._exchange(self.iteration))
        self._between_steps(board)
        while self.iteration < stage.iterations and self.progress < 1:
            progress = self.progress
            parts = feed.take()
            losses, prediction, grad_norm = self.step(parts, progress, feed.fetch)
            if self.iteration % config.log_every == 0:
                losses = self._mean(losses)
                speed, waiting = pace.look(self.iteration + 1, feed.waited)
                self._show(bar, losses.total.item(), speed)
                self._log_scalars(board, losses, grad_norm, progress, waiting)
            if board.is_open and self.iteration % config.picture_every == 0:
                picture = prediction_picture(parts[-1], prediction)
                board.picture("prediction", picture, self.iteration)
                with autocast(self.device, config.precision):
                    board.attention(self.model, parts[-1], self.iteration)
            del parts, losses, prediction  # or the next step would have to fit beside them
            self.iteration += 1
            self.seconds = time.monotonic() - self._since
            if self.iteration % config.save_every == 0:
                self.save()
            bar.update(100 * progress - bar.n)
            self._between_steps(board)

    def _between_steps(self, board: Board) -> None:
        if self.must_leave:
            self.save()
            log.warning(
                "told to leave: saved after iteration %d; the same command goes on from there "
                "(exit status %d)",
                self.iteration,
                EXIT_PREEMPTED,
            )
            raise Preempted
        due = self.iteration > 0 and self.iteration % self.config.validation.every == 0
        if due and self.validated != self.iteration:
            self.validate(board)

    def step(
        self,
        parts: list[ClipBatch],
        progress: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> tuple[Losses, Prediction, Tensor]:
        """One step of the optimiser on a batch in parts of equal size.

        A step whose loss or gradient is not finite, in any process, leaves the weights and all
        averages as they were.

        Args:
            meanwhile: called once the device has all its work, before the host waits for it.

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
            losses, prediction = self._differentiate(part, index, len(parts))
            all_losses.append(losses)
        losses = Losses.mean(all_losses)
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), stage.optimizer.clip_norm
        )
        bad = [~losses.total.isfinite(), ~grad_norm.isfinite()]
        exchange = self._exchange(self.iteration + 1, *bad)
        if meanwhile is not None:
            meanwhile()
        bad_loss, bad_gradient = self._agree(exchange)  # here the host waits for the device
        if bad_loss or bad_gradient:
            overflow = not bad_loss and self.scaler.is_enabled() and self.scaler.get_scale() > 1
            self.scaler.update()
            self.model.object_features.forget_observed()
            if overflow:  # the scale has grown too large, and is smaller now
                self.overflows += 1
            else:
                self._skip([each.total for each in all_losses], grad_norm, parts)
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.model.object_features.update_center(self.processes.sum)
            if self.average is not None:
                update_average(self.average, self.model, config.ema)
            self.skipped_in_a_row = 0
        return losses, prediction, grad_norm

    def _differentiate(self, part: ClipBatch, index: int, count: int) -> tuple[Losses, Prediction]:
        """Add the gradient of one part of several; nothing of its graph is kept."""
        with self._no_sync(index + 1 == count):
            with autocast(self.device, self.config.precision):
                prediction = self.network(part)
            losses = clip_loss(prediction, part, self.stage.loss, self.iteration)
            self.scaler.scale(losses.total / count).backward()
        return losses.detach(), Prediction(prediction.logits.detach())

    def _no_sync(self, last: bool) -> AbstractContextManager[object]:
        """Gradients are exchanged once, after the last part."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return nullcontext()

    def _exchange(self, iteration: int, *flags: Tensor) -> Tensor:
        """What all processes have to agree on before the next step, in one message: whether to
        leave, the progress, and flags of the step before."""
        progress = self._progress(time.monotonic() - self._since, iteration)
        values = [
            torch.full((), value, dtype=torch.float64, device=self.device)
            for value in (float(self.leave.asked), progress)
        ]
        return self.processes.maximum(torch.stack([*values, *(flag.double() for flag in flags)]))

    def _agree(self, exchange: Tensor) -> list[bool]:
        """Follow it; gives the flags that are set in any process."""
        leave, self.progress, *flags = exchange.tolist()
        self.must_leave = bool(leave)
        return [bool(flag) for flag in flags]

    def _skip(self, losses: list[Tensor], grad_norm: Tensor, parts: list[ClipBatch]) -> None:
        """Count and tell a step that is not finite, with the clips of the parts that are not."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        own = [(loss.item(), part.names) for loss, part in zip(losses, parts, strict=True)]
        everyone = [each for theirs in self.processes.gather(own) for each in theirs]
        faulty = [(loss, names) for loss, names in everyone if not math.isfinite(loss)]
        what = f"loss {faulty[0][0]}" if faulty else "loss finite in all processes"
        names = "; ".join(name for _, names in faulty or everyone for name in names)
        found = f"{what}, gradient norm {grad_norm.item()} at iteration {self.iteration} ({names})"
        log.warning("skipped: %s", found)
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise self.processes.common_error(
                f"{found}: {self.skipped_in_a_row} steps in a row were not finite; checkpoints and "
                "weights are as last saved. Lower the stage's optimizer.learning_rate or set "
                "precision=fp32"
            )

    def validate(self, board: Board) -> None:
        """Score the result so far on the validation set, and keep the best; saves first.

        Raises:
            InputError: the set, or the disk, is at fault.
        """
        if self.validation is None:
            return
        self.save()  # whatever comes, the steps so far are safe
        self.validated = self.iteration
        generators = self.processes.gather(rng_state(self.device))
        self.processes.together(lambda: self._validate(board, generators))

    def _validate(self, board: Board, generators: list[dict[str, Tensor]]) -> None:
        if not self.processes.is_main or self.validation is None:
            return
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # frames of other sizes are to find room
        self.result.eval()
        with full_disks_told(self.output):
            score = self.validation(self.result, self.output / "validation")
        log.info("iteration %d: validation J&F %.1f", self.iteration, score)
        board.scalars({"validation/jf": score}, self.iteration)
        if self.best is None or score > self.best:
            self.best = score
            self.checkpoints.save_best(self._state(generators))
            self._save_weights(self.folder.best_weights)

    def save(self) -> None:
        """Write a checkpoint and the weights, with all that tells where they come from, unless that
        is done.

        Raises:
            InputError: they cannot be written; names the last checkpoint that is whole.
        """
        if self.saved == self.iteration:
            return
        generators = self.processes.gather(rng_state(self.device))
        self.processes.together(lambda: self._save(generators))
        self.saved = self.iteration

    def _save(self, generators: list[dict[str, Tensor]]) -> None:
        if self.processes.is_main:
            self.checkpoints.save(self.iteration, self._state(generators))
            self._save_weights(self.weights_path)

    def _save_weights(self, path: Path) -> None:
        try:
            save_weights(path, self.result, self.config.model, self._provenance())
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error}); the checkpoint is whole. Make room and run "
                "the same command again"
            ) from error

    def _settings(self) -> dict[str, Any]:
        return stage_settings(self.config, self.name, self.weights)

    def _check_settings(self, theirs: Mapping[str, Any], weights: str | Path | None) -> None:
        """Whether a stage with these settings is this one. Weights that it started from may have
        gone since."""
        if weights is None:
            self.weights = None
        elif Path(weights).is_file():
            self.weights = fingerprint(weights)
        else:
            self.weights = theirs.get("weights")
        if found := differences(theirs, self._settings()):
            raise InputError(
                f"{self.output}: holds a run with other settings; give another output, or "
                "resume=false to start anew\n  " + "\n  ".join(found)
            )

    def _state(self, generators: list[dict[str, Tensor]]) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {name: getattr(self, name) for name in COUNTS} | {
            "settings": self._settings(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": generators,
        }

    def resume(self, state: dict[str, Any], weights: str | Path | None = None) -> None:
        """Go on where a checkpoint stopped; the data's position is the iteration.

        Args:
            weights: that the stage is told to start from.

        Raises:
            InputError: it comes from other settings, and names those that differ; or from another
                version of the network.
        """
        self._check_settings(state["settings"], weights)
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.checkpoints.folder}: the newest checkpoint does not fit this version of "
                f"the network ({error}); go on with the version that wrote it, or start anew with "
                "resume=false"
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        for name in COUNTS:
            setattr(self, name, state[name])
        generators = state["generators"]
        if len(generators) == self.processes.world_size:
            set_rng_state(generators[self.processes.rank], self.device)
        else:  # other processes than before
            seed_generators(self.config.seed, self.processes.rank, self.iteration)

    def _board(self) -> Board:
        return Board(
            self.output / "tensorboard" if self.processes.is_main else None, self.iteration
        )

    def _bar(self) -> tqdm:
        return tqdm(
            total=100,
            initial=100 * self._progress(self.seconds, self.iteration),  # not done in this start
            unit="%",
            desc=self.name,
            bar_format=BAR,
            mininterval=1,
            disable=not self.processes.is_main,
        )

    def _progress(self, seconds: float, iteration: int) -> float:
        done = iteration / self.stage.iterations
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

    def batches(self) -> Generator[ClipBatch, None, None]:
        """This process's clips from the iteration on, the parts of a batch one after another."""
        return clip_batches(
            self.clips,
            self.numbers(self.iteration),
            self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _mean(self, losses: Losses) -> Losses:
        """Over all processes."""
        values = torch.stack([losses.total, losses.cross_entropy, losses.dice])
        return Losses(*(self.processes.sum(values) / self.processes.world_size))

    def _show(self, bar: tqdm, loss: float, speed: float) -> None:
        if math.isfinite(loss):
            self.shown = loss if self.shown is None else 0.8 * self.shown + 0.2 * loss
        bar.set_postfix_str(
            f"iteration {self.iteration}, loss {self.shown or loss:.3f}, {speed:.1f} it/s"
        )

    def _log_scalars(
        self, board: Board, losses: Losses, grad_norm: Tensor, progress: float, waiting: float
    ) -> None:
        if not board.is_open:
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
            scalars["optimizer/overflows"] = self.overflows
        board.scalars(scalars, self.iteration)

    def _provenance(self) -> dict[str, Any]:
        return versions() | {
            "stage": self.name,
            "iterations": self.iteration,
            "config": asdict(self.config),
        }
