"""Work on files, spread over processes."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2
import torch


@contextmanager
def worker_map(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Gives a ``map(function, *items, chunksize=1)`` that runs in so many processes; with one
    worker, in this one."""
    if workers == 1:
        yield lambda function, *items, chunksize=1: map(function, *items)
        return
    context = process_context("stma.data.checking")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        yield pool.map


def process_context(preload: str) -> Any:
    """How processes are started: not forked from this one, which may have threads by now, whose
    locks a child would inherit.

    Args:
        preload: a module that is imported once for all of them.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([preload])
    return context


def one_thread(worker: int = 0) -> None:
    """Workers share the cores among them: threads of their own would only get in the way."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
