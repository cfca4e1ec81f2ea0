"""How much memory a stage needs, and the largest batch that fits, before it is started."""

import logging
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from stma.model.stma import STMA
from stma.runtime.device import peak_gigabytes, reset_peak
from stma.structures import ClipBatch
from stma.training.config import StageConfig
from stma.training.learner import Learner, release_memory
from stma.training.losses import LossConfig, clip_loss
from stma.training.trainer import Trainer

log = logging.getLogger(__name__)


def dry_run(trainer: Trainer, weights: str | Path | None) -> int:
    """Take real steps on made-up clips of the stage's size: with as many clips as a process would
    have at once, then (on CUDA) with more and fewer until the largest number that fits is found.
    Nothing is written.

    Returns:
        The largest number of clips that fit, in all processes.
    """
    processes = trainer.processes

    def build() -> Learner:
        # Each process on its own: one that runs out of memory would leave the others waiting for
        # its gradient. DistributedDataParallel keeps gradients in its buffers, at no extra memory.
        return Learner(trainer.config, trainer.stage, trainer.device, weights=weights)

    share = trainer.numbers(0).part
    count, largest, too_many = share, 0, None
    learner = build()
    while True:
        seconds = _try_step(learner, count)
        if all(processes.gather(seconds is not None)):
            largest = count
            log.info(
                "%s: %d clips at once take %.1f GB at the peak, %.2f s",
                trainer.name,
                count,
                peak_gigabytes(trainer.device),
                seconds,
            )
            if trainer.device.type != "cuda":
                break
        else:
            too_many = count
            log.info("%s: %d clips at once do not fit", trainer.name, count)
            # The interrupted step holds memory, and a loss scale that waits for its update.
            del learner
            release_memory(trainer.device)
            learner = build()
        count = 2 * count if too_many is None else (largest + too_many) // 2
        if count == largest:
            break
    del learner
    release_memory(trainer.device)
    log.info("%s: the largest batch that fits is %d clips a process", trainer.name, largest)
    return largest


def _try_step(learner: Learner, clips: int) -> float | None:
    """Seconds of a step; None if memory does not suffice. The error is not kept, since it holds
    everything the step had allocated."""
    try:
        return _step(learner, clips)
    except torch.OutOfMemoryError:
        return None


def _step(learner: Learner, clips: int) -> float:
    """Seconds of the second of two steps, in two parts if there would be more than one: the
    gradient of the first is kept while the second is computed."""
    batch = random_batch(learner.stage, clips, learner.device)
    parts = [batch] * min(learner.config.accumulate, 2)
    reset_peak(learner.device)
    for iteration in range(2):
        start = time.perf_counter()
        learner.step(parts, iteration, progress=0.5)
    return time.perf_counter() - start


def random_batch(stage: StageConfig, clips: int, device: torch.device) -> ClipBatch:
    """Noise with as many objects as a clip may have; the work does not depend on the pixels."""
    data = stage.data
    generator = torch.Generator().manual_seed(0)
    shape = (clips, data.num_frames, data.height, data.width)
    frames = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, data.max_objects + 1, shape, dtype=torch.uint8, generator=generator)
    references = torch.zeros(clips, data.num_frames, data.num_references, dtype=torch.int64)
    references[:, :, 1:] = 1
    return ClipBatch(
        names=[f"noise {index}" for index in range(clips)],
        frames=frames.permute(0, 1, 4, 2, 3),
        masks=masks,
        valid_objects=torch.ones(clips, data.max_objects, dtype=torch.bool),
        references=references,
    ).to(device)


def count_flops(model: STMA, batch: ClipBatch, loss: LossConfig) -> int:
    """FLOPs of a batch by torch's own counter, forward and backward, without recomputation."""
    model.train().checkpoint_blocks(False)
    with FlopCounterMode(display=False) as counter:
        clip_loss(model(batch), batch, loss, 0).total.backward()
    model.zero_grad(set_to_none=True)
    model.object_features.forget_observed()
    return counter.get_total_flops()
