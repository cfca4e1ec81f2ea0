import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path) -> None:
    """However it ends; they would go on writing to an output that nobody holds."""
    program = (
        "import os, time, multiprocessing\n"
        "from stma.runtime.workers import worker_map\n"
        "if __name__ == '__main__':\n"
        "    with worker_map(2) as spread:\n"
        "        list(spread(print, [1, 2]))\n"
        "        print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "        time.sleep(600)\n"
    )
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline().split() for _ in range(3)]
    workers = [int(pid) for pid in max(lines, key=len)]
    assert len(workers) == 2
    process.kill()
    process.wait()
    for _ in range(3000):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
