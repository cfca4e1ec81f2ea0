"""The network in training, its average and random generators, and one optimiser step."""

import gc
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stma.model.factory import build_model
from stma.model.object_features import ObjectFeatures
from stma.model.pretrained import load_pretrained
from stma.model.stma import STMA
from stma.model.weights import check_same_architecture, load_state, read_weights
from stma.runtime.device import autocast, uses_fp16
from stma.runtime.distributed import Processes
from stma.structures import ClipBatch, Prediction
from stma.training.config import StageConfig, TrainConfig
from stma.training.distilling import Distillation
from stma.training.losses import Losses, clip_loss
from stma.training.optimizer import build_optimizer, learning_rate, set_learning_rate

log = logging.getLogger(__name__)

LOSS_SCALE = 2.0**14  # of fp16, at first
COUNTS = ("skipped", "skipped_in_a_row", "overflows")
STATE = (*COUNTS, "model", "head", "average", "optimizer", "scaler")


@dataclass
class Step:
    """The result of one step.

    Attributes:
        losses: of this process's share.
        prediction: for the last part; None in a stage that learns from a teacher.
        grad_norm: before clipping.
        notes: the largest of each note over all processes.
    """

    losses: Losses
    prediction: Prediction | None
    grad_norm: Tensor
    notes: list[float]


