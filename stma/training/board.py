"""What TensorBoard and the log show of a run."""

import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stma import __version__
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


def peak_gigabytes(device: torch.device) -> float:
    """Of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def versions() -> dict[str, Any]:
    """What the run was made with."""
    return {
        "stma": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "git": _git_revision(),
        "command": sys.argv,
    }


def _git_revision() -> str | None:
    """The commit of the code, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
