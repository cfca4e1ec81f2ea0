import threading

import pytest

from stma.errors import InputError
from stma.runtime.threads import Later, read_ahead


def test_reading_ahead_keeps_the_order_and_passes_errors_on() -> None:
    assert list(read_ahead(iter(range(20)))) == list(range(20))
    assert list(read_ahead(iter([]))) == []
    started = []

    def items():
        for number in range(10):
            started.append(number)
            if number == 5:
                raise InputError("five")
            yield number

    seen: list[int] = []

    def take() -> None:
        for item in read_ahead(items(), 2):
            seen.append(item)
            assert len(started) <= item + 4

    with pytest.raises(InputError, match="five"):
        take()
    assert seen == [0, 1, 2, 3, 4]


def test_calls_run_later_in_order_and_errors_arrive() -> None:
    seen: list[int] = []
    with Later() as later:
        for number in range(20):
            later.call(seen.append, number)
        later.flush()
        assert seen == list(range(20))

    def fail() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), Later() as later:
        later.call(fail)


def test_no_more_than_a_few_calls_wait() -> None:
    gate, started, taken = (threading.Event() for _ in range(3))

    def first() -> None:
        started.set()
        gate.wait(10)

    def work() -> None:
        with Later(behind=1) as later:
            later.call(first)
            later.call(int)
            taken.set()

    threading.Thread(target=work).start()
    assert started.wait(10)
    assert not taken.wait(0.1)
    gate.set()
    assert taken.wait(10)
