"""Clips of the next step, fetched while the device computes this one."""

import time
from collections.abc import Iterator
from itertools import islice

import torch

from stma.structures import ClipBatch


class Feed:
    """Batches in parts, on the device.

    Args:
        batches: the parts of all batches, one after another.
        count: parts of a batch.

    Attributes:
        waited: seconds spent on fetching.
    """

    def __init__(self, batches: Iterator[ClipBatch], count: int, device: torch.device) -> None:
        self.batches, self.count, self.device = batches, count, device
        self.waited = 0.0
        self._ready: list[ClipBatch] = []

    def fetch(self) -> None:
        """Load the next batch, unless that is done; at the end there is none.

        Raises:
            InputError: a file is at fault; the message names it.
        """
        if not self._ready:
            start = time.monotonic()
            parts = list(islice(self.batches, self.count))
            self.waited += time.monotonic() - start
            self._ready = [part.to(self.device) for part in parts]

    def take(self) -> list[ClipBatch]:
        """The parts of the next batch."""
        self.fetch()
        parts, self._ready = self._ready, []
        return parts


class Pace:
    """How fast steps follow one another, from one look to the next."""

    def __init__(self, iteration: int) -> None:
        self._last = (iteration, time.monotonic(), 0.0)

    def look(self, iteration: int, waited: float) -> tuple[float, float]:
        """Since the last look: iterations a second, and the share of time spent on fetching.

        Args:
            waited: see :class:`Feed`.
        """
        now = (iteration, time.monotonic(), waited)
        steps, seconds, waiting = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
        return steps / seconds, waiting / seconds
