"""Which packages a machine lacks, and how to carry them there: python scripts/wheels.py

For machines without a network, such as those that lend a GPU. Run it there (it needs Python alone);
then run the commands that it prints on a machine with a network and the same Python, copy the
folder and install it.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
# Their own dependencies that are seldom installed. They have no wheel, so one is built.
ALONG = {"hydra-core": ["antlr4-python3-runtime==4.9.3", "omegaconf>=2.3"]}
FOR_TESTS = ["pytest>=8"]


def requirements(text: str) -> list[str]:
    """The dependencies in a pyproject.toml (read by hand, as Python 3.10 has no tomllib)."""
    block = text.split("\ndependencies = [", 1)[1].split("]", 1)[0]
    return re.findall(r'"([^"]+)"', block) + FOR_TESTS


def is_missing(requirement: str) -> bool:
    try:
        version(re.split(r"[<>=!~ ]", requirement)[0])
    except PackageNotFoundError:
        return True
    return False


def main() -> None:
    missing = [each for each in requirements(PROJECT.read_text()) if is_missing(each)]
    for name in list(missing):
        missing += [each for each in ALONG.get(re.split("[<>=]", name)[0], []) if is_missing(each)]
    missing = list(dict.fromkeys(missing))
    if not missing:
        print("nothing is missing")
        return
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    quoted = " ".join(f"'{each}'" for each in missing)
    print(f"missing here: {', '.join(missing)}\n")
    print(f"elsewhere, with Python {python} on the same kind of machine:")
    print(f"  python{python} -m pip wheel --no-deps --wheel-dir wheels {quoted}")
    print("here, with that folder:")
    print(f"  python{python} -m pip install --no-index --no-deps wheels/*.whl")


if __name__ == "__main__":
    main()
