"""AdamW as in the paper, and the learning rate over a stage."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stma.errors import InputError
from stma.runtime.config import check_types

SCHEDULES = ("step", "cosine")


@dataclass
class OptimizerConfig:
    """AdamW and its schedule; progress is the finished share of the stage, 0 to 1.

    Attributes:
        learning_rate: 3e-5 in the paper.
        backbone_rate: factor on the learning rate of the parts of the backbone that pretrained
            weights fill; 1 in the paper.
        weight_decay: 0.05 in the paper; not on norms, biases and position embeddings.
        betas: of AdamW.
        clip_norm: gradients are scaled down to this norm (ours).
        schedule: ``step`` multiplies by `decay_factor` at each of `decay_at`; ``cosine`` falls
            to 0.
        decay_at: progress, increasing; 0.625 (100k of 160k iterations) in the paper's last stage.
        warmup: progress over which the rate rises linearly from 0.
    """

    learning_rate: float = 3e-5
    backbone_rate: float = 1.0
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip_norm: float = 1.0
    schedule: str = "step"
    decay_at: list[float] = field(default_factory=list)
    decay_factor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_types(self, "optimizer.")
        if self.schedule not in SCHEDULES:
            raise InputError(f"optimizer.schedule is {self.schedule!r}; choose one of {SCHEDULES}")
        for name in ("learning_rate", "backbone_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"optimizer.{name} is {getattr(self, name)}; give more than 0")
        if not 0 <= self.weight_decay < 1:
            raise InputError(f"optimizer.weight_decay is {self.weight_decay}; give 0 <= decay < 1")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup is {self.warmup}; give 0 <= warmup < 1")
        if sorted(self.decay_at) != self.decay_at or not all(0 < at < 1 for at in self.decay_at):
            raise InputError(
                f"optimizer.decay_at is {self.decay_at}; give shares of the stage, not iterations: "
                "increasing numbers between 0 and 1"
            )
        if not 0 < self.decay_factor <= 1:
            raise InputError(f"optimizer.decay_factor is {self.decay_factor}; give 0 < factor <= 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas is {self.betas}; give 2 numbers, 0 <= beta < 1")


def learning_rate(config: OptimizerConfig, progress: float) -> float:
    """The learning rate at a share ``progress`` of the stage."""
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    else:
        rate *= config.decay_factor ** sum(progress >= at for at in config.decay_at)
    if config.warmup > 0:
        rate *= min(1.0, progress / config.warmup)
    return rate


def parameter_groups(
    model: nn.Module, weight_decay: float, backbone_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Matrices and filters decay; norms, biases, the position vector and a class token do not.
    ``rate`` is the factor on the learning rate of each group, the pretrained parts' or 1."""
    added = tuple(f"backbone.{prefix}" for prefix in getattr(model.backbone, "added", ()))
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pretrained = name.startswith("backbone.") and not name.startswith(added)
            rate = backbone_rate if pretrained else 1.0
            spared = parameter.ndim == 1 or name.endswith("cls_token")
            decay = 0.0 if spared else weight_decay
            group = groups.setdefault(
                (rate, decay), {"params": [], "weight_decay": decay, "rate": rate}
            )
            group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    beta1, beta2 = config.betas
    groups = parameter_groups(model, config.weight_decay, config.backbone_rate)
    on_gpu = all(parameter.is_cuda for parameter in model.parameters())
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(beta1, beta2), fused=True if on_gpu else None
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, by its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
