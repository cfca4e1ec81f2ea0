"""One process or many, started by `torchrun` or `srun`, and how they communicate."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from stma.errors import InputError, ToldByAnother
from stma.runtime.device import resolve_device

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # the others wait while the first validates
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


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
        local_rank: among the processes of its machine.
        by_slurm: `srun` started one task per process, so torch must be told ranks and address.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    by_slurm: bool = False


def read_launch(environment: Mapping[str, str]) -> Launch:
    """What `torchrun`, or `srun` with more than one task, has put into the environment.

    A salloc shell or a job script has most of SLURM's variables too, but not those of a step: what
    is started there runs alone.
    """
    if "RANK" in environment:
        rank, world = int(environment["RANK"]), int(environment.get("WORLD_SIZE", "1"))
        return Launch(rank, world, int(environment.get("LOCAL_RANK", "0")))
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1")))
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment and tasks > 1:
        rank, local = int(environment["SLURM_PROCID"]), int(environment.get("SLURM_LOCALID", "0"))
        return Launch(rank, tasks, local, by_slurm=True)
    return Launch()


@contextmanager
def told_once() -> Iterator[None]:
    """Wraps what fails alike in all processes of a machine before they have joined: only the first
    of them reports it."""
    try:
        yield
    except InputError as error:
        if read_launch(os.environ).local_rank == 0:
            raise
        raise ToldByAnother(str(error)) from error


@contextmanager
def join_processes(
    device: str, backend: str | None = None
) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group that `torchrun` or `srun` has started, or run alone; yields this process and
    its device.

    Args:
        backend: for communication; None takes NCCL on GPUs and gloo elsewhere.

    Raises:
        InputError: there is no such device for this process, or `srun` has started processes on
            several machines without MASTER_ADDR; later, that another process has ended.
    """
    launch = read_launch(os.environ)
    with told_once():
        chosen = resolve_device(device)
        if launch.world_size > 1 and chosen.index is not None:
            raise InputError(
                f"device is {device!r}, but each of {launch.world_size} processes has its own GPU; "
                "give cuda, and CUDA_VISIBLE_DEVICES to choose among them"
            )
        if launch.by_slurm:
            _find_first_process(os.environ)
    if launch.world_size == 1:
        if chosen.index is not None:
            torch.cuda.set_device(chosen)  # otherwise plain "cuda" means the first
        yield Processes(), chosen
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", _own_gpu(launch, torch.cuda.device_count()))
        torch.cuda.set_device(chosen)
    if launch.rank > 0:
        logging.disable(logging.ERROR)
    backend = backend or ("nccl" if chosen.type == "cuda" else "gloo")
    on_device = backend == "nccl"
    dist.init_process_group(
        backend,
        timeout=DEVICE_TIMEOUT if on_device else TIMEOUT,
        rank=launch.rank,
        world_size=launch.world_size,
        device_id=chosen if on_device else None,
    )
    try:
        group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_device else None
        assert not isinstance(group, int)  # an int would mean a group without us
        processes = Processes(launch.rank, launch.world_size, group)
        yield processes, chosen
        processes.wait()  # no process leaves while others still communicate
    except RuntimeError as error:
        if not _tells_of_a_lost_process(error):
            raise
        raise InputError(
            f"process {launch.rank} can no longer reach another one: it has ended, or its "
            "machine or network has failed; its last lines say why. This one ends too; the same "
            "command resumes from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def _tells_of_a_lost_process(error: RuntimeError) -> bool:
    """NCCL's errors have their own type; gloo's name its source file."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def _own_gpu(launch: Launch, count: int) -> int:
    if launch.by_slurm and count == 1:
        return 0  # SLURM shows each task only its own (--gpus-per-task)
    if launch.local_rank >= count:
        raise InputError(
            f"process {launch.local_rank} of this machine finds {count} CUDA devices; start one "
            "process for each (torchrun --nproc-per-node, srun --ntasks-per-node)"
        )
    return launch.local_rank


def _find_first_process(environment: "os._Environ[str]") -> None:
    """Tell torch where the first process is, as `torchrun` would."""
    if "MASTER_ADDR" not in environment:
        if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) != "1":
            raise InputError(
                "srun has started processes on several machines, but MASTER_ADDR, the address of "
                "the first, is not set; put this before srun: export MASTER_ADDR=$(scontrol show "
                "hostnames $SLURM_JOB_NODELIST | head -n 1)"
            )
        environment["MASTER_ADDR"] = "127.0.0.1"
    # Jobs that share a machine must not share the port; it is below those the system hands out.
    job = int(environment.get("SLURM_JOB_ID", "0"))
    environment.setdefault("MASTER_PORT", str(15_000 + job % 15_000))
