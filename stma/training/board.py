"""What TensorBoard shows of a run."""

import numpy as np
import torch

from stma.pictures import contact_sheet, draw_overlay
from stma.structures import ClipBatch, Prediction


def prediction_picture(clip: ClipBatch, prediction: Prediction) -> np.ndarray:
    """The first clip of a batch with its truth and, from frame 1 on, its prediction.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    frames = clip.frames[0].permute(0, 2, 3, 1).cpu().numpy()
    truth = clip.masks[0].cpu().numpy()
    predicted = prediction.logits[0].argmax(dim=1).to(torch.uint8).cpu().numpy()
    return contact_sheet(
        [
            ("truth", [draw_overlay(f, m) for f, m in zip(frames, truth, strict=True)]),
            (
                "frame 0, prediction",
                [
                    frames[0],
                    *(draw_overlay(f, m) for f, m in zip(frames[1:], predicted, strict=True)),
                ],
            ),
        ]
    )
