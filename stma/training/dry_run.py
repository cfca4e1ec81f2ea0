"""How much memory a stage needs, and the largest batch that fits, before it is started."""

import logging
import time
from pathlib import Path

import torch

from stma.device import peak_gigabytes
from stma.structures import ClipBatch
from stma.training.trainer import Trainer

log = logging.getLogger(__name__)


def dry_run(trainer: Trainer, weights: str | Path | None) -> int:
    """Take real steps on made-up clips of the stage's size, with as many clips as one process
    would have at once, then (on CUDA) twice as many until the memory is full. Nothing is written.

    Returns:
        The largest number of clips that fitted.
    """
    trainer.build(weights)
    share = trainer.stage.batch_size // trainer.processes.world_size // trainer.config.accumulate
    count, largest = share, 0
    while True:
        try:
            seconds = _step(trainer, count)
        except torch.OutOfMemoryError:
            log.info("%s: %d clips at once do not fit", trainer.name, count)
            if count == 1 or largest:
                break
            count //= 2
            torch.cuda.empty_cache()
            continue
        largest = max(largest, count)
        log.info(
            "%s: %d clips at once take %.1f GB at the peak, %.2f s",
            trainer.name,
            count,
            peak_gigabytes(trainer.device),
            seconds,
        )
        if trainer.device.type != "cuda" or count < share:
            break
        count *= 2
    log.info("%s: the largest batch that fitted is %d clips a process", trainer.name, largest)
    return largest


def _step(trainer: Trainer, clips: int) -> float:
    """Seconds of the second of two steps."""
    batch = random_batch(trainer, clips)
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
    for _ in range(2):
        start = time.perf_counter()
        trainer.step([batch], progress=0.5)
    return time.perf_counter() - start


def random_batch(trainer: Trainer, clips: int) -> ClipBatch:
    """Noise with as many objects as a clip may have; the work does not depend on the pixels."""
    data = trainer.stage.data
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
    ).to(trainer.device)
