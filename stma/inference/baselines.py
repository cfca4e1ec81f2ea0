"""Two baselines that need no training: copying the given masks, and carrying them along flow."""

import numpy as np
import torch
from torch import Tensor

from stma.errors import InputError
from stma.inference.segmenter import FrameResult, check_step, index_mask, merge_given
from stma.runtime.opencv import cv2

MIN_FLOW_SIZE = 12


class CopyFirstMask:
    """Every object stays where its mask was given."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._probabilities: Tensor | None = None  # (N+1, H, W)

    def step(
        self, frame: np.ndarray, mask: np.ndarray | None = None, *, last: bool = False
    ) -> FrameResult:
        """See :meth:`stma.inference.segmenter.Segmenter.step`."""
        known = self._probabilities
        check_step(frame, mask, None if known is None else (known.shape[1], known.shape[2]))
        probabilities = self._carry(frame)
        if mask is not None:
            self.ids += [int(i) for i in np.unique(mask) if i != 0 and i not in self.ids]
            given = torch.from_numpy(mask.astype(np.int64))
            probabilities = merge_given(probabilities, given, self.ids)
        self._probabilities = probabilities
        return FrameResult(index_mask(probabilities, self.ids), probabilities, list(self.ids))

    def _carry(self, frame: np.ndarray) -> Tensor:
        """The previous frame's probabilities, carried to this one."""
        if self._probabilities is None:
            return torch.ones(1, *frame.shape[:2])
        return self._probabilities


class FlowWarp(CopyFirstMask):
    """Carries probabilities along dense optical flow (OpenCV's DIS, medium preset)."""

    def __init__(self) -> None:
        super().__init__()
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._previous: np.ndarray | None = None

    def _carry(self, frame: np.ndarray) -> Tensor:
        if min(frame.shape[:2]) < MIN_FLOW_SIZE:
            raise InputError(
                f"the frame is {frame.shape[1]} x {frame.shape[0]}; DIS flow needs "
                f"{MIN_FLOW_SIZE} pixels on each side"
            )
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        previous, self._previous = self._previous, grey
        probabilities = super()._carry(frame)
        if previous is None:
            return probabilities
        # To each pixel's previous place. The stubs want an array to write into; None makes one.
        flow = self._flow.calc(grey, previous, None)  # type: ignore[call-overload]
        rows, columns = np.mgrid[0 : grey.shape[0], 0 : grey.shape[1]].astype(np.float32)
        warped = [
            cv2.remap(
                plane,
                columns + flow[..., 0],
                rows + flow[..., 1],
                interpolation=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for plane in probabilities.numpy()
        ]
        return torch.from_numpy(np.stack(warped))
