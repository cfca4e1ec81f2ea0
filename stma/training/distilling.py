"""A start for the backbone: it learns to predict the features of a network trained on ImageNet.

The paper's backbone starts from ImageNet. Where no such weights exist for a backbone, a small
public network can pass on what it learned there, on the pictures at hand, without labels (ours).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stma.errors import InputError
from stma.model.backbone import STRIDE
from stma.model.pretrained import read_public_checkpoint
from stma.model.stma import STMA
from stma.runtime.device import autocast
from stma.structures import ClipBatch
from stma.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    learning_rate,
    set_learning_rate,
)

STRIDES = (16, 32)  # of the teacher's features
CALIBRATION = 50  # batches from which the teacher's statistics are taken
LARGEST = 5.0  # standard deviations of a target
# Of batch norms: only training needs it, and some files lack it.
BATCH_COUNT = "num_batches_tracked"


class Teacher(nn.Module):
    """A network of timm with weights from a file, as targets for tokens at stride 16.

    Args:
        name: of a convolutional network in timm, such as ``tf_efficientnet_lite0``.
        weights: its state dict, ``.pth`` or safetensors. Names may be those of another
            implementation, if the tensors come in the same order.

    Raises:
        InputError: timm has no such network, or the file is not of it.
    """

    image_mean: Tensor
    image_std: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, name: str, weights: str | Path) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise InputError(f"timm {timm.__version__} has no network {name!r}")
        self.network = timm.create_model(name, features_only=True, pretrained=False)
        info: Any = self.network.feature_info
        reductions = info.reduction()
        if missing := set(STRIDES) - set(reductions):
            raise InputError(f"{name} has no features at stride {missing.pop()}")
        load_by_name_or_order(self.network, weights)
        self.network.eval().requires_grad_(False)
        self._places = [reductions.index(stride) for stride in STRIDES]
        self.dim = sum(info.channels(place) for place in self._places)
        data = timm.data.resolve_model_data_config(self.network)
        for buffer, value in (("image_mean", data["mean"]), ("image_std", data["std"])):
            self.register_buffer(buffer, torch.tensor(value).view(1, 3, 1, 1))
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("square", torch.zeros(self.dim))
        self.batches = 0

    def train(self, mode: bool = True) -> "Teacher":
        """It never trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Targets ``(B, L, dim)`` for images ``(B, 3, H, W)`` uint8, H and W multiples of 16: each
        channel in standard deviations, by the statistics of the first batches."""
        grid = [side // STRIDE for side in images.shape[-2:]]
        maps = self.network((images.float() / 255 - self.image_mean) / self.image_std)
        features = torch.cat(
            [
                F.interpolate(maps[place].float(), grid, mode="bilinear", align_corners=False)
                for place in self._places
            ],
            dim=1,
        )
        if self.batches < CALIBRATION:
            self.batches += 1
            self.mean += (features.mean((0, 2, 3)) - self.mean) / self.batches
            self.square += (features.square().mean((0, 2, 3)) - self.square) / self.batches
        std = (self.square - self.mean.square()).clamp_min(0).sqrt() + 1e-3
        return ((features.flatten(2).mT - self.mean) / std).clamp(-LARGEST, LARGEST)


def load_by_name_or_order(network: nn.Module, path: str | Path) -> None:
    """Load weights by name or, if no name is known, in the order of the file. What follows in the
    file, such as a classifier, is left out.

    Raises:
        InputError: the file cannot be read, or does not fit.
    """
    own, theirs = (
        {name: tensor for name, tensor in state.items() if not name.endswith(BATCH_COUNT)}
        for state in (network.state_dict(), read_public_checkpoint(path))
    )
    if not own.keys() & theirs.keys():
        theirs = dict(zip(own, theirs.values(), strict=False))
    for name, tensor in own.items():
        if name not in theirs or theirs[name].shape != tensor.shape:
            raise InputError(
                f"{path}: not of this network ({name} is missing or has another shape)"
            )
    network.load_state_dict({name: theirs[name] for name in own}, strict=False)


def frame_tokens(model: STMA, images: Tensor) -> Tensor:
    """``F_t (B, L, C)`` of images ``(B, 3, H, W)`` uint8, without references and objects."""
    frame = model.embed(model.normalize(images))
    tokens = model.streams.encode(model.backbone.last_stage, frame.tokens, None)
    return model.backbone.finish(tokens)


def distill(
    model: STMA,
    teacher: Teacher,
    batches: Iterable[ClipBatch],
    iterations: int,
    config: OptimizerConfig,
    precision: str = "fp32",
    each: Callable[[int, float], None] = lambda iteration, loss: None,
) -> float:
    """Train the backbone to predict the teacher's features of every frame; masks are not used.

    Args:
        batches: at least ``iterations``.
        each: told the iteration and the loss after every step.

    Returns:
        The mean loss of the last tenth: smooth L1, in the teacher's standard deviations.
    """
    device = next(model.parameters()).device
    dim = model.backbone.dim
    head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, teacher.dim))
    student = nn.ModuleDict({"backbone": model.backbone, "head": head.to(device)})
    optimizer = build_optimizer(student, config)
    model.train()
    last: list[float] = []
    for iteration, clip in zip(range(iterations), batches, strict=False):
        images = clip.frames.to(device).flatten(0, 1)
        set_learning_rate(optimizer, learning_rate(config, iteration / iterations))
        with autocast(device, precision):
            target = teacher(images)
            prediction = student["head"](frame_tokens(model, images))
        loss = F.smooth_l1_loss(prediction.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
        optimizer.step()
        last.append(loss.item())
        each(iteration, last[-1])
    recent = last[-max(1, iterations // 10) :]
    return sum(recent) / len(recent)
