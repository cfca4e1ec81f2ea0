"""Check a dataset before anyone trains on it: python scripts/check_data.py ROOT

ROOT holds clips (JPEGImages and Annotations) or, with --dataset, what that block of configs/dataset
describes: --dataset ecssd. Settings of the block can be changed, and counts are compared with the
published ones: --dataset davis2017 split=2017/val published=30

Exit status: 0 if nothing is wrong (there may be warnings), 1 if something is.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from stma.compose import dataset_names, load_dataset_config
from stma.data.checking import check_dataset
from stma.errors import InputError, input_errors_end_the_program

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of the block: KEY=VALUE")
    parser.add_argument("--dataset", default="folder", choices=dataset_names(CONFIGS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", type=int, default=50, help="problems to print")
    arguments = parser.parse_intermixed_args()
    if arguments.workers < 1:
        parser.error("give 1 or more workers")
    if any(override.startswith("root=") for override in arguments.overrides):
        parser.error("the root is the first argument, not a setting")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    block = load_dataset_config(CONFIGS, arguments.dataset, arguments.overrides)
    if block.kind not in ("videos", "images"):
        raise InputError(f"{block.kind} clips are made on the fly: there is nothing to check")
    block = replace(block, root=str(arguments.root))
    videos, problems = check_dataset(block, arguments.workers)
    print(f"\n{block.root}: {len(videos)} clips or images")
    problems.sort(key=lambda problem: not problem.error)
    for problem in problems[: arguments.show]:
        print(f"  {'error' if problem.error else 'warning'}: {problem}")
    if len(problems) > arguments.show:
        print(f"  and {len(problems) - arguments.show} more; --show prints them")
    errors = sum(problem.error for problem in problems)
    print(f"{errors} errors" if errors else "no errors")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
