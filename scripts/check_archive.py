"""What a benchmark's server would refuse: python scripts/check_archive.py ARCHIVE.zip BENCHMARK

This needs the benchmark's own files, to know its clips, frames, sizes and objects. Overrides as for
eval.py: datasets=..., root=..., split=...
"""

import argparse
from pathlib import Path

from stma.compose import benchmark_names, load_resolved
from stma.errors import InputError, input_errors_end_the_program
from stma.evaluation.archive import check_archive
from stma.evaluation.benchmarks import list_clips
from stma.evaluation.eval_config import parse_eval_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("benchmark", help=", ".join(benchmark_names(CONFIGS)))
    parser.add_argument("overrides", nargs="*", help="datasets=..., root=..., split=...")
    arguments = parser.parse_args()
    if arguments.benchmark not in (known := benchmark_names(CONFIGS)):
        raise InputError(f"no benchmark {arguments.benchmark}; there are {', '.join(known)}")
    chosen = [f"benchmark={arguments.benchmark}", "method=copy", *arguments.overrides]
    config = parse_eval_config(load_resolved(CONFIGS, "eval", chosen))
    listing = list_clips(config.benchmark, config.root, config.split)
    clips = listing.clips
    if listing.faults:
        faults = "; ".join(listing.faults.values())
        raise InputError(f"the benchmark's own files are faulty: {faults}")
    for note in listing.notes:
        print(note)
    problems = check_archive(arguments.archive, clips)
    for problem in problems:
        print(problem)
    masks = sum(len(clip.output_stems) for clip in clips)
    if problems:
        raise SystemExit(f"{arguments.archive}: {len(problems)} problems")
    print(f"{arguments.archive}: fine, {masks} masks of {len(clips)} clips")


if __name__ == "__main__":
    main()
