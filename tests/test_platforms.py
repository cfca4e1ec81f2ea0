"""What runs on macOS and Windows, too, on a Linux from which their missing parts are taken."""

import subprocess
import sys
from pathlib import Path

from conftest import box, gradient, write_clip, write_clip_file

from stma.data.pictures import save_mask

ROOT = Path(__file__).parent.parent
# Python's own modules and libraries find out first which system they are on.
FIRST = """
import os, runpy, signal, sys
import av, cv2, hydra, jinja2, pycocotools.mask, torch, torch.distributed, vos_benchmark.evaluator
import multiprocessing.popen_forkserver, subprocess
"""
TAKEN = """
import types
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "getuid", "killpg", "mkfifo", "sched_getaffinity"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
sys.modules["msvcrt"] = types.SimpleNamespace(locking=lambda *a: None, LK_NBLCK=2)
"""
PROGRAM = """
import numpy as np
from stma import Segmenter, load_model
mask = np.pad(np.ones((16, 16), np.uint8), 24)
step = Segmenter(load_model("small")).step(np.zeros((64, 64, 3), np.uint8), mask)
assert step.mask.shape == (64, 64)
from stma.cli import main
sys.argv = ["stma", "segment", "clip.mp4", "--mask=first.png", "--device=cpu"]
main()
sys.argv = ["eval.py", "method=copy", f"root={os.getcwd()}/clips", f"output={os.getcwd()}/out"]
runpy.run_path(EVAL, run_name="__main__")
"""


def test_the_library_the_command_and_an_evaluation_run(tmp_path: Path) -> None:
    write_clip_file(tmp_path / "clip.mp4", map(gradient, range(3)))
    save_mask(tmp_path / "first.png", box(8, 8, 24, 24, size=(48, 64)))
    write_clip(tmp_path / "clips", "a", dict.fromkeys(range(4), box(8, 8, 16, 16)), frames=4)
    program = f"{FIRST}{TAKEN}EVAL = {str(ROOT / 'eval.py')!r}\n{PROGRAM}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "clip-segmented" / "masks").iterdir())) == 3
    assert "| mean | 100.0 |" in done.stdout
