"""Signals that ask a run to leave, and how it ends then."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_PREEMPTED = 75  # of a run that was told to leave, and goes on when it is started again


class Preempted(SystemExit):
    """The run was asked to leave (SIGTERM, SIGUSR1), has saved its state and goes on when the same
    command is given again. Not caught, it ends the program with status 75."""

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


@dataclass
class Leave:
    """Whether this process has been asked to leave."""

    asked: bool = False


@contextmanager
def signals_noted() -> Iterator[Leave]:
    """A signal to leave is noted meanwhile; who is given the note follows it when it can."""
    leave = Leave()

    def ask(number: int, frame: object) -> None:
        leave.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield leave  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield leave
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
