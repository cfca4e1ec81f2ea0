"""Processes that start at once: forked from one that has imported all that takes seconds."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from stma.runtime.workers import process_context

ROOT = Path(__file__).resolve().parent.parent
PRELOAD = ["pytest", "stma.cli", "stma.training.run", "stma.evaluation.evaluation", "torch._dynamo"]


def start_server() -> None:
    """Before any test asks for workers that need less: from then on, all are forked from this."""
    forkserver.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()


def start(
    function: Callable[..., object],
    *arguments: object,
    environment: dict[str, str] | None = None,
    printed: Path | None = None,
) -> BaseProcess:
    """Call a function in a process of its own.

    Args:
        environment: added to that of this process.
        printed: gets what it prints, with ``.out`` and ``.err`` behind its name.
    """
    context = process_context("stma.training.run")
    given = dict(os.environ) | (environment or {})
    process = context.Process(target=_enter, args=(function, arguments, given, printed))
    process.start()
    return process


def end(process: BaseProcess, seconds: float = 120) -> int:
    """Its exit status, once it has ended; that of a signal is negative."""
    process.join(seconds)
    assert process.exitcode is not None, f"still runs after {seconds} s"
    return process.exitcode


def start_program(program: str, *arguments: str, **settings: Any) -> BaseProcess:
    """Start ``python PROGRAM ARGUMENTS`` in the root of the repository; see :func:`start`."""
    return start(_run, program, arguments, **settings)


def run_program(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess:
    """As :func:`start_program`, to its end.

    Args:
        folder: gets what it prints.
    """
    printed = folder / "printed"
    status = end(start_program(program, *arguments, printed=printed), 300)
    out, err = (Path(f"{printed}.{kind}").read_text() for kind in ("out", "err"))
    return subprocess.CompletedProcess([program, *arguments], status, out, err)


def _run(program: str, arguments: tuple[str, ...]) -> None:
    os.chdir(ROOT)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def _enter(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    environment: dict[str, str],
    printed: Path | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, kind in ((1, "out"), (2, "err")) if printed is not None else ():
        with open(f"{printed}.{kind}", "w") as file:
            os.dup2(file.fileno(), number)
    function(*arguments)
