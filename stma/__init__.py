"""STMA: Spatial-Temporal Multi-level Association for video object segmentation.

To segment your own video::

    from stma import Segmenter, load_model

    segmenter = Segmenter(load_model("small"))
    result = segmenter.step(frame, mask)   # (H, W, 3) uint8 RGB, (H, W) IDs
    result = segmenter.step(next_frame)    # result.mask: (H, W) uint8 IDs
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stma.errors import InputError
from stma.version import __version__

if TYPE_CHECKING:
    from stma.inference.segmenter import FrameResult, Segmenter, SegmenterConfig
    from stma.model.factory import ModelConfig, build_model
    from stma.model.stma import STMA
    from stma.model.weights import load_model, save_weights
    from stma.training.adapting import adapt

# Names that need torch, and their modules: imported on demand, so that the commands, which import
# this package first, start at once.
_MODULES = {
    "FrameResult": "stma.inference.segmenter",
    "ModelConfig": "stma.model.factory",
    "STMA": "stma.model.stma",
    "adapt": "stma.training.adapting",
    "Segmenter": "stma.inference.segmenter",
    "SegmenterConfig": "stma.inference.segmenter",
    "build_model": "stma.model.factory",
    "load_model": "stma.model.weights",
    "save_weights": "stma.model.weights",
}

__all__ = [
    "STMA",
    "FrameResult",
    "InputError",
    "ModelConfig",
    "Segmenter",
    "SegmenterConfig",
    "__version__",
    "adapt",
    "build_model",
    "load_model",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
