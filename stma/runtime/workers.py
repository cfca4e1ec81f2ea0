"""Work on files, spread over processes."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from stma.errors import InputError
from stma.runtime.opencv import cv2

PER_CORE = 4  # at most this many processes or threads: more would only slow one another down


def check_count(name: str, count: int, *, at_least: int) -> None:
    """Refuse a number of processes or threads that this machine cannot run.

    Raises:
        InputError: it is smaller, or more than four times the machine's cores.
    """
    most = PER_CORE * (os.cpu_count() or 1)
    if count < at_least:
        raise InputError(f"{name} is {count}; give {at_least} or more")
    if count > most:
        raise InputError(
            f"{name} is {count}; give at most {most}, {PER_CORE} for each of this machine's cores"
        )


def available_cores() -> int:
    """Those that this process may use; where the system does not say (macOS, Windows), all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def worker_map(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yields a ``map(function, *items, chunksize=1)`` that runs in ``workers`` processes; with one
    worker, in this process."""
    if workers == 1:
        yield lambda function, *items, chunksize=1: map(function, *items)
        return
    context = process_context("stma.data.checking")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        yield pool.map


def _start_worker() -> None:
    end_with_parent()
    one_thread()


def process_context(preload: str) -> Any:
    """How processes are started: not forked from this one, which may already have threads, whose
    locks a child would inherit.

    Args:
        preload: a module to import once for all of them.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([preload])
    return context


def end_with_parent() -> None:
    """End this worker when the process that started it ends, however it ends; otherwise it would go
    on writing, and hold GPU memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def one_thread(worker: int = 0) -> None:
    """Workers already share the cores: threads of their own would only get in the way."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
