import multiprocessing
import os
import time
from pathlib import Path

import pytest
from forking import start

from stma.errors import InputError
from stma.runtime.workers import check_count, worker_map


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


def test_more_processes_than_the_machine_can_run_are_refused() -> None:
    most = 4 * os.cpu_count()
    check_count("workers", most, at_least=1)
    with pytest.raises(InputError, match=f"workers is {most + 1}; give at most {most}"):
        check_count("workers", most + 1, at_least=1)
    with pytest.raises(InputError, match="num_workers is -1; give 0 or more"):
        check_count("num_workers", -1, at_least=0)


def hold_workers(path: Path) -> None:
    with worker_map(2) as spread:
        list(spread(identify, [1, 2]))
        written = path.with_suffix(".part")
        written.write_text(" ".join(str(each.pid) for each in multiprocessing.active_children()))
        written.rename(path)
        time.sleep(600)


def test_workers_end_with_the_process_that_started_them(tmp_path) -> None:
    """However it ends; they would go on writing to an output that nobody holds."""
    process = start(hold_workers, tmp_path / "pids")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (tmp_path / "pids").exists():
        time.sleep(0.01)
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in workers)
    process.kill()
    process.join()
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
