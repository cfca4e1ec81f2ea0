import os
import pickle
import signal
import sys

import pytest

from stma.errors import InputError, input_errors_end_the_program


@input_errors_end_the_program()
def command(error: BaseException | None = None) -> int:
    if error is not None:
        raise error
    return 7


def test_what_a_user_can_mend_ends_with_a_line_and_status_1() -> None:
    assert command() == 7
    with pytest.raises(SystemExit) as ended:
        command(InputError("x.png: is wrong"))
    assert ended.value.code == "error: x.png: is wrong"  # printed; the status is 1
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError())


def test_ctrl_c_ends_without_a_traceback(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        command(KeyboardInterrupt())
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_what_it_decorates_can_be_pickled() -> None:
    """Launchers of sweeps send commands to other machines."""
    assert pickle.loads(pickle.dumps(input_errors_end_the_program())) is not None
    assert sys.modules[__name__].command is pickle.loads(pickle.dumps(command))


def test_sigterm_is_told_and_ends_the_program_as_ever(monkeypatch, capfd) -> None:
    killed = []
    with input_errors_end_the_program():
        tell = signal.getsignal(signal.SIGTERM)
        with input_errors_end_the_program():  # as around what is decorated too
            assert signal.getsignal(signal.SIGTERM) is tell
        monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
        tell(signal.SIGTERM, None)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert killed == [(os.getpid(), signal.SIGTERM)]
    assert "interrupted; run the same command to start or continue" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
