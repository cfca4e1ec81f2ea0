"""Archives for the benchmarks' servers: byte-identical for the same masks, and checked locally."""

import io
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stma.data.images import UNREADABLE, image_size
from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip
from stma.runtime.outputs import replacing
from stma.runtime.workers import worker_map

PNG = b"\x89PNG\r\n\x1a\n"
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
INDEX_MODES = ("P", "L", "1")


def write_archive(path: Path, clips: Sequence[EvalClip], mask_root: Path) -> None:
    """Put the masks that a benchmark asks for into a zip.

    The same masks give the same bytes: entries are sorted, dated 1980 and stored as they are (a PNG
    is already compressed).

    Raises:
        InputError: a mask is missing, or the disk is full.
    """
    prefix = clips[0].rules.archive
    assert prefix is not None
    try:
        with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
            for clip in sorted(clips, key=lambda clip: clip.name):
                for stem in sorted(clip.output_stems):
                    name = f"{clip.name}/{stem}.png"
                    entry = zipfile.ZipInfo("/".join(filter(None, (prefix, name))), DATE)
                    entry.create_system = 3  # Unix, on any system
                    entry.external_attr = (stat.S_IFREG | 0o644) << 16
                    archive.writestr(entry, (mask_root / name).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: the archive cannot be written ({error})") from error


@dataclass(frozen=True)
class Expected:
    """What an archive must hold for one clip.

    Attributes:
        folder: of its masks in the archive.
        stems: of its masks.
        size: height and width.
        ids: that were given, including 0.
    """

    clip: str
    folder: str
    stems: frozenset[str]
    size: tuple[int, int]
    ids: frozenset[int]


def check_archive(path: Path, clips: Sequence[EvalClip], processes: int = 1) -> list[str]:
    """Everything that a server would refuse or score as wrong; empty if the archive is right.

    Raises:
        InputError: it is not a zip, or the benchmark itself cannot be read.
    """
    prefix = clips[0].rules.archive or ""
    expected = {clip.name: _expected(clip, prefix) for clip in clips}
    by_folder = {each.folder: each for each in expected.values()}
    found: dict[str, list[str]] = {name: [] for name in expected}
    problems: list[str] = []
    for entry in _entries(path):
        if entry.is_dir():
            if not any(f"{folder}/".startswith(entry.filename) for folder in by_folder):
                problems.append(f"{entry.filename}: a folder that does not belong here")
            continue
        folder, _, name = entry.filename.rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        owner = by_folder.get(folder)
        if owner is None or dot + suffix != ".png" or stem not in owner.stems:
            problems.append(f"{entry.filename}: does not belong here{_hint(entry.filename, owner)}")
        elif stem in found[owner.clip]:
            problems.append(f"{entry.filename}: twice")
        else:
            found[owner.clip].append(stem)
    problems = _shortened(problems, "entries that do not belong here")
    present = []
    for name, each in expected.items():
        missing = sorted(each.stems - set(found[name]))
        if not found[name]:
            problems.append(f"{each.folder}: the clip is missing ({len(missing)} masks)")
        elif missing:
            shown = ", ".join(f"{stem}.png" for stem in missing[:5])
            more = f" and {len(missing) - 5} more" if missing[5:] else ""
            problems.append(f"{each.folder}: missing: {shown}{more}")
        if found[name]:
            present.append((each, sorted(found[name])))
    processes = max(1, min(processes, len(present)))
    # A few batches per process: each opens the archive anew.
    batches = [present[start :: 4 * processes] for start in range(4 * processes)]
    with worker_map(processes) as spread:
        results = spread(_check_clips, [path] * len(batches), batches)
        checked = {name: faults for result in results for name, faults in result}
    return problems + [fault for name in found for fault in checked.get(name, ())]


def _expected(clip: EvalClip, prefix: str) -> Expected:
    return Expected(
        clip.name,
        f"{prefix}/{clip.name}" if prefix else clip.name,
        frozenset(clip.output_stems),
        image_size(clip.frames[0]),
        frozenset({0, *clip.given_ids()}),
    )


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    if not path.is_file():
        raise InputError(f"{path}: no such archive")
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise InputError(f"{path}: not a complete zip ({error})") from error


def _hint(name: str, owner: Expected | None) -> str:
    if "__MACOSX" in name or name.rpartition("/")[2].startswith("."):
        return " (left by a file manager; make the zip on the command line)"
    if owner is None:
        return " (not a clip of the benchmark, or at the wrong depth)"
    return " (not a frame that is asked for)"


def _shortened(problems: list[str], what: str, limit: int = 20) -> list[str]:
    if len(problems) <= limit:
        return problems
    return [*problems[:limit], f"and {len(problems) - limit} more {what}"]


def _check_clips(
    path: Path, batch: Sequence[tuple[Expected, list[str]]]
) -> list[tuple[str, list[str]]]:
    """What is wrong with the masks of some clips, by clip."""
    checked = []
    with zipfile.ZipFile(path) as archive:
        for expected, stems in batch:
            problems = []
            for stem in stems:
                name = f"{expected.folder}/{stem}.png"
                if fault := _check_mask(archive, name, expected):
                    problems.append(f"{name}: {fault}")
            what = f"faulty masks of {expected.clip}"
            checked.append((expected.clip, _shortened(problems, what, limit=5)))
    return checked


def _check_mask(archive: zipfile.ZipFile, name: str, expected: Expected) -> str | None:
    try:
        data = archive.read(name)
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
    ) as error:
        return f"cannot be unpacked ({error})"
    if not data.startswith(PNG):
        return "not a PNG"
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, size = image.mode, (image.height, image.width)
            mask = np.asarray(image)
    except UNREADABLE as error:
        return f"cannot be read ({error})"
    if mode not in INDEX_MODES:
        return f"the mask is {mode}; it must be an index PNG of one channel"
    if size != expected.size:
        return (
            f"{size[1]} x {size[0]} pixels; the frames have {expected.size[1]} x {expected.size[0]}"
        )
    unknown = sorted(set(np.unique(mask).tolist()) - expected.ids)
    if unknown:
        given = ", ".join(str(i) for i in sorted(expected.ids - {0}))
        return f"holds the IDs {', '.join(map(str, unknown[:10]))}; only {given} were given"
    return None
