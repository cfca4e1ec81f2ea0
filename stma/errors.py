"""The one exception for user input that is wrong, and how a command ends on it."""

import os
import signal
import sys
import threading
from contextlib import ContextDecorator

INTERRUPTED = "interrupted; run the same command to start or continue"


class InputError(ValueError):
    """A file, setting or other value given by the user is wrong.

    The message names it and says what to do.
    """


class ToldByAnother(InputError):
    """An error that another process of the same run prints."""


class input_errors_end_the_program(ContextDecorator):
    """Wraps a command, also as a decorator: an :class:`InputError` is printed without a traceback
    and the exit status is 1; so is Ctrl-C, with status 130. SIGTERM is reported, and ends the
    program as usual.

    A class, not a generator, since sweep launchers pickle what it decorates.
    """

    _catches = False

    def __enter__(self) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        self._catches = in_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        if self._catches:
            signal.signal(signal.SIGTERM, _tell_and_end)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._catches:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if isinstance(error, ToldByAnother):
            raise SystemExit(1) from error
        if isinstance(error, InputError):
            raise SystemExit(f"error: {error}") from error
        if isinstance(error, KeyboardInterrupt):
            print(INTERRUPTED, file=sys.stderr)  # noqa: T201
            raise SystemExit(130) from error


def _tell_and_end(number: int, frame: object) -> None:
    os.write(2, f"\n{INTERRUPTED}\n".encode())  # not print, which may be writing right now
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
