"""Does a model run here? python scripts/try_model.py convvit_b

One training step on a clip as in the paper (5 frames of 384 x 384, 3 objects) and inference on some
480p frames, with random weights: time, memory, and whether all gradients are finite.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from stma.compose import load_model_config
from stma.data.config import DatasetConfig
from stma.data.dataset import ClipDataset, DataConfig
from stma.data.procedural import procedural_clip
from stma.data.scene import SceneConfig
from stma.errors import input_errors_end_the_program
from stma.inference.segmenter import Segmenter
from stma.model.factory import build_model
from stma.model.stma import STMA
from stma.runtime.device import autocast, peak_gigabytes, resolve_device
from stma.structures import ClipBatch
from stma.training.losses import LossConfig, clip_loss

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="convvit_b")
    parser.add_argument("--size", type=int, default=384, help="of a training clip")
    parser.add_argument("--frames", type=int, default=5, help="of a training clip")
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--height", type=int, default=480, help="at inference")
    parser.add_argument("--width", type=int, default=854, help="at inference")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    device = resolve_device(arguments.device)
    config = load_model_config(CONFIGS, arguments.model)
    torch.manual_seed(0)
    model = build_model(config).to(device)
    count = sum(p.numel() for p in model.parameters())
    print(f"{arguments.model}: {count / 1e6:.1f} M parameters, on {device}")
    train_step(model, arguments.size, arguments.frames, arguments.objects, device)
    infer(model.eval(), arguments.height, arguments.width, arguments.objects)
    print(f"peak memory {peak_gigabytes(device):.1f} GB")


def train_step(
    model: STMA, size: int, num_frames: int, num_objects: int, device: torch.device
) -> None:
    """One forward and backward pass of one procedural clip."""
    scene = SceneConfig(min_objects=num_objects, max_objects=num_objects + 2)
    data = DataConfig(
        sources={"procedural": DatasetConfig(kind="procedural", scene=scene)},
        height=size,
        width=size,
        num_frames=num_frames,
        max_objects=num_objects,
    )
    clips = ClipDataset(data, 1000, seed=0)
    clip = next(clip for clip in map(clips.sample, range(1000)) if clip.num_objects == num_objects)
    batch = ClipBatch.collate([clip]).to(device)
    start = time.perf_counter()
    with autocast(device, "auto"):
        prediction = model(batch)
    loss = clip_loss(prediction, batch, LossConfig(), iteration=0).total
    forward = time.perf_counter() - start
    loss.backward()
    both = time.perf_counter() - start
    finite = all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    model.zero_grad(set_to_none=True)
    print(
        f"training: {num_frames} frames of {size} x {size}, {num_objects} objects: "
        f"loss {loss.item():.3f}, forward {forward:.1f} s, both {both:.1f} s, "
        f"gradients {'finite' if finite else 'NOT FINITE'}"
    )


def infer(model: STMA, height: int, width: int, num_objects: int) -> None:
    """Segment five frames of a procedural clip, memorising every fifth."""
    scene = SceneConfig(min_objects=num_objects, max_objects=num_objects)
    rng = np.random.default_rng(0)
    frames, masks, visible = procedural_clip(scene, (height, width), np.arange(5.0), rng)
    segmenter = Segmenter(model)
    seconds = []
    for t, frame in enumerate(frames):
        start = time.perf_counter()
        result = segmenter.step(frame, masks[0] if t == 0 else None)
        seconds.append(time.perf_counter() - start)  # the result is on the host: nothing is pending
    assert result.mask.shape == (height, width)
    print(
        f"inference: {height} x {width}, {visible} objects: first frame {seconds[0]:.2f} s, "
        f"second (encodes the references) {seconds[1]:.2f} s, later {np.median(seconds[2:]):.2f} s"
    )


if __name__ == "__main__":
    main()
