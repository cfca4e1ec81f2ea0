"""Parameters, and GFLOPs of one frame by part: python scripts/count.py [MODEL ...]

Counted by torch.utils.flop_counter (a multiply-add is two) on the meta device. A frame is counted
with its references cached; "update" is what a memory update adds.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from stma.compose import load_model_config, model_names
from stma.errors import input_errors_end_the_program
from stma.memory.spatial import SpatialMemory
from stma.memory.video import VideoMemory
from stma.model.backbone import STRIDE, FrameEmbedding
from stma.model.factory import ModelConfig, build_model
from stma.model.stml import encode_references

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    models = model_names(CONFIGS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=models, help=f"of {', '.join(models)}")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=864)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--memory-frames", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.height % STRIDE or arguments.width % STRIDE:
        parser.error(f"height and width have to be multiples of {STRIDE}")
    if min(arguments.memory_frames, *arguments.objects) < 1:
        parser.error("give 1 or more objects and memory frames")

    print(
        f"{arguments.height} x {arguments.width}, 2 references, "
        f"{arguments.memory_frames} memory frames; GFLOPs\n"
    )
    frame_parts = ["embed", "test stream", "readout", "decoder", "frame"]
    columns = [*frame_parts, "references", "values", "update"]
    print(f"{'model':10} {'M params':>8} {'objects':>7} " + " ".join(f"{c:>11}" for c in columns))
    for name in arguments.models:
        config = load_model_config(CONFIGS, name)
        for objects in arguments.objects:
            parameters, parts = count(
                config, arguments.height, arguments.width, objects, arguments.memory_frames
            )
            row = " ".join(f"{parts[column]:11.1f}" for column in columns)
            print(f"{name:10} {parameters / 1e6:8.2f} {objects:7} {row}")


def count(
    config: ModelConfig, height: int, width: int, objects: int, memory_frames: int
) -> tuple[int, dict[str, float]]:
    """Parameters, and GFLOPs of each part of a frame and of a memory update."""
    memory = VideoMemory(spatial=SpatialMemory(queue_size=1))
    parts: dict[str, float] = {}

    def counted(name: str, function: Callable[[], object]) -> object:
        with FlopCounterMode(display=False) as counter:
            result = function()
        parts[name] = counter.get_total_flops() / 1e9
        return result

    with torch.device("meta"), torch.no_grad():
        model = build_model(config).eval()
        image = torch.zeros(1, 3, height, width)
        masks = torch.zeros(1, objects, height, width)
        frame = counted("embed", lambda: model.embed(image))
        assert isinstance(frame, FrameEmbedding)
        features = model.encode(frame, memory)
        for index in range(memory_frames):
            model.memorize(image, frame, features, masks, memory, pinned=index == 0)
        memory.reference_cache = counted(  # type: ignore[assignment]
            "references",
            lambda: encode_references(
                model.backbone.last_stage,
                memory.spatial.references(),
                model.object_features(memory.temporal.object_tokens),
            ),
        )
        counted("values", lambda: model.value_encoder(image, masks))
        counted("test stream", lambda: model.encode(frame, memory))
        counted("readout", lambda: model.association(features, memory.temporal))
        counted("whole", lambda: model.segment(frame, memory))
    parts["frame"] = parts["embed"] + parts["whole"]
    parts["decoder"] = parts["whole"] - parts["test stream"] - parts["readout"]
    parts["update"] = parts["references"] + parts["values"]
    return sum(p.numel() for p in model.parameters()), parts


if __name__ == "__main__":
    main()
