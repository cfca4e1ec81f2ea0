"""Score the masks of any method: python scripts/score.py TRUTH RESULTS

Both are folders of clips, <clip>/<frame>.png. With --official, DAVIS's own evaluator runs too and
every figure is compared: pip install -e '.[official]', or PYTHONPATH=CHECKOUT of
davisvideochallenge/davis2017-evaluation, with pandas and scipy installed.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from stma.data.video_folder import find_video, subfolders
from stma.errors import InputError, input_errors_end_the_program
from stma.evaluation.benchmarks import BenchmarkConfig, EvalClip
from stma.evaluation.results import Evaluation
from stma.evaluation.scoring import ObjectScore, score_clips

DAVIS = BenchmarkConfig(name="davis", objects="first_mask", void=255)


@input_errors_end_the_program()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("truth", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--any-frame", action="store_true", help="objects may enter later")
    parser.add_argument("--official", action="store_true", help="compare with DAVIS's evaluator")
    arguments = parser.parse_args()
    rules = BenchmarkConfig() if arguments.any_frame else DAVIS
    for folder in (arguments.truth, arguments.results):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    if not subfolders(arguments.truth):
        raise InputError(f"{arguments.truth}: holds no clips, so there is nothing to score")
    folders = [arguments.truth / name for name in subfolders(arguments.truth)]
    clips = [
        EvalClip(find_video(folder, folder), rules) for folder in folders
    ]  # masks serve as frames
    if missing := [c.name for c in clips if not (arguments.results / c.name).is_dir()]:
        raise InputError(f"{arguments.results}: no results for {', '.join(missing)}")
    scores, faults = score_clips(clips, arguments.results, os.cpu_count() or 1)
    result = Evaluation(rules.name, "all frames", "these", [], scores, faults, None)
    if scores:
        print(result.clip_table().markdown())
    for fault in faults.values():
        print(fault)
    if arguments.official:
        compare_with_official(arguments.truth, arguments.results, scores)
    if faults:
        raise SystemExit(1)


def compare_with_official(truth: Path, results: Path, scores: list[ObjectScore]) -> None:
    """Print the largest difference of every figure."""
    try:
        from davis2017.evaluation import DAVISEvaluation
    except ImportError as error:
        raise InputError(f"davis2017-evaluation is not installed ({error}); see --help") from error
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("JPEGImages/480p", "Annotations", "ImageSets/2017"):
            (root / part).mkdir(parents=True)
        (root / "Annotations" / "480p").symlink_to(truth.resolve())
        clips = dict.fromkeys(score.clip for score in scores)
        (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(clips))
        official = DAVISEvaluation(str(root), "semi-supervised", "val", codalab=True)
        try:
            theirs = official.evaluate(str(results))
        except SystemExit as error:  # with status 0, after printing why
            raise InputError("DAVIS's evaluator refuses these masks; see above") from error
    own = {(s.clip, s.object_id): s for s in scores}
    print(f"\n{len(own)} objects of {len(clips)} clips, official and ours, in [0, 1]:")
    for letter in ("J", "F"):
        names = list(theirs[letter]["M_per_object"])
        assert len(names) == len(own), f"{len(names)} objects there, {len(own)} here"
        measures = [
            getattr(own[name.rpartition("_")[0], int(name.rpartition("_")[2])], letter.lower())
            for name in names
        ]
        for figure, what in (("M", "mean"), ("R", "recall"), ("D", "decay")):
            ours = np.array([getattr(measure, what) / 100 for measure in measures])
            values = np.array(theirs[letter][figure])
            difference = np.abs(ours - values).max()
            print(
                f"  {letter} {what:6}: means {values.mean():.6f} and {ours.mean():.6f}, "
                f"largest difference of an object {difference:.1e}"
            )


if __name__ == "__main__":
    main()
