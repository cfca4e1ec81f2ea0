"""Resize a dataset once, so that it loads faster: python scripts/prepare_data.py SOURCE TARGET

YouTube-VOS: prepare_data.py YouTubeVOS2019/train YouTubeVOS2019/train_480p
Images are averaged, masks take the nearest pixel; other files are copied. After an interruption,
run the same command again: what is complete is kept.

Exit status: 0 if all files were made, 1 if some could not be read (they are named, and left out).
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from stma.data.images import IMAGE_SUFFIXES, UNREADABLE, open_image
from stma.data.video_folder import is_hidden
from stma.errors import InputError, input_errors_end_the_program
from stma.runtime.outputs import full_disks_told, remove_partials, replacing
from stma.runtime.workers import worker_map


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with images and masks, at any depth")
    parser.add_argument("target", type=Path, help="folder for the copy")
    parser.add_argument("--short-side", type=int, default=480, help="pixels, at most")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if min(arguments.short_side, arguments.workers) < 1:
        parser.error("give 1 or more pixels and workers")
    source, target = arguments.source, arguments.target
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise InputError(f"{target}: is inside {source}; give another folder for the copy")
    if not (files := list(find_files(source))):
        raise InputError(f"{source}: holds no files, so there is nothing to prepare")
    copy = partial(copy_file, source, target, arguments.short_side)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target}: cannot be written to ({error})") from error
    with full_disks_told(target), worker_map(arguments.workers) as spread:
        remove_partials(target)
        missing = [file for file in files if not (target / file).exists()]
        work = spread(copy, missing, chunksize=16)
        faults = [fault for fault in tqdm(work, total=len(missing), unit="file") if fault]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    written, kept = len(missing) - len(faults), len(files) - len(missing)
    print(f"{written} files written, {kept} already there: {target}")
    sys.exit(1 if faults else 0)


def find_files(source: Path) -> Iterator[Path]:
    """All files below a folder, relative to it, without hidden ones; links are followed."""
    visited: set[Path] = set()  # links may lead in circles
    for folder, subfolders, names in os.walk(source, followlinks=True):
        seen, real = len(visited), Path(folder).resolve()
        visited.add(real)
        if len(visited) == seen:
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        yield from (
            Path(folder, name).relative_to(source) for name in sorted(names) if not is_hidden(name)
        )


def copy_file(source: Path, target: Path, short_side: int, file: Path) -> str | None:
    """Make one file, which has its name only once it is complete.

    Returns:
        What is wrong with the source, if anything is.
    """
    if not (source / file).is_file():
        return f"{source / file}: not a regular file; left out"
    data = None
    if file.suffix.lower() in IMAGE_SUFFIXES:
        try:
            data = resized(source / file, short_side)
        except UNREADABLE as error:
            return f"{source / file}: cannot be read ({error}); left out"
    (target / file).parent.mkdir(parents=True, exist_ok=True)
    with replacing(target / file, flush=False) as unfinished:
        if data is None:
            shutil.copyfile(source / file, unfinished)
        else:
            unfinished.write_bytes(data)
    return None


def resized(path: Path, short_side: int) -> bytes | None:
    """The file's new content; None if it keeps its size."""
    with open_image(path) as image:
        scale = min(1.0, short_side / min(image.size))
        size = round(image.width * scale), round(image.height * scale)
        if size == image.size:
            image.load()  # an incomplete file is found now, not in training
            return None
        options = {"exif": image.getexif().tobytes()}  # it may hold the orientation
        if image.format == "JPEG":
            image.draft("RGB", (2 * size[0], 2 * size[1]))
        is_mask = image.format == "PNG" and (
            image.mode in ("P", "L", "1", "I;16") or image.getcolors(2) is not None
        )
        picture = image if is_mask or image.mode in ("RGB", "RGBA") else image.convert("RGB")
        method = Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC
        content = BytesIO()
        picture.resize(size, method).save(content, format=image.format, quality=95, **options)
        return content.getvalue()


if __name__ == "__main__":
    main()
