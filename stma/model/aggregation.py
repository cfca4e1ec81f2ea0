"""Soft aggregation: independent object logits to one distribution per pixel (STM)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-7
LARGEST_LOGIT = math.log((1 - EPSILON) / EPSILON)


def soft_aggregate(logits: Tensor, valid_objects: Tensor | None = None) -> Tensor:
    """Join object probabilities ``p_i`` with a background of ``prod(1 - p_i)``.

    The result holds the logits of all probabilities, clamped to ``[1e-7, 1 - 1e-7]``. It is
    computed from logits: when ``p`` is close to 1, ``1 - p`` has no digits left in fp32.

    Args:
        logits: ``(B, N, H, W)``, each object on its own.
        valid_objects: ``(B, N)`` bool; the others take no part.

    Returns:
        ``(B, N+1, H, W)``, background first; the softmax is the joint distribution. Objects that
        take no part hold ``-inf``.
    """
    logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    if valid_objects is not None:
        logits = logits.masked_fill(~valid_objects[:, :, None, None], float("-inf"))
    # -log of the background's probability: the sum of -log(1 - p_i).
    surprise = F.softplus(logits).sum(dim=1, keepdim=True).clamp(min=EPSILON)
    background = -surprise - torch.log(-torch.expm1(-surprise))
    return torch.cat([background.clamp(min=-LARGEST_LOGIT), logits], dim=1)
