"""The one exception for what a user gave and can mend, and how a command ends on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A file, a setting or a value from outside is wrong.

    The message names it and says what to do.
    """


@contextmanager
def input_errors_end_the_program() -> Iterator[None]:
    """Around a command, also as a decorator: an :class:`InputError` is printed without a traceback
    and the exit status is 1; so is Ctrl-C, with status 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command starts or goes on", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
