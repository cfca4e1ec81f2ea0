"""Check a dataset before anyone trains on it: python scripts/check_data.py ROOT

ROOT is a set of clips (JPEGImages and Annotations), of images with masks, or a folder of such sets.
With --dataset, it is checked as that block of configs/dataset describes it, whose settings can be
changed: --dataset davis2017 split=2017/val published=davis2017:val

Exit status: 0 if nothing is wrong (there may be warnings), 1 if something is.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from stma.compose import dataset_names, load_dataset_config
from stma.data.checking import Check, check_dataset, check_root
from stma.errors import InputError, input_errors_end_the_program

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of the block, with --dataset")
    parser.add_argument("--dataset", help=f"one of {', '.join(dataset_names(CONFIGS))}")
    parser.add_argument("--report", type=Path, help="write the findings here, as JSON")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", type=int, default=50, help="problems to print per set")
    arguments = parser.parse_intermixed_args()
    if arguments.workers < 1:
        parser.error("give 1 or more workers")
    if arguments.report is not None and not arguments.report.parent.is_dir():
        parser.error(f"--report: {arguments.report.parent} is not a folder")
    if any(override.startswith("root=") for override in arguments.overrides):
        parser.error("the root is the first argument, not a setting")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if arguments.dataset is None:
        if arguments.overrides:
            parser.error("settings need --dataset")
        checks = check_root(arguments.root, known_layouts(), arguments.workers)
    else:
        block = load_dataset_config(CONFIGS, arguments.dataset, arguments.overrides)
        if block.kind == "procedural":
            raise InputError("procedural clips are made on the fly: there is nothing to check")
        checks = [check_dataset(replace(block, root=str(arguments.root)), arguments.workers)]
    for check in checks:
        show(check, arguments.show)
    errors = sum(check.errors for check in checks)
    if arguments.report is not None:
        report = {"errors": errors, "checks": [check.to_json() for check in checks]}
        arguments.report.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{errors} errors" if errors else "no errors")
    sys.exit(1 if errors else 0)


def known_layouts() -> list:
    """The layouts of all still-image sets in configs/dataset, each once."""
    blocks = [load_dataset_config(CONFIGS, name) for name in dataset_names(CONFIGS)]
    layouts = [layout for block in blocks for layout in block.layouts]
    return [layout for i, layout in enumerate(layouts) if layout not in layouts[:i]]


def show(check: Check, limit: int) -> None:
    print(f"\n{check.root} ({check.name}): {check.clips} clips or images, {check.files} files")
    problems = sorted(check.problems, key=lambda problem: not problem.error)
    for problem in problems[:limit]:
        print(f"  {'error' if problem.error else 'warning'}: {problem}")
    if len(problems) > limit:
        print(f"  and {len(problems) - limit} more; see them all with --show or --report")


if __name__ == "__main__":
    main()
