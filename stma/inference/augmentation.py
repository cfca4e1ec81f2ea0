"""Test-time augmentation: a clip at several scales, mirrored or not, averaged in one pass."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from stma.errors import InputError
from stma.inference.segmenter import FrameResult, Segmenter, SegmenterConfig, index_mask
from stma.model.stma import STMA
from stma.runtime.config import check_types


@dataclass
class AugmentConfig:
    """The views of a clip whose probabilities are averaged.

    Attributes:
        scales: of the network's frames.
        flip: each scale also mirrored.
    """

    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise InputError(f"scales is {self.scales}; give one or more, each once")

    @property
    def is_plain(self) -> bool:
        return self.scales == [1.0] and not self.flip


class AugmentedSegmenter:
    """Segments one video as :class:`Segmenter` does, in several views.

    Each view has its own memories and memorises its own predictions; the result is the mean of all
    views' probabilities at full size.

    Attributes:
        views: a segmenter for each; all have been given the same frames.
    """

    def __init__(self, model: STMA, config: SegmenterConfig, augment: AugmentConfig) -> None:
        flips = (False, True) if augment.flip else (False,)
        self._flipped = list(flips) * len(augment.scales)
        self.views = [
            Segmenter(model, replace(config, scale=config.scale * scale))
            for scale in augment.scales
            for _ in flips
        ]

    @torch.inference_mode()
    def step(
        self, frame: np.ndarray, mask: np.ndarray | None = None, *, last: bool = False
    ) -> FrameResult:
        """See :meth:`stma.inference.segmenter.Segmenter.step`."""
        total: torch.Tensor | None = None
        for segmenter, flipped in zip(self.views, self._flipped, strict=True):
            if flipped:
                mirrored = None if mask is None else mask[:, ::-1].copy()
                probabilities = segmenter.predict(frame[:, ::-1], mirrored, last=last).flip(-1)
            else:
                probabilities = segmenter.predict(frame, mask, last=last)
            ids = self.views[0].ids
            if segmenter.ids != ids:  # a corrected object may have entered anew in some views only
                rows = [0, *(1 + segmenter.ids.index(identity) for identity in ids)]
                probabilities = probabilities[rows]
            total = probabilities if total is None else total + probabilities
        assert total is not None
        mean = total / len(self.views)
        ids = list(self.views[0].ids)
        return FrameResult(index_mask(mean, ids), mean, ids)
