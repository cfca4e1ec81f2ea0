import os

import pytest

from stma.runtime.workers import worker_map


def identify(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_whatever_the_number_of_workers(workers: int) -> None:
    with worker_map(workers) as spread:
        results = list(spread(identify, range(6), chunksize=2))
    assert [square for square, _ in results] == [0, 1, 4, 9, 16, 25]
    assert all((process == os.getpid()) is (workers == 1) for _, process in results)


@pytest.mark.parametrize("workers", [1, 2])
def test_several_arguments(workers: int) -> None:
    with worker_map(workers) as spread:
        assert list(spread(pow, [2, 3], [3, 2])) == [8, 9]
