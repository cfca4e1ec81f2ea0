"""What a frame costs, by torch's own counter on the meta device (a multiply-add is two)."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from stma.memory.spatial import SpatialMemory
from stma.memory.video import VideoMemory
from stma.model.factory import ModelConfig, build_model


def count_cost(
    config: ModelConfig, height: int, width: int, objects: int, memory_frames: int = 5
) -> tuple[int, dict[str, float]]:
    """Parameters, and GFLOPs of each part of a frame and of a memory update.

    Returns:
        The number of parameters, and GFLOPs by part: ``frame`` with cached references,
        ``recomputed`` without the cache, ``update`` what a memory update adds to ``frame``.
    """
    memory = VideoMemory(spatial=SpatialMemory(queue_size=1))

    def gigaflops(function: Callable[[], object], part: str = "Global") -> float:
        with FlopCounterMode(display=False) as counter:
            function()
        return sum(counter.get_flop_counts().get(part, {}).values()) / 1e9

    with torch.device("meta"), torch.no_grad():
        model = build_model(config).eval()
        image = torch.zeros(1, 3, height, width)
        masks = torch.zeros(1, objects, height, width)
        frame = model.embed(image)
        features = model.encode(frame, memory)
        for index in range(memory_frames):
            model.memorize(image, frame, features, masks, memory, pinned=index == 0)
        memory.prepared = model.prepare(memory, frame.grid)

        def segment() -> object:
            return model.segment(frame, memory)

        parts = {
            "embed": gigaflops(lambda: model.embed(image)),
            "references": gigaflops(lambda: model.prepare(memory, frame.grid)),
            "values": gigaflops(lambda: model.value_encoder(image, masks)),
            "readout": gigaflops(segment, "Association"),
            "decoder": gigaflops(segment, "Decoder"),
        }
        whole = gigaflops(segment)
    parts["test stream"] = whole - parts["readout"] - parts["decoder"]
    parts["frame"] = parts["embed"] + whole
    parts["recomputed"] = parts["frame"] + parts["references"]
    parts["update"] = parts["references"] + parts["values"]
    return sum(p.numel() for p in model.parameters()), parts
