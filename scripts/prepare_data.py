"""Resize a dataset once, so that it loads faster: python scripts/prepare_data.py SOURCE TARGET

YouTube-VOS: prepare_data.py YouTubeVOS2019/train YouTubeVOS2019/train_480p
After an interruption, run the same command again.

Exit status: 0 if all files were made, 1 if some could not be read (they are named, and left out).
"""

import argparse
import os
import sys
from pathlib import Path

from stma.data.preparing import prepare
from stma.errors import input_errors_end_the_program


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
    done = prepare(arguments.source, arguments.target, arguments.short_side, arguments.workers)
    for problem in done.problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{done.written} files written, {done.kept} already there: {arguments.target}")
    sys.exit(1 if done.problems else 0)


if __name__ == "__main__":
    main()
