"""Imports between the rooms of the package flow one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stma

PACKAGE = Path(stma.__file__).parent
RECORDS = {"errors", "structures", "version"}  # these every room may know

# What each room may know beside the records. A new room or arrow is entered here on purpose.
MAY_KNOW = {
    "errors": set(),
    "structures": set(),
    "version": set(),
    "runtime": set(),
    "data": {"runtime"},
    "memory": {"runtime"},
    "model": {"runtime", "memory"},
    "training": {"runtime", "data", "memory", "model"},
    "inference": {"runtime", "memory", "model"},
    "video": {"runtime", "data", "model", "inference", "training"},
    "app": {"runtime", "data", "model", "inference", "video"},
    "evaluation": {"runtime", "data", "memory", "model", "inference", "training"},
    "compose": {"runtime", "data", "model", "training", "inference", "evaluation"},
    "__init__": {"model", "inference", "training"},
    "cli": {"runtime", "inference", "video", "app"},
    "__main__": {"cli"},
}


def imported(source: str) -> Iterator[str]:
    """Rooms that a module of the package imports, wherever in its text; ``__init__`` for the
    package itself."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "stma":
                room = rest.partition(".")[0]
                yield room if room in MAY_KNOW else "__init__"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def upward(room: str, source: str) -> set[str]:
    """Rooms that a module of this room imports but must not."""
    return set(imported(source)) - {room} - RECORDS - MAY_KNOW[room]


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} == set(MAY_KNOW)


@pytest.mark.parametrize("room", MAY_KNOW)
def test_no_import_runs_upward(room: str) -> None:
    found = {
        str(path.relative_to(PACKAGE)): rooms
        for path in PACKAGE.rglob("*.py")
        if room_of(path) == room and (rooms := upward(room, path.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    ("room", "line", "rooms"),
    [
        ("data", "from stma.model.stma import STMA", {"model"}),
        ("data", "def f():\n    import stma.model.stma", {"model"}),
        ("data", "from stma import inference, errors", {"inference"}),
        ("data", "from stma import load_model", {"__init__"}),
        ("errors", "from stma.runtime.device import autocast", {"runtime"}),
        ("training", "from stma.inference.segmenter import Segmenter", {"inference"}),
        ("evaluation", "from stma.inference.segmenter import Segmenter", set()),
        ("data", "import stmaller, torch\nfrom stma.data.images import read_mask", set()),
    ],
)
def test_an_upward_import_is_seen(room: str, line: str, rooms: set[str]) -> None:
    assert upward(room, line) == rooms


def test_none_knows_another_that_knows_it() -> None:
    """Taken together, the allowed arrows form no cycle."""
    order: list[str] = []
    while rest := set(MAY_KNOW) - set(order):
        free = sorted(room for room in rest if MAY_KNOW[room] <= set(order))
        assert free, f"each of {sorted(rest)} waits for another"
        order += free
