"""An exponential moving average of the network in training."""

from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stma.model.object_features import ObjectFeatures
from stma.model.stma import STMA


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
