"""From weights to masks, scores, an archive and a page to look at."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stma.data.images import read_image, read_mask
from stma.data.pictures import contact_sheet, draw_overlay, save_picture, write_video
from stma.errors import InputError
from stma.evaluation.archive import check_archive, write_archive
from stma.evaluation.benchmarks import EvalClip, Listing, identity, list_clips
from stma.evaluation.eval_config import EvalConfig
from stma.evaluation.report import Result, spaced, write_report
from stma.evaluation.results import FRAME_SCORES, RESULTS, Evaluation, Speed, write_results
from stma.evaluation.running import ClipRun
from stma.evaluation.scoring import score_clips
from stma.evaluation.spreading import ClipWorker, Failure, run_clips
from stma.evaluation.tables import one_line
from stma.model.weights import find_weights, load_model, shipped_weights
from stma.runtime.device import reset_peak
from stma.runtime.distributed import Processes, join_processes
from stma.runtime.outputs import (
    EVALUATION,
    RECORD,
    check_apart,
    check_record,
    holding,
    prepare_output,
    replacing,
)
from stma.runtime.provenance import file_digest, versions

log = logging.getLogger(__name__)

SHEET_COLUMNS = 6
FILES = (RESULTS, FRAME_SCORES, "results.md", "results.csv", "scores.csv", "report.html")
FOLDERS = ("masks", "clips", "sheets", "videos")


def evaluate(config: EvalConfig) -> Evaluation | None:
    """Segment the clips that have no result yet; then score, archive and draw all of them.

    A clip that fails does not affect the others; see :attr:`Evaluation.faults`.

    Returns:
        The results; None in all processes of `torchrun` but the first.

    Raises:
        InputError: something that all clips need is wrong; the message names it.
    """
    with join_processes(config.device, backend="gloo") as (processes, device):
        reset_peak(device)
        listing, worker = processes.together(lambda: _look(config, device, processes))
        if config.fps_only:
            return _measure(config, listing, device, worker, processes)
        output = Path(config.output)
        with ExitStack() as stack:
            _begin(config, listing, output, processes, stack)
            ours = _digest((output / RECORD).read_bytes())
            done = [clip for clip in listing.clips if _done(output, clip, ours) is not None]
            processes.wait()
            if done:
                log.info("already done: %d of %d clips", len(done), len(listing.clips))
            todo = [clip for clip in listing.clips if clip not in done]
            faults = listing.faults | _segment(
                config, todo, output, ours, device, worker, processes
            )
            if not processes.is_main:
                return None
            return _conclude(config, listing.clips, output, ours, faults, processes)


def _look(
    config: EvalConfig, device: torch.device, processes: Processes
) -> tuple[Listing, ClipWorker | None]:
    """Find all that can be wrong before anything is written."""
    if processes.world_size > 1 and (config.workers > 1 or config.fps_only):
        raise InputError("under torchrun leave workers at 1, and fps_only=false")
    listing = list_clips(config.benchmark, config.root, config.split, config.clips)
    if not config.fps_only:
        root, rules, output = Path(config.root), config.benchmark, Path(config.output)
        check_apart(output, (root, root / rules.images, root / rules.masks))
        check_record(output, EVALUATION)
    if config.compare is not None:
        _check_comparable(config)
    if config.workers == 1:
        return listing, ClipWorker(config, device)
    if config.method == "stma":
        load_model(config.weights)  # fails now, not in every worker
    return listing, None


def _check_comparable(config: EvalConfig) -> None:
    assert config.compare is not None
    other = Result.load(Path(config.compare))
    if Path(config.compare).resolve() == Path(config.output).resolve():
        raise InputError(f"compare: {config.compare} is the output of this evaluation itself")
    theirs = other.summary["benchmark"], other.summary["config"]["split"]
    if theirs != (config.benchmark.name, config.split):
        raise InputError(
            f"compare: {config.compare} is a result on {theirs[0]}, split {theirs[1]}; this is "
            f"{config.benchmark.name}, split {config.split}"
        )


def _begin(
    config: EvalConfig, listing: Listing, output: Path, processes: Processes, stack: ExitStack
) -> None:
    """The first process claims the output; if it cannot, all of them stop."""

    def begin() -> None:
        if processes.is_main:
            stack.enter_context(holding(output))
            _prepare(config, output)
            _log_start(config, listing)

    processes.together(begin)


def _log_start(config: EvalConfig, listing: Listing) -> None:
    rules = config.benchmark
    log.info("%s, %s, %d clips: %s", rules.name, rules.frames, len(listing.clips), _title(config))
    if config.method == "stma" and config.weights in shipped_weights():
        log.info("weights: %s, shipped with stma (docs/model_card.md)", config.weights)
    for note in listing.notes:
        log.warning("%s", one_line(note))
    for name, fault in listing.faults.items():
        log.error("%s", one_line(f"{name}: {fault}"))


def _measure(
    config: EvalConfig,
    listing: Listing,
    device: torch.device,
    worker: ClipWorker | None,
    processes: Processes,
) -> Evaluation:
    """Measure only the speed."""
    _log_start(config, listing)
    runs, faults = [], dict(listing.faults)
    for clip, outcome in run_clips(config, listing.clips, None, device, worker, processes):
        if isinstance(outcome, Failure):
            faults[clip.name] = _tell(clip.name, outcome)
        else:
            runs.append(outcome)
    return _evaluation(config, runs, faults, processes)


def _segment(
    config: EvalConfig,
    clips: Sequence[EvalClip],
    output: Path,
    ours: str,
    device: torch.device,
    worker: ClipWorker | None,
    processes: Processes,
) -> dict[str, str]:
    """Segment clips and record each that is done; returns what went wrong, by clip."""
    failures: dict[str, Failure] = {}
    # Before they run: a file that changes meanwhile outdates the result.
    fingerprints = {}
    for clip in clips:
        try:
            fingerprints[clip.name] = clip.fingerprint()
        except OSError as error:
            failures[clip.name] = Failure(f"a file of the clip cannot be read ({error})")
    there = [clip for clip in clips if clip.name in fingerprints]
    for clip, outcome in run_clips(config, there, output / "masks", device, worker, processes):
        if isinstance(outcome, Failure):
            failures[clip.name] = outcome
            _tell(clip.name, outcome)
            continue
        record = {"run": asdict(outcome), "fingerprint": fingerprints[clip.name], "of": ours}
        path = _record(output, clip)
        try:
            with replacing(path, flush=False) as partial:
                partial.write_text(json.dumps(record))
        except OSError as error:
            failures[clip.name] = Failure(f"{path}: cannot be written ({error})")
            _tell(clip.name, failures[clip.name])
    everyone = processes.gather(failures)
    for others in everyone[1:]:  # whose logs are off
        for name, failure in others.items():
            _tell(name, failure)
    return {name: failure.message for each in everyone for name, failure in each.items()}


def _tell(name: str, failure: Failure) -> str:
    log.error("%s: %s", one_line(name), failure.details or one_line(failure.message))
    return failure.message


def _conclude(
    config: EvalConfig,
    clips: Sequence[EvalClip],
    output: Path,
    ours: str,
    faults: dict[str, str],
    processes: Processes,
) -> Evaluation:
    """Score, archive and draw what has been segmented."""
    records = {clip.name: _done(output, clip, ours) for clip in clips}
    runs = [run for run in records.values() if run is not None]
    segmented = [clip for clip in clips if records[clip.name] is not None]
    for name, run in records.items():
        if run is None and name not in faults:
            faults[name] = "its files have changed since it was segmented; run the command again"
            log.error("%s: %s", name, faults[name])
    scores, not_scored = _score(config, segmented, output)
    problems: list[str] = []
    archive = _make_archive(config, clips, output, faults, problems)
    faults = faults | not_scored
    result = _evaluation(
        config, runs, faults, processes, scores=scores, archive=archive, problems=problems
    )
    made_with = {
        "config": asdict(config),
        "identity": json.loads((output / RECORD).read_text()),
        "versions": versions(),
    }
    try:
        write_results(output, result, made_with)
    except OSError as error:
        problems.append(f"{output}: the results cannot be written ({error})")
        return result
    # Pictures come last: if they fail, everything else is already written.
    drawn = segmented if config.sheets or config.videos else []
    for clip in tqdm(drawn, unit="clip", desc="draw", disable=not drawn):
        try:
            draw_overlays(clip, output, sheet=config.sheets, movie=config.videos)
        except (InputError, OSError) as error:
            problems.append(f"{clip.name}: not drawn: {error}")
    if config.report:
        folders = [output] + ([] if config.compare is None else [Path(config.compare)])
        try:
            write_report(output / "report.html", [Result.load(f) for f in folders], segmented)
        except InputError as error:
            problems.append(str(error))
    for problem in problems:
        log.error("%s", one_line(problem))
    return result


def _score(
    config: EvalConfig, segmented: Sequence[EvalClip], output: Path
) -> tuple[list, dict[str, str]]:
    clips = [clip for clip in segmented if clip.can_be_scored]
    if left_out := len(segmented) - len(clips):
        log.info("%d clips not scored: frames without a mask, or fewer than 3 frames", left_out)
    scores, faults = score_clips(clips, output / "masks", len(os.sched_getaffinity(0)))
    scored = {score.clip for score in scores}
    for clip in clips:
        if clip.name not in scored | faults.keys():
            faults[clip.name] = "no object to score: none appears before the last two frames"
    for name, fault in faults.items():
        log.error("%s", one_line(f"{name}: {fault}"))
    return scores, faults


def _evaluation(
    config: EvalConfig,
    runs: list[ClipRun],
    faults: dict[str, str],
    processes: Processes,
    **more: Any,
) -> Evaluation:
    at_once = min(max(config.workers, processes.world_size), len(runs))
    speed = Speed.of(runs, at_once) if runs else None
    rules = config.benchmark
    more.setdefault("scores", [])
    return Evaluation(
        rules.name,
        rules.frames,
        _title(config),
        runs,
        faults=faults,
        speed=speed,
        speed_only=config.fps_only,
        **more,
    )


def _title(config: EvalConfig) -> str:
    """The method, as tables call it."""
    if config.method == "copy":
        return "copying the first mask"
    if config.method == "flow":
        return "carrying it along DIS flow"
    views = len(config.augment.scales) * (2 if config.augment.flip else 1)
    name = config.weights
    if name not in shipped_weights():
        weights = find_weights(name).resolve()
        name = f"{weights.parent.name}/{weights.stem}"
    return f"ours ({name}{'' if views == 1 else f', {views} views'})"


def _make_archive(
    config: EvalConfig,
    clips: Sequence[EvalClip],
    output: Path,
    faults: dict[str, str],
    problems: list[str],
) -> Path | None:
    if config.benchmark.archive is None:
        return None
    if faults or config.clips is not None:
        why = "some failed" if faults else "only some are named in clips"
        log.warning("no archive: the server wants every clip, and %s", why)
        return None
    path = _archive(config, output)
    try:
        write_archive(path, clips, output / "masks")
        problems += check_archive(path, clips, len(os.sched_getaffinity(0)))
    except InputError as error:
        problems.append(str(error))
    return path if path.is_file() else None


def _archive(config: EvalConfig, output: Path) -> Path:
    return output / f"{config.benchmark.name}.zip"


def _prepare(config: EvalConfig, output: Path) -> None:
    """Refuse the result of another run, or remove it; record which run this is."""
    ours = {
        "method": config.method,
        "weights": None if config.method != "stma" else file_digest(find_weights(config.weights)),
        "benchmark": identity(config.benchmark, config.root, config.split),
        "segmenter": asdict(config.segmenter) if config.method == "stma" else None,
        "augment": asdict(config.augment) if config.method == "stma" else None,
    }
    path = output / RECORD
    files = (*FILES, _archive(config, output).name)
    try:
        if not path.is_file():
            if found := [name for name in (*files, *FOLDERS) if (output / name).exists()]:
                raise InputError(
                    f"output: {output} holds {', '.join(found)}, but no {RECORD} that says what "
                    "made them; choose another output, or remove them"
                )
        elif config.overwrite:
            for name in FOLDERS:
                if (output / name).exists():
                    shutil.rmtree(output / name)
        elif differing := _differences(_read_run(path), ours):
            raise InputError(
                f"output: {output} holds another run's result; {'; '.join(differing)}. Choose "
                "another output, or overwrite=true to remove it"
            )
        prepare_output(output, "eval.log")
        for name in files:  # from an earlier end of this run, or another run
            (output / name).unlink(missing_ok=True)
        for name in FOLDERS:
            (output / name).mkdir(exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(ours, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"output: {output} cannot be written to ({error})") from error


def _read_run(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path}: damaged ({error}); overwrite=true removes the result it belongs to"
        ) from error


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Settings that differ, by their keys."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            difference
            for key in {**theirs, **ours}
            for difference in _differences(
                theirs.get(key), ours.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if theirs == ours else [f"{name} was {theirs}, is {ours}"]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _record(output: Path, clip: EvalClip) -> Path:
    return output / "clips" / f"{clip.name}.json"


def _done(output: Path, clip: EvalClip, ours: str) -> ClipRun | None:
    """The record of an earlier run of the clip, if its files and masks are still the same.

    Args:
        ours: digest of the evaluation that it must belong to.
    """
    try:
        record = json.loads(_record(output, clip).read_text())
        if (record["of"], record["fingerprint"]) != (ours, clip.fingerprint()):
            return None
        run = ClipRun(**record["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or damaged: the clip runs again
    masks = output / "masks" / clip.name
    there = {path.name for path in masks.iterdir()} if masks.is_dir() else set()
    return run if there.issuperset(f"{stem}.png" for stem in clip.output_stems) else None


def draw_overlays(clip: EvalClip, output: Path, *, sheet: bool, movie: bool) -> None:
    """Draw the masks of a segmented clip on its frames.

    ``sheets/<clip>.png`` shows frames from first to last and, if all have masks, the ground truth
    below; ``videos/<clip>.mp4`` shows all frames.
    """
    masks = output / "masks" / clip.name
    frames = {path.stem: path for path in clip.frames}

    def overlay(stem: str) -> np.ndarray:
        return draw_overlay(read_image(frames[stem]), read_mask(masks / f"{stem}.png")[0])

    if sheet:
        stems = spaced(clip.output_stems, SHEET_COLUMNS)
        title = f"{clip.name}: result at frames {', '.join(stems)}"
        rows = [(title, [overlay(stem) for stem in stems])]
        if clip.video.fully_annotated:
            truth = [draw_overlay(read_image(frames[s]), clip.read_mask(s)[0]) for s in stems]
            rows.append(("truth", truth))
        save_picture(output / "sheets" / f"{clip.name}.png", contact_sheet(rows))
    if movie:
        write_video(
            output / "videos" / f"{clip.name}.mp4", (overlay(stem) for stem in clip.output_stems)
        )
