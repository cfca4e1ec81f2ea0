"""The one exception for what a user gave and can mend."""


class InputError(ValueError):
    """A file, a setting or a value from outside is wrong.

    The message names it and says what to do; `train.py`, `eval.py` and the scripts print it
    without a traceback and leave with status 1.
    """
