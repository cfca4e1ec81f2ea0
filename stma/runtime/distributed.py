"""One process or many, started by `torchrun`, and how they communicate."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from stma.errors import InputError, ToldByAnother
from stma.runtime.device import resolve_device

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # all wait while the first one validates
DEVICE_TIMEOUT = timedelta(minutes=30)  # between GPUs, which never wait longer than a step


@dataclass(frozen=True)
class Processes:
    """This process among those that work together.

    Attributes:
        host_group: for data on the host; None if there is only one group.
    """

    rank: int = 0
    world_size: int = 1
    host_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Only the main process writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; the host does not wait for the device."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """The maximum over all processes, in place; the host does not wait for the device."""
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks; they must be picklable."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.host_group)
        return cast(list[T], values)

    def wait(self) -> None:
        """Wait for all other processes."""
        if self.world_size > 1:
            dist.barrier(self.host_group)

    def together(self, function: Callable[[], T]) -> T:
        """The function's result here, once it has finished in all processes.

        Raises:
            InputError: the function raised it in any process; all raise it, only the first reports
                it.
        """
        if self.world_size == 1:
            return function()
        try:
            outcome: T | InputError = function()
        except InputError as error:
            outcome = error
        faults = self.gather(str(outcome) if isinstance(outcome, InputError) else None)
        for rank, fault in enumerate(faults):
            if fault is not None:
                raise self.common_error(fault if rank == 0 else f"process {rank}: {fault}")
        return cast(T, outcome)

    def common_error(self, message: str) -> InputError:
        """An error for all processes to raise at once; only the first one's is printed."""
        return InputError(message) if self.is_main else ToldByAnother(message)


@contextmanager
def told_once() -> Iterator[None]:
    """Wraps what fails alike in all processes of a machine before they have joined: only the first
    of them reports it."""
    try:
        yield
    except InputError as error:
        if _given("LOCAL_RANK", 0) == 0:
            raise
        raise ToldByAnother(str(error)) from error


@contextmanager
def join_processes(
    device: str, backend: str | None = None
) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group that `torchrun` has started, or run alone; yields this process and its device.

    A process may do so several times, as the jobs of a sweep do, if all others do as often.

    Args:
        backend: for communication; None takes NCCL on GPUs and gloo elsewhere.

    Raises:
        InputError: there is no such device for this process; later, that another process has ended.
    """
    rank, world_size = _given("RANK", 0), _given("WORLD_SIZE", 1)
    with told_once():
        chosen = resolve_device(device)
        if world_size > 1 and chosen.index is not None:
            raise InputError(
                f"device is {device!r}, but each of {world_size} processes has its own GPU; "
                "give cuda, and CUDA_VISIBLE_DEVICES to choose among them"
            )
    if world_size == 1:
        if chosen.index is not None:
            torch.cuda.set_device(chosen)  # otherwise plain "cuda" means the first
        yield Processes(), chosen
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", _own_gpu(_given("LOCAL_RANK", 0), torch.cuda.device_count()))
        torch.cuda.set_device(chosen)
    if rank > 0:
        logging.disable(logging.ERROR)
    backend = backend or ("nccl" if chosen.type == "cuda" else "gloo")
    on_device = backend == "nccl"
    # The store is torchrun's, and outlives the processes that it starts again.
    start = _given("TORCHELASTIC_RESTART_COUNT", 0)
    prefix = f"stma/{start}/{next(_joined)}"
    dist.init_process_group(
        backend,
        timeout=DEVICE_TIMEOUT if on_device else TIMEOUT,
        store=dist.PrefixStore(prefix, _meeting_place(rank, world_size)),
        rank=rank,
        world_size=world_size,
        device_id=chosen if on_device else None,
    )
    try:
        group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_device else None
        assert not isinstance(group, int)  # an int would mean a group without us
        processes = Processes(rank, world_size, group)
        yield processes, chosen
        processes.wait()  # no process leaves while others still communicate
    except RuntimeError as error:
        if not _is_of_a_lost_process(error):
            raise
        raise InputError(
            f"process {rank} can no longer reach another one: it has ended, or its machine or "
            "network has failed; its last lines say why. This one ends too; the same command "
            "resumes from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def _given(name: str, default: int) -> int:
    """What `torchrun` has put into the environment."""
    return int(os.environ.get(name, default))


# A new group must not find the keys that an earlier one of the same processes has left.
_joined = count()


@cache
def _meeting_place(rank: int, world_size: int) -> dist.Store:
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=TIMEOUT))
    store.set_timeout(TIMEOUT)
    return store


def _is_of_a_lost_process(error: RuntimeError) -> bool:
    """NCCL's errors have their own type; gloo's name its source file."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def _own_gpu(local_rank: int, count: int) -> int:
    if local_rank >= count:
        raise InputError(
            f"process {local_rank} of this machine finds {count} CUDA devices; start one process "
            "for each (torchrun --nproc-per-node)"
        )
    return local_rank
