"""One process or many: what `torchrun` has started, and what the processes tell one another."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from stma.device import resolve_device
from stma.errors import InputError

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # the others wait while the first one validates


@dataclass(frozen=True)
class Processes:
    """This process among all that work together."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Only this one writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def maximum(self, values: list[float], device: torch.device) -> list[float]:
        """Of each value over all processes, so that they decide alike."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """Everyone's, in the order of their ranks; for what can be pickled."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return cast(list[T], values)

    def wait(self) -> None:
        """For all the others."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_processes(
    device: str, backend: str | None = None
) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group that `torchrun` has started, or be alone; gives this process and its device.

    Args:
        backend: by which they talk; None takes NCCL on GPUs and gloo elsewhere.

    Raises:
        InputError: there is no such device for this process.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" not in os.environ or world_size == 1:
        yield Processes(), resolve_device(device)
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = resolve_device(device)
    if chosen.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank} of this machine finds {torch.cuda.device_count()} CUDA "
                "devices; start as many as there are (torchrun --nproc-per-node)"
            )
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    if rank > 0:
        logging.disable(logging.ERROR)
    backend = backend or ("nccl" if chosen.type == "cuda" else "gloo")
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Processes(rank, world_size), chosen
        dist.barrier()  # nobody hangs up on the others
    finally:
        dist.destroy_process_group()
