"""The one exception for what a user gave and can mend, and how a command ends on it."""

import sys
from contextlib import ContextDecorator


class InputError(ValueError):
    """A file, a setting or a value from outside is wrong.

    The message names it and says what to do.
    """


class ToldByAnother(InputError):
    """Another process of the same run prints it."""


class input_errors_end_the_program(ContextDecorator):
    """Around a command, also as a decorator: an :class:`InputError` is printed without a traceback
    and the exit status is 1; so is Ctrl-C, with status 130.

    A class, not a generator, since launchers of sweeps pickle what it decorates.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ToldByAnother):
            raise SystemExit(1) from error
        if isinstance(error, InputError):
            raise SystemExit(f"error: {error}") from error
        if isinstance(error, KeyboardInterrupt):
            print("interrupted; the same command starts or goes on", file=sys.stderr)  # noqa: T201
            raise SystemExit(130) from error
