"""What a folder holds the result of, how this run differs from it, and what is done.

A record is a small JSON file beside a result. An output folder has one, ``run.json``; so has every
part that is done on its own: a stage of a training, a clip of an evaluation. A result may be
continued if its kind and identity are this run's; otherwise the folder is refused, or started over.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stma.errors import InputError
from stma.runtime.outputs import replacing

RECORD = "run.json"
TRAINING, STAGE = "a training", "a stage of a training"
EVALUATION, CLIP = "an evaluation", "a clip of an evaluation"
VIDEO = "a segmented video"
TAIL = 1 << 16  # bytes


class DamagedRecord(InputError):
    """A record cannot be read, or another version of stma wrote it."""


@dataclass(frozen=True)
class Record:
    """What a result is of. All values are as JSON returns them.

    Attributes:
        kind: in words, such as ``TRAINING``.
        identity: everything that the result depends on.
        done: it is complete.
        details: what else is worth keeping.
    """

    kind: str
    identity: dict[str, Any]
    done: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("identity", "details"):
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))

    @property
    def digest(self) -> str:
        """Of the kind and the identity."""
        text = json.dumps([self.kind, self.identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, path: Path, *, flush: bool = True) -> None:
        """Raises :class:`OSError`.

        Args:
            flush: see :func:`~stma.runtime.outputs.replacing`.
        """
        with replacing(path, flush=flush) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> Record | None:
    """The record in a file; None if there is no file.

    Raises:
        DamagedRecord: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"kind": str, "identity": dict, "done": bool, "details": dict}
        if not isinstance(content, dict) or {k: type(v) for k, v in content.items()} != kinds:
            raise ValueError("it holds something else")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DamagedRecord(f"{path}: damaged, or by another version of stma ({error})") from error
    return Record(**content)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = (), path: str = ""
) -> list[str]:
    """Settings that differ, a line for each, by their full keys.

    Args:
        ignored: keys that may differ: the last part, at any depth, or all of it.
    """
    found = []
    for key in {**before, **now}:
        a, b = before.get(key), now.get(key)
        if key in ignored or f"{path}{key}" in ignored:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, ignored, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {a} there, {b} here")
    return found


def earlier_run(
    folder: Path, record: Record, ours: Iterable[str] = (), *, overwrite: bool, over: str
) -> Record | None:
    """What an earlier start of the same run has recorded in its output folder; None if there is
    nothing. Changes nothing.

    Args:
        ours: names in the folder of what such runs write.
        overwrite: start over, even if the folder holds another run's result (of the same kind).
        over: how the user asks for that, for messages.

    Raises:
        InputError: the folder holds something else; the message says what.
    """
    held = [name for name in ours if _is_filled(folder / name)]
    try:
        earlier = read_record(folder / RECORD)
    except DamagedRecord as error:
        if not overwrite:
            raise DamagedRecord(f"output: {error}; choose another output, or {over}") from error
        return None
    if earlier is None:
        if held:
            raise InputError(
                f"output: {folder} holds {', '.join(held)}, but no {RECORD} that says what made "
                "them; choose another output, or remove them"
            )
        return None
    if earlier.kind != record.kind:
        raise InputError(
            f"output: {folder} holds {earlier.kind} ({RECORD} says so); choose another output"
        )
    found = differences(earlier.identity, record.identity)
    if found and held and not overwrite:
        raise InputError(
            f"output: {folder} holds another run's result ({'; '.join(found)}); choose another "
            f"output, or {over}"
        )
    return None if found or overwrite else earlier


def begin(
    folder: Path, record: Record, ours: Iterable[str], *, overwrite: bool, over: str
) -> Record | None:
    """Record a run in its output folder, which must be locked. Unless the same run has begun there
    and is not to be started over, what it holds of ``ours`` is removed first.

    Args and returns: see :func:`earlier_run`.

    Raises:
        InputError: also if the folder cannot be written to.
    """
    ours = list(ours)
    earlier = earlier_run(folder, record, ours, overwrite=overwrite, over=over)
    try:
        if earlier is None:
            for name in ours:
                _remove(folder / name)
            record.write(folder / RECORD)
    except OSError as error:
        raise InputError(f"output: {folder} cannot be written to ({error})") from error
    return earlier


def _is_filled(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """Of a file's content: the first 16 digits of its SHA-256."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def files_state(paths: Iterable[Path], *, times: bool) -> str:
    """Changes when a file is renamed, or what is in it changes, without reading large ones.

    Args:
        times: compare sizes and times of modification; otherwise sizes and what the files end with,
            which a copy has, too.

    Raises:
        OSError: a file does not exist.
    """
    digest = hashlib.sha256()
    for path in paths:
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} ".encode("utf-8", "surrogateescape"))
        if times:
            digest.update(str(state.st_mtime_ns).encode())
            continue
        with path.open("rb") as file:
            file.seek(max(0, state.st_size - TAIL))
            digest.update(file.read())
    return digest.hexdigest()[:16]
