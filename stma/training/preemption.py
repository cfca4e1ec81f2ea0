"""Signals that ask a run to stop, and how it then ends."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EXIT_PREEMPTED = 75  # of a run that was asked to stop, and continues when started again
EXIT_INTERRUPTED = 130  # as shells have it for Ctrl-C
STATUSES = {
    signal.SIGTERM: EXIT_PREEMPTED,
    signal.SIGUSR1: EXIT_PREEMPTED,
    signal.SIGINT: EXIT_INTERRUPTED,
}
NOTICE = b"\ninterrupted: saving after this step; Ctrl-C once more leaves at once\n"


class Preempted(SystemExit):
    """The run was asked to stop (SIGTERM, SIGUSR1, Ctrl-C), has saved its state and continues when
    the same command is given again. Uncaught, it ends the program with status 75, or 130 after
    Ctrl-C."""

    def __init__(self, status: int = EXIT_PREEMPTED) -> None:
        super().__init__(status)


@dataclass
class StopRequest:
    """Whether this process has been asked to stop.

    Attributes:
        status: to exit with; 0 to go on.
    """

    status: int = 0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Note signals to stop, for the caller to follow when it can. A second Ctrl-C is a
    KeyboardInterrupt."""
    request = StopRequest()

    def ask(number: int, frame: object) -> None:
        if number == signal.SIGINT:
            if request.status:
                raise KeyboardInterrupt
            os.write(2, NOTICE)  # not print or a log, which may be writing right now
        request.status = STATUSES[signal.Signals(number)]

    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, ask) for number in STATUSES}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
