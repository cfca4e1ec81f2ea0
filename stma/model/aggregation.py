"""Soft aggregation: independent object logits to one distribution per pixel (STM)."""

import torch
from torch import Tensor

EPSILON = 1e-7


def soft_aggregate(probabilities: Tensor, valid_objects: Tensor | None = None) -> Tensor:
    """Join object probabilities with a background of ``prod(1 - p_i)``.

    Args:
        probabilities: ``(B, N, H, W)``, each object on its own.
        valid_objects: ``(B, N)`` bool; the others take no part.

    Returns:
        Logits ``(B, N+1, H, W)`` of the clamped probabilities, background first; their softmax is
        the joint distribution. Objects that take no part hold ``-inf``.
    """
    if valid_objects is not None:
        invalid = ~valid_objects[:, :, None, None]
        probabilities = probabilities.masked_fill(invalid, 0.0)
    background = (1 - probabilities).prod(dim=1, keepdim=True)
    joined = torch.cat([background, probabilities], dim=1).clamp(EPSILON, 1 - EPSILON)
    logits = joined.logit()
    if valid_objects is not None:
        object_logits = logits[:, 1:].masked_fill(invalid, float("-inf"))
        logits = torch.cat([logits[:, :1], object_logits], dim=1)
    return logits
