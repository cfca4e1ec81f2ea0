import ast
import subprocess
import sys
from pathlib import Path

import stma

PACKAGE = Path(stma.__file__).parent


def test_only_one_module_imports_it() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "cv2" for name in names):
                found.add(str(path.relative_to(PACKAGE)))
    assert found == {"runtime/opencv.py"}


def test_a_server_without_it_is_told_what_to_install(tmp_path) -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from stma.cli import main; main(['segment', 'a.mp4', '--mask=b.png'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "opencv-python-headless" in done.stderr


def test_the_library_alone_needs_none() -> None:
    code = "import sys; sys.modules['cv2'] = None\nfrom stma import Segmenter, load_model"
    subprocess.run([sys.executable, "-c", code], check=True)
