"""The paper's loss: half bootstrapped cross entropy, half Dice."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stma.errors import InputError
from stma.model.backbone import STRIDE, pad_to_stride
from stma.runtime.config import check_types
from stma.structures import ClipBatch, Prediction


@dataclass
class LossConfig:
    """Weights, and the bootstrapping schedule (XMem's; the paper gives no numbers).

    Attributes:
        cross_entropy, dice: weights; 0.5 each in the paper.
        objects: weight of an auxiliary loss (ours): at stride 16, each object token must tell its
            object's cells from all others by its product with ``F_t``.
        bootstrap_start: iteration from which the easiest pixels are left out.
        bootstrap_end: iteration from which only the hardest ``bootstrap_share`` is left.
    """

    cross_entropy: float = 0.5
    dice: float = 0.5
    objects: float = 0.0
    bootstrap_start: int = 20_000
    bootstrap_end: int = 70_000
    bootstrap_share: float = 0.15

    def __post_init__(self) -> None:
        check_types(self, "loss.")
        for name in ("cross_entropy", "dice", "objects"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"loss.{name} is {getattr(self, name)}; give a weight, 0 or more")
        if self.cross_entropy == self.dice == 0:
            raise InputError("loss.cross_entropy and loss.dice are both 0; give one some weight")
        if self.bootstrap_start < 0:
            raise InputError(f"loss.bootstrap_start is {self.bootstrap_start}; give 0 or more")
        if not 0 < self.bootstrap_share <= 1:
            raise InputError(f"loss.bootstrap_share is {self.bootstrap_share}; give 0 < share <= 1")
        if self.bootstrap_end < self.bootstrap_start:
            raise InputError(
                f"loss.bootstrap_end ({self.bootstrap_end}) is before "
                f"loss.bootstrap_start ({self.bootstrap_start})"
            )


@dataclass(frozen=True)
class Losses:
    """Scalars.

    Attributes:
        total: is minimised.
        terms: what it is made of, by name, before they are weighted.
    """

    total: Tensor
    terms: dict[str, Tensor]

    @property
    def values(self) -> Tensor:
        """All of them, in one vector."""
        return torch.stack([self.total, *self.terms.values()])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Losses":
        """``function`` of :attr:`values`."""
        total, *terms = function(self.values)
        return Losses(total, dict(zip(self.terms, terms, strict=True)))

    def detach(self) -> "Losses":
        return self.map(Tensor.detach)

    @staticmethod
    def mean(parts: Sequence["Losses"]) -> "Losses":
        """The mean over the parts of a batch, which have equal size."""
        mean = torch.stack([part.values for part in parts]).mean(dim=0)
        return parts[0].map(lambda _: mean)


def bootstrap_fraction(config: LossConfig, iteration: int) -> float:
    """The share of hardest pixels over which the cross entropy is averaged."""
    if iteration < config.bootstrap_start:
        return 1.0
    if iteration >= config.bootstrap_end:
        return config.bootstrap_share
    span = config.bootstrap_end - config.bootstrap_start
    progress = (iteration - config.bootstrap_start) / span
    return 1.0 - progress * (1.0 - config.bootstrap_share)


def bootstrapped_cross_entropy(logits: Tensor, target: Tensor, fraction: float) -> Tensor:
    """Mean over images of the mean over each image's ``fraction`` of hardest pixels.

    Args:
        logits: ``(B, N+1, H, W)``.
        target: ``(B, H, W)`` int64.
    """
    loss = F.cross_entropy(logits, target, reduction="none").flatten(1)
    if fraction < 1:
        loss = loss.topk(max(1, int(loss.shape[1] * fraction)), dim=1, sorted=False).values
    return loss.mean()


def dice_loss(probabilities: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """``1 - (2 |p m| + 1) / (|p| + |m| + 1)``, mean over the valid objects of each image, then over
    images, like the cross entropy: so a batch's loss is the mean over its parts.

    Args:
        probabilities, masks: ``(B, N, H, W)``.
        valid: ``(B, N)`` bool.
    """
    probabilities, masks = probabilities.flatten(2), masks.flatten(2)
    overlap = (probabilities * masks).sum(2)
    loss = 1 - (2 * overlap + 1) / (probabilities.sum(2) + masks.sum(2) + 1)
    return ((loss * valid).sum(1) / valid.sum(1)).mean()


def object_loss(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Binary cross entropy with the share of each cell that an object covers, mean over the valid
    objects of each image, then over images.

    Args:
        logits: ``(B, N, h, w)``.
        masks: ``(B, N, H, W)``; padding belongs to no object.
        valid: ``(B, N)`` bool.
    """
    cover = F.avg_pool2d(pad_to_stride(masks.to(logits.dtype)), STRIDE)
    loss = F.binary_cross_entropy_with_logits(logits, cover, reduction="none").mean((2, 3))
    return ((loss * valid).sum(1) / valid.sum(1)).mean()


def clip_loss(
    prediction: Prediction, clip: ClipBatch, config: LossConfig, iteration: int
) -> Losses:
    """The loss of a batch of clips, averaged over frames ``1..T-1``."""
    num_objects = clip.valid_objects.shape[1]
    logits = prediction.logits.flatten(0, 1)
    target = clip.masks[:, 1:].flatten(0, 1).long()
    cross_entropy = bootstrapped_cross_entropy(
        logits, target, bootstrap_fraction(config, iteration)
    )
    masks = F.one_hot(target, num_objects + 1)[..., 1:].permute(0, 3, 1, 2)
    valid = clip.valid_objects.repeat_interleave(clip.masks.shape[1] - 1, dim=0)
    dice = dice_loss(logits.softmax(1)[:, 1:], masks, valid)
    terms = {"cross_entropy": cross_entropy, "dice": dice}
    if config.objects > 0:
        assert prediction.object_logits is not None, "the model has no object tokens"
        terms["objects"] = object_loss(prediction.object_logits.flatten(0, 1), masks, valid)
    total = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
    return Losses(total, terms)
