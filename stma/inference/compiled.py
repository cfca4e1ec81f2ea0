"""A frame of a video as one graph, for ``torch.compile``."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from stma.memory.video import VideoMemory
from stma.model.backbone import FrameEmbedding
from stma.model.stma import STMA, prepare_compiler

BACKEND: str | Callable = "inductor"
MAX_GRAPHS = 1000  # each size of frames and each set of objects has its own
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def segment_frame(
    model: STMA, image: Tensor, memory: VideoMemory
) -> tuple[FrameEmbedding, Tensor, Tensor]:
    """All that the network does for a frame that is not memorised.

    Args:
        image: ``(1, 3, H, W)``, normalised.
        memory: prepared, with all slots.

    Returns:
        The embedding, features ``(1, L, C)``, probabilities ``(1, N+1, H, W)``.
    """
    embedding = model.embed(image)
    segmentation = model.segment(embedding, memory)
    return embedding, segmentation.features, segmentation.probabilities


@lru_cache
def compiled(backend: str | Callable, mode: str) -> Callable:
    """`segment_frame`, compiled once for all videos; each new shape is a graph of its own."""
    prepare_compiler(MAX_GRAPHS)
    return torch.compile(segment_frame, backend=backend, mode=mode, fullgraph=True, dynamic=False)
