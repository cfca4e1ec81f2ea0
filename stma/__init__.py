"""STMA: Spatial-Temporal Multi-level Association for video object segmentation.

Segmenting a video of your own::

    from stma import Segmenter, load_model

    segmenter = Segmenter(load_model("weights.safetensors"))
    result = segmenter.step(frame, mask)   # (H, W, 3) uint8 RGB, (H, W) IDs
    result = segmenter.step(next_frame)    # result.mask: (H, W) uint8 IDs
"""

from stma.errors import InputError
from stma.inference.segmenter import FrameResult, Segmenter, SegmenterConfig
from stma.model.factory import ModelConfig, build_model
from stma.model.stma import STMA
from stma.model.weights import load_model, save_weights
from stma.version import __version__

__all__ = [
    "STMA",
    "FrameResult",
    "InputError",
    "ModelConfig",
    "Segmenter",
    "SegmenterConfig",
    "__version__",
    "build_model",
    "load_model",
    "save_weights",
]
