"""How much memory a video needs, from the configuration alone."""

from dataclasses import replace

import numpy as np
import torch

from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.factory import ModelConfig, build_model
from stma.runtime.footprint import on_paper, precision_on_paper, put_on

MAX_UPDATES = 64  # after which memories without a limit are measured


def video_bytes(
    model_config: ModelConfig,
    config: SegmenterConfig,
    height: int,
    width: int,
    objects: int,
    device: torch.device,
) -> int:
    """The peak memory on the device in a frame, once both memories are full.

    Args:
        objects: given with the first frame.
        device: need not exist here.
    """
    precision = precision_on_paper(device, config.precision)
    with torch.device("meta"):
        model = build_model(model_config).eval()
    frame = np.zeros((height, width, 3), np.uint8)
    mask = np.resize(np.arange(objects + 1, dtype=np.uint8), (height, width))
    with on_paper(device) as footprint:
        put_on(model, device)
        # Nothing is compiled on paper.
        settings = replace(config, precision=precision, memory_interval=1, compile=None)
        segmenter = Segmenter(model, settings)
        segmenter.predict(frame, mask)
        memory = segmenter.memory
        held = (-1, -1)
        for _ in range(MAX_UPDATES):  # the last one evicts
            if held == (held := (len(memory.temporal), len(memory.spatial))):  # both are full
                break
            segmenter.predict(frame)
    return footprint.peak
