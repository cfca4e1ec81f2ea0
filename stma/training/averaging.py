"""An exponential moving average of the network in training."""

from typing import cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stma.model.object_features import ObjectFeatures
from stma.model.stma import STMA


def build_average(model: STMA, decay: float) -> AveragedModel:
    """Holds a copy of the network, whose parameters follow it."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


@torch.no_grad()
def update_average(average: AveragedModel, model: STMA, decay: float) -> None:
    """After a step of the optimiser; the first one is copied.

    The running mean over objects is averaged as the weights are that it comes from. The other
    buffers do not change, or count.
    """
    theirs, ours = cast(STMA, average.module).object_features, model.object_features
    before = None
    if isinstance(theirs, ObjectFeatures) and int(average.n_averaged) > 0:
        before = theirs.center.clone()
    average.update_parameters(model)  # copies all buffers
    if before is not None:
        assert isinstance(theirs, ObjectFeatures)
        assert isinstance(ours, ObjectFeatures)
        theirs.center.copy_(before.lerp(ours.center, 1 - decay))
