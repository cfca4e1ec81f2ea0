"""Reading and writing while something else computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD = 4  # items made before they are needed
BEHIND = 8  # calls that may wait

T = TypeVar("T")


def read_ahead(items: Iterator[T], count: int = AHEAD) -> Generator[T, None, None]:
    """The same items, made in another thread, up to ``count`` ahead of use."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future] = deque()
        advance: Callable[[], object] = lambda: next(items, end)  # noqa: E731
        try:
            pending.extend(pool.submit(advance) for _ in range(count))
            while (item := pending.popleft().result()) is not end:
                pending.append(pool.submit(advance))
                yield item
        finally:
            for future in pending:
                future.cancel()


class Later:
    """Runs calls in other threads, at most a few behind.

    A context, at whose end all are done. What one raises is raised by a later one, or at the end.
    """

    def __init__(self, threads: int = 1, behind: int = BEHIND) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._behind = behind
        self._pending: deque[Future] = deque()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Start a call, waiting if too many are left."""
        self._pending.append(self._pool.submit(function, *arguments))
        while len(self._pending) > self._behind:
            self._pending.popleft().result()

    def flush(self) -> None:
        """Wait until all are done."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> "Later":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._pool.shutdown(cancel_futures=True)
