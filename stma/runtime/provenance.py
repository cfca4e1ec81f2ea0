"""What a result was made with: versions, the code's revision, the command."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stma.version import __version__


def versions() -> dict[str, Any]:
    """What the run was made with."""
    return {
        "stma": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "git": _git_revision(),
        "command": list(sys.argv),
    }


def _git_revision() -> str | None:
    """The commit of the code, with ``-dirty`` if files differ from it; None outside a checkout."""
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
