"""Learning from the masks that a user has given: a minute of training on those frames alone (ours).

Clips are made of the annotated frames: bent and shifted as a whole, and with their objects cut out
and moved over them. What is learned is blended with the weights that one began with, so that it
cannot lead far away from them.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from stma.data.composite import CompositeConfig
from stma.data.config import DatasetConfig
from stma.data.dataset import ClipDataset, DataConfig
from stma.data.image_folder import Layout
from stma.data.transforms import ColourConfig, TransformConfig
from stma.errors import InputError
from stma.model.stma import STMA
from stma.runtime.device import autocast, resolve_precision
from stma.structures import ClipBatch
from stma.training.losses import LossConfig, clip_loss
from stma.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    learning_rate,
    set_learning_rate,
)


@dataclass(frozen=True)
class AdaptConfig:
    """How a network learns from given masks; the defaults are chosen on validation data
    (docs/own_video.md).

    Attributes:
        iterations, clips, num_frames, size: steps; clips of a step; their frames and their sides.
        learning_rate: at first; it falls to 0.
        blend: weight of what was learned, against the weights that one began with.
        parts: how the names of the parameters begin that learn; all if empty.
        composite: share of clips in which cut-out objects move over the frames; in the others a
            frame is bent and shifted as a whole.
    """

    iterations: int = 60
    clips: int = 2
    num_frames: int = 4
    size: int = 256
    learning_rate: float = 2e-4
    blend: float = 0.5
    parts: tuple[str, ...] = ()
    composite: float = 0.5
    precision: str = "auto"
    seed: int = 0


def adapt(
    model: STMA,
    frames: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    config: AdaptConfig | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> STMA:
    """A network like ``model`` that knows the objects of the given frames better.

    Args:
        model: is not changed.
        frames: ``(H, W, 3)`` uint8, RGB.
        masks: ``(H, W)`` IDs, one for each frame; 0 is background.
        on_step: called after every step; what it raises ends the training.

    Raises:
        InputError: there is no mask, one is empty, or frames and masks do not fit.
    """
    config = config or AdaptConfig()
    if not frames or len(frames) != len(masks):
        raise InputError(f"{len(frames)} frames and {len(masks)} masks; give one mask for each")
    adapted = copy.deepcopy(model).train()
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(not config.parts or name.startswith(config.parts))
    device = model.mean.device
    precision = resolve_precision(device, config.precision)
    settings = OptimizerConfig(
        learning_rate=config.learning_rate, schedule="cosine", warmup=0.1, betas=[0.9, 0.95]
    )
    optimizer = build_optimizer(adapted, settings)
    loss_config = LossConfig(bootstrap_start=0, bootstrap_end=1, bootstrap_share=0.4)
    with _clips(frames, masks, config) as clips:
        for step in range(config.iterations):
            first = step * config.clips
            batch = ClipBatch.collate([clips.sample(first + i) for i in range(config.clips)])
            set_learning_rate(optimizer, learning_rate(settings, step / config.iterations))
            batch = batch.to(device)
            with autocast(device, precision):
                prediction = adapted(batch)
            loss = clip_loss(prediction, batch, loss_config, step).total
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(adapted.parameters(), settings.clip_norm)
            optimizer.step()
            on_step()
    adapted.object_features.forget_observed()  # the running mean stays as it was
    blend_weights(adapted, model, config.blend)
    return adapted.requires_grad_(True).eval()


@torch.no_grad()
def blend_weights(adapted: STMA, model: STMA, blend: float) -> None:
    """Move the weights of ``adapted`` to ``blend`` of the way from those of ``model``."""
    for ours, theirs in zip(adapted.parameters(), model.parameters(), strict=True):
        ours.copy_(torch.lerp(theirs, ours, blend))


@contextmanager
def _clips(
    frames: Sequence[np.ndarray], masks: Sequence[np.ndarray], config: AdaptConfig
) -> Iterator[ClipDataset]:
    """Endless clips of the given frames, which are written to a folder for as long."""
    with tempfile.TemporaryDirectory(prefix="stma-adapt-") as folder:
        for kind in ("images", "masks"):
            (Path(folder) / kind).mkdir()
        for number, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            if not mask.any():
                raise InputError(f"mask {number} holds no object; leave its frame out")
            if frame.shape[:2] != mask.shape:
                raise InputError(
                    f"frame {number} is {frame.shape[1]} x {frame.shape[0]} pixels, its mask "
                    f"{mask.shape[1]} x {mask.shape[0]}"
                )
            Image.fromarray(frame).save(Path(folder) / "images" / f"{number}.png", compress_level=1)
            Image.fromarray(mask.astype(np.uint8)).save(Path(folder) / "masks" / f"{number}.png")
        yield ClipDataset(
            DataConfig(
                sources=_sources(folder, config.composite),
                height=config.size,
                width=config.size,
                num_frames=config.num_frames,
                max_objects=8,
                max_gaps=[5],
                max_gap_starts=[0.0],
            ),
            length=config.iterations * config.clips,
            seed=config.seed,
        )


def _sources(folder: str, share: float) -> dict[str, DatasetConfig]:
    given = DatasetConfig(
        kind="images",
        root=folder,
        layouts=[Layout("images/*.png", "masks/*.png")],
        weight=1 - share,
        transform=TransformConfig(
            crop_ratio=[1.0, 1.0],
            rotate=20.0,
            zoom=[0.8, 1.1],
            shift=0.08,
            thin_plate=0.02,
            colour=ColourConfig(0.1, 0.05, 0.05, 0.05),
            frame_colour=ColourConfig(0.1, 0.05, 0.05),
        ),
    )
    moving = DatasetConfig(
        kind="composite",
        weight=share,
        composite=CompositeConfig(growth=0.8),
        cut_from={"given": DatasetConfig(kind="images", root=folder, layouts=given.layouts)},
    )
    return {"given": given, "moving": moving}
