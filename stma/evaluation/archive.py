"""Archives for the benchmarks' servers: byte-identical for the same masks, and checked locally."""

import io
import stat
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from stma.data.images import UNREADABLE, image_size
from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip
from stma.runtime.outputs import replacing
from stma.runtime.workers import available_cores

DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
INDEX_MODES = ("P", "L", "1")
SHOWN = 20  # problems of a kind


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


def check_archive(path: Path, clips: Sequence[EvalClip]) -> list[str]:
    """Everything that a server would refuse or score as wrong; empty if the archive is right.

    Raises:
        InputError: it is not a zip, or the benchmark itself cannot be read.
    """
    prefix = f"{clips[0].rules.archive}/" if clips[0].rules.archive else ""
    expected: dict[str, tuple[tuple[int, int], frozenset[int]]] = {}
    for clip in clips:
        holds = image_size(clip.frames[0]), frozenset({0, *clip.given_ids()})
        expected |= {f"{prefix}{clip.name}/{stem}.png": holds for stem in clip.output_stems}
    try:
        with zipfile.ZipFile(path) as archive:
            names = Counter(entry.filename for entry in archive.infolist() if not entry.is_dir())
            extra = [f"{n}: not a mask that is asked for" for n in names if n not in expected]
            twice = [f"{name}: twice" for name, count in names.items() if count > 1]
            missing = [f"{name}: missing" for name in expected if name not in names]
            with ThreadPoolExecutor(available_cores()) as pool:
                found = [name for name in expected if name in names]
                faults = pool.map(lambda name: _fault(archive, name, *expected[name]), found)
                wrong = [f"{n}: {fault}" for n, fault in zip(found, faults, strict=True) if fault]
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise InputError(f"{path}: not a complete zip ({error})") from error
    return [line for kind in (extra, twice, missing, wrong) for line in _shortened(kind)]


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], f"and {more} more of these"] if more > 0 else problems


def _fault(
    archive: zipfile.ZipFile, name: str, size: tuple[int, int], ids: frozenset[int]
) -> str | None:
    """What is wrong with a mask of the archive."""
    try:
        with Image.open(io.BytesIO(archive.read(name))) as image:
            kind, mode, mask = image.format, image.mode, np.asarray(image)
    except (zipfile.BadZipFile, RuntimeError, EOFError, *UNREADABLE) as error:
        return f"cannot be read ({error})"
    if kind != "PNG" or mode not in INDEX_MODES:
        return f"a {kind} of {mode}; it must be an index PNG of one channel"
    if mask.shape != size:
        shown = f"{mask.shape[1]} x {mask.shape[0]} pixels"
        return f"{shown}; the frames have {size[1]} x {size[0]}"
    if unknown := sorted(set(np.unique(mask).tolist()) - ids):
        given = ", ".join(map(str, sorted(ids - {0})))
        return f"holds the IDs {', '.join(map(str, unknown[:10]))}; only {given} were given"
    return None
