"""The next step's clips, fetched while the device computes the current one."""

import time
from collections.abc import Iterator
from itertools import islice

import torch

from stma.structures import ClipBatch


class Feed:
    """Batches in parts, on the device.

    Args:
        batches: the parts of all batches, one after another.
        count: parts per batch.

    Attributes:
        waited: seconds spent fetching.
    """

    def __init__(self, batches: Iterator[ClipBatch], count: int, device: torch.device) -> None:
        self.batches, self.count, self.device = batches, count, device
        self.waited = 0.0
        self._ready: list[ClipBatch] = []

    def fetch(self) -> None:
        """Load the next batch, unless it is already loaded or there is none left.

        Raises:
            InputError: a file is faulty; the message names it.
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
    """The speed of the steps, from one reading to the next."""

    def __init__(self, iteration: int) -> None:
        self._last = (iteration, time.monotonic(), 0.0)

    def look(self, iteration: int, waited: float) -> tuple[float, float]:
        """Since the last reading: iterations per second, and the share of time spent fetching.

        Args:
            waited: see :class:`Feed`.
        """
        now = (iteration, time.monotonic(), waited)
        steps, seconds, waiting = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
        return steps / seconds, waiting / seconds