class Learner:
    """Takes optimiser steps.

    Args:
        weights: to start from: of the full network, or the public backbone ``config.pretrained``.

    Attributes:
        skipped: steps not taken because their loss or gradient was not finite.
        overflows: steps not taken because the loss scale of fp16 was too large.

    Raises:
        InputError: the weights do not fit.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        device: torch.device,
        processes: Processes | None = None,
        weights: str | Path | None = None,
    ) -> None:
        self.config, self.stage, self.device = config, stage, device
        self.processes = processes or Processes()
        self.skipped = self.skipped_in_a_row = self.overflows = 0
        torch.manual_seed(config.seed)
        self.model = build_model(config.model)
        if weights is not None and weights == config.pretrained:
            load_pretrained(self.model.backbone, weights)
        elif weights is not None:
            tensors = read_own_weights(config, weights)
            load_state(self.model, tensors, weights, strict=config.strict_weights)
        self.model.segmenter_settings = dict(config.segmenter)  # saved with the trained weights
        self.model.to(device)
        self.model.checkpoint_blocks(config.checkpoint_blocks)
        self.network: nn.Module = self.model  # what is trained, and gives predictions or a loss
        if stage.teacher is not None:
            self.network = Distillation(self.model, stage.teacher).to(device)
        self.trained = self.network  # before other processes are connected
        self.optimizer = build_optimizer(self.network, stage.optimizer)
        self.scaler = torch.amp.GradScaler(
            device.type, LOSS_SCALE, enabled=uses_fp16(config.precision)
        )
        self.average: AveragedModel | None = None
        if config.ema > 0:
            self.average = build_average(self.model, config.ema)
        if config.compile:
            self.model.compile_parts()
        # The weights are the same in all processes; what is drawn from here on is not.
        seed_generators(config.seed, self.processes.rank, 0)

    def connect(self) -> None:
        """Synchronise with the networks of the other processes."""
        if self.processes.world_size > 1:
            # All processes compute the same buffers, so none are sent.
            sending = "forward_sync_buffers"
            if sending not in inspect.signature(DistributedDataParallel).parameters:
                sending = "broadcast_buffers"  # its name before torch 2.15
            options: dict[str, Any] = {sending: False}
            self.network = DistributedDataParallel(
                self.trained,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **options,
            )

    @property
    def head(self) -> nn.Module | None:
        """Of a stage that learns from a teacher."""
        return self.trained.head if isinstance(self.trained, Distillation) else None

    @property
    def result(self) -> STMA:
        """The network that is saved and validated: the average, if there is one."""
        return self.model if self.average is None else cast(STMA, self.average.module)

    def state(self) -> dict[str, Any]:
        """Everything the next steps depend on, except the random number generators."""
        return {name: getattr(self, name) for name in COUNTS} | {
            "model": self.model.state_dict(),
            "head": self.head.state_dict() if self.head is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            RuntimeError, ValueError: it comes from another version of the network.
        """
        self.model.load_state_dict(state["model"])
        if self.head is not None:
            self.head.load_state_dict(state["head"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name in COUNTS:
            setattr(self, name, state[name])

    def step(
        self,
        parts: Sequence[ClipBatch],
        iteration: int,
        progress: float,
        notes: Callable[[], list[float]] = list,
        meanwhile: Callable[[], None] | None = None,
    ) -> Step:
        """One optimiser step on a batch in parts of equal size.

        A step whose loss or gradient is not finite in any process leaves the weights and all
        averages as they were.

        Args:
            progress: of the stage, 0 to 1, which the learning rate follows.
            notes: called late; all processes receive the largest of each of its values, in the one
                message that they exchange anyway.
            meanwhile: called once the device has all its work, before the host waits for it.

        Raises:
            InputError: it was the last of ``max_skipped`` such steps in a row.
        """
        config, stage = self.config, self.stage
        self.network.train()
        set_learning_rate(self.optimizer, learning_rate(stage.optimizer, progress))
        self.optimizer.zero_grad(set_to_none=True)
        all_losses = []
        for index, part in enumerate(parts):
            losses, prediction = self._differentiate(part, iteration, index, len(parts))
            all_losses.append(losses)
        losses = Losses.mean(all_losses)
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.trained.parameters(), stage.optimizer.clip_norm
        )
        bad = [~losses.total.isfinite(), ~grad_norm.isfinite()]
        exchange = self._exchange(bad, notes())
        if meanwhile is not None:
            meanwhile()
        bad_loss, bad_gradient, *agreed = exchange.tolist()  # here the host waits for the device
        if bad_loss or bad_gradient:
            overflow = not bad_loss and self.scaler.is_enabled() and self.scaler.get_scale() > 1
            self.scaler.update()
            self.model.object_features.forget_observed()
            if overflow:  # the scale was too large and has been reduced
                self.overflows += 1
            else:
                self._skip(iteration, [each.total for each in all_losses], grad_norm, parts)
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.model.object_features.update_center(self.processes.sum)
            if self.average is not None:
                update_average(self.average, self.model, config.ema)
            self.skipped_in_a_row = 0
        return Step(losses, prediction, grad_norm, agreed)

    def _differentiate(
        self, part: ClipBatch, iteration: int, index: int, count: int
    ) -> tuple[Losses, Prediction | None]:
        """Add the gradient of one of several parts, keeping nothing of its graph."""
        with self._no_sync(index + 1 == count):
            with autocast(self.device, self.config.precision):
                result = self.network(part)
            if isinstance(result, Prediction):
                losses = clip_loss(result, part, self.stage.loss, iteration)
            else:
                losses = Losses(result, {"distillation": result})
            self.scaler.scale(losses.total / count).backward()
        if isinstance(result, Prediction):
            return losses.detach(), Prediction(result.logits.detach())
        return losses.detach(), None

    def _no_sync(self, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients only once, after the last part."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return nullcontext()

    def _exchange(self, flags: list[Tensor], notes: list[float]) -> Tensor:
        """The largest of each value over all processes."""
        values = [torch.full((), note, dtype=torch.float64, device=self.device) for note in notes]
        return self.processes.maximum(torch.stack([*(flag.double() for flag in flags), *values]))

    def _skip(
        self,
        iteration: int,
        losses: list[Tensor],
        grad_norm: Tensor,
        parts: Sequence[ClipBatch],
    ) -> None:
        """Count and report a step that is not finite, with the clips of the parts concerned."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        own = [(loss.item(), part.names) for loss, part in zip(losses, parts, strict=True)]
        everyone = [each for theirs in self.processes.gather(own) for each in theirs]
        faulty = [(loss, names) for loss, names in everyone if not math.isfinite(loss)]
        what = f"loss {faulty[0][0]}" if faulty else "loss finite in all processes"
        names = "; ".join(name for _, names in faulty or everyone for name in names)
        found = f"{what}, gradient norm {grad_norm.item()} at iteration {iteration} ({names})"
        log.warning("skipped: %s", found)
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise self.processes.common_error(
                f"{found}: {self.skipped_in_a_row} steps in a row were not finite; checkpoints and "
                "weights are as last saved. Lower the stage's optimizer.learning_rate or set "
                "precision=fp32"
            )


def read_own_weights(config: TrainConfig, weights: str | Path) -> dict[str, Tensor]:
    """The tensors of a file; if the weights must fit, of the same architecture.

    Raises:
        InputError: the file is faulty, or of another architecture.
    """
    theirs, _, tensors = read_weights(weights)
    if config.strict_weights:
        check_same_architecture(theirs, config.model, weights)
    return tensors


def release_memory(device: torch.device) -> None:
    """Free the memory of a learner that is no longer referenced."""
    gc.collect()  # compiled parts and their module refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()


def build_average(model: STMA, decay: float) -> AveragedModel:
    """Holds a copy of the network, whose parameters follow it."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


@torch.no_grad()
def update_average(average: AveragedModel, model: STMA, decay: float) -> None:
    """Call after each optimiser step; the first copies the weights.

    At step ``n`` (from 0) the decay is at most ``n / (n + 9)``, as in TensorFlow's
    ExponentialMovingAverage but for the first: the average of a short stage, too, is of its end.
    With 0.998 alone, 400 steps would keep almost half of the weights that they began with.

    The running mean over objects is averaged like the weights it comes from. The other buffers are
    constants or counters. (`AveragedModel.update_parameters` would make the host wait for the
    device, to which it copies its counter.)
    """
    theirs = cast(STMA, average.module)
    followed = [(list[Tensor](theirs.parameters()), list[Tensor](model.parameters()))]
    if isinstance(theirs.object_features, ObjectFeatures):
        assert isinstance(model.object_features, ObjectFeatures)
        followed.append(([theirs.object_features.center], [model.object_features.center]))
    step = int(average.n_averaged)  # which is on the host
    follow = get_ema_multi_avg_fn(min(decay, step / (step + 9)))
    for averages, values in followed:
        follow(averages, values, None)
    for (name, buffer), value in zip(theirs.named_buffers(), model.buffers(), strict=True):
        if name != "object_features.center":
            buffer.copy_(value)
    average.n_averaged += 1


def seed_generators(seed: int, rank: int, iteration: int) -> None:
    """Seed torch, in this process: every process draws different numbers."""
    words = np.random.SeedSequence((seed, rank, iteration)).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that training on a device draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
