"""From weights to masks, scores, an archive and a page to look at."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stma.data.images import read_image, read_mask
from stma.device import device_name
from stma.distributed import Processes, join_processes
from stma.errors import InputError
from stma.inference.archive import check_archive, write_archive
from stma.inference.benchmarks import EvalClip, identity, list_clips
from stma.inference.config import EvalConfig
from stma.inference.report import Result, spaced, write_report
from stma.inference.results import FRAME_SCORES, RESULTS, Evaluation, Speed, write_results
from stma.inference.running import ClipRun
from stma.inference.scoring import score_clips
from stma.inference.spreading import ClipWorker, Failure, run_clips
from stma.outputs import holding, prepare_output, replacing
from stma.pictures import contact_sheet, draw_overlay, save_picture, write_video
from stma.provenance import versions

log = logging.getLogger(__name__)

SHEET_COLUMNS = 6
RUN = "run.json"  # which evaluation the folder holds
FILES = (RESULTS, FRAME_SCORES, "results.md", "results.csv", "scores.csv", "report.html")
FOLDERS = ("masks", "clips", "sheets", "videos")


def evaluate(config: EvalConfig) -> Evaluation | None:
    """Segment the clips that have no result yet; then score, archive and draw all of them.

    A clip that fails costs no other one; see :attr:`Evaluation.faults`.

    Returns:
        What came out; None in the processes of `torchrun` but the first.

    Raises:
        InputError: something that all clips need is wrong; the message names it.
    """
    with join_processes(config.device, backend="gloo") as (processes, device):
        if processes.world_size > 1 and config.workers > 1:
            raise InputError("workers: torchrun starts the processes already; leave workers at 1")
        clips, faults = list_clips(config.benchmark, config.root, config.split, config.clips)
        for name, fault in faults.items():
            log.error("%s: %s", name, fault)
        if config.compare is not None:
            _check_comparable(config)
        worker = ClipWorker(config, device)
        if config.fps_only:
            return _measure(config, clips, worker, processes, faults)
        # One process writes to the folder but for the masks; the others wait until it is ready.
        output = Path(config.output)
        hold: AbstractContextManager = holding(output) if processes.is_main else nullcontext()
        with hold:
            if processes.is_main:
                _prepare(config, output)
            processes.wait()
            done = {clip.name: run for clip in clips if (run := _done(output, clip)) is not None}
            processes.wait()
            if done:
                log.info("done already: %d of %d clips", len(done), len(clips))
            todo = [clip for clip in clips if clip.name not in done]
            faults |= _segment(config, todo, output, worker, processes)
            if not processes.is_main:
                return None
            return _conclude(config, clips, output, faults, worker.device)


def _check_comparable(config: EvalConfig) -> None:
    assert config.compare is not None
    other = Result.load(Path(config.compare))
    if Path(config.compare).resolve() == Path(config.output).resolve():
        raise InputError(f"compare: {config.compare} is the output of this evaluation itself")
    if other.summary["benchmark"] != config.benchmark.name:
        raise InputError(
            f"compare: {config.compare} is a result on {other.summary['benchmark']}, not on "
            f"{config.benchmark.name}"
        )


def _measure(
    config: EvalConfig,
    clips: Sequence[EvalClip],
    worker: ClipWorker,
    processes: Processes,
    faults: dict[str, str],
) -> Evaluation | None:
    runs = []
    for clip, outcome in run_clips(config, clips, None, worker, processes):
        if isinstance(outcome, Failure):
            faults[clip.name] = _tell(clip, outcome)
        else:
            runs.append(outcome)
    everyone = processes.gather((runs, faults))
    if not processes.is_main:
        return None
    runs = [run for each, _ in everyone for run in each]
    faults = {name: fault for _, each in everyone for name, fault in each.items()}
    return _evaluation(config, runs, faults, worker.device)


def _segment(
    config: EvalConfig,
    clips: Sequence[EvalClip],
    output: Path,
    worker: ClipWorker,
    processes: Processes,
) -> dict[str, str]:
    """Segment clips and note each that is done; gives what went wrong, by clip."""
    faults = {}
    # Before they run: a file that changes meanwhile makes the result an old one.
    fingerprints = {clip.name: clip.fingerprint() for clip in clips}
    for clip, outcome in run_clips(config, clips, output / "masks", worker, processes):
        if isinstance(outcome, Failure):
            faults[clip.name] = _tell(clip, outcome)
            continue
        record = asdict(outcome) | {"fingerprint": fingerprints[clip.name]}
        with replacing(_record(output, clip), flush=False) as partial:
            partial.write_text(json.dumps(record))
    return {name: fault for each in processes.gather(faults) for name, fault in each.items()}


def _tell(clip: EvalClip, failure: Failure) -> str:
    log.error("%s: %s", clip.name, failure.details or failure.message)
    return failure.message


def _conclude(
    config: EvalConfig,
    clips: Sequence[EvalClip],
    output: Path,
    faults: dict[str, str],
    device: torch.device,
) -> Evaluation:
    """Score, archive and draw what is there."""
    records = {clip.name: _done(output, clip) for clip in clips}
    runs = [run for run in records.values() if run is not None]
    segmented = [clip for clip in clips if records[clip.name] is not None]
    scored = [clip for clip in segmented if clip.can_be_scored]
    if left_out := [clip.name for clip in segmented if not clip.can_be_scored]:
        log.info("not scored, for want of a mask for every frame: %s", ", ".join(left_out))
    scores, not_scored = score_clips(scored, output / "masks", os.cpu_count() or 1)
    for name, fault in not_scored.items():
        log.error("%s: %s", name, fault)
    result = _evaluation(
        config,
        runs,
        faults | not_scored,
        device,
        scores=scores,
        **_make_archive(config, clips, output, faults),
    )
    made_with = {
        "config": asdict(config),
        "identity": json.loads((output / RUN).read_text()),
        "versions": versions(),
    }
    write_results(output, result, made_with)
    drawn = tqdm(segmented, unit="clip", desc="draw", disable=not (config.sheets or config.videos))
    for clip in drawn:
        draw_clip(clip, output, sheet=config.sheets, movie=config.videos)
    if config.report:
        folders = [output] + ([] if config.compare is None else [Path(config.compare)])
        write_report(output / "report.html", [Result.load(f) for f in folders], segmented)
    return result


def _evaluation(
    config: EvalConfig,
    runs: list[ClipRun],
    faults: dict[str, str],
    device: torch.device,
    **more: Any,
) -> Evaluation:
    speed = Speed.of(runs, device_name(device)) if runs else None
    rules = config.benchmark
    more.setdefault("scores", [])
    return Evaluation(
        rules.name, rules.frames, _title(config), runs, faults=faults, speed=speed, **more
    )


def _title(config: EvalConfig) -> str:
    """The method, as tables call it."""
    if config.method == "copy":
        return "copying the first mask"
    if config.method == "flow":
        return "carrying it along DIS flow"
    assert config.weights is not None
    views = len(config.augment.scales) * (2 if config.augment.flip else 1)
    weights = Path(config.weights).resolve()
    name = f"{weights.parent.name}/{weights.stem}"
    return f"ours ({name}{'' if views == 1 else f', {views} views'})"


def _make_archive(
    config: EvalConfig, clips: Sequence[EvalClip], output: Path, faults: dict[str, str]
) -> dict[str, Any]:
    path = output / f"{config.benchmark.name}.zip"
    path.unlink(missing_ok=True)
    if config.benchmark.archive is None:
        return {}
    if faults or config.clips is not None:
        why = "clips failed" if faults else "clips names some clips only"
        log.warning("no archive: the server wants every clip, and %s", why)
        return {}
    write_archive(path, clips, output / "masks")
    return {
        "archive": path,
        "archive_problems": check_archive(path, clips, os.cpu_count() or 1),
    }


def _prepare(config: EvalConfig, output: Path) -> None:
    """Refuse the result of another run, or remove it; note which this one is."""
    ours = {
        "method": config.method,
        "weights": None if config.method != "stma" else _sha256(Path(config.weights or "")),
        "benchmark": identity(config.benchmark, config.root, config.split),
        "segmenter": asdict(config.segmenter) if config.method == "stma" else None,
        "augment": asdict(config.augment) if config.method == "stma" else None,
    }
    path = output / RUN
    if config.overwrite:
        for name in (*FILES, RUN, f"{config.benchmark.name}.zip"):
            (output / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(output / name, ignore_errors=True)
    elif path.is_file():
        theirs = json.loads(path.read_text())
        if differing := _differences(theirs, ours):
            raise InputError(
                f"output: {output} holds another run's result; {'; '.join(differing)}. Choose "
                "another output, or overwrite=true to remove it"
            )
    elif found := [name for name in (*FILES, *FOLDERS) if (output / name).exists()]:
        raise InputError(
            f"output: {output} holds {', '.join(found)} of something else; choose another output, "
            "or overwrite=true to remove them"
        )
    prepare_output(output, "eval.log")
    for name in FILES:  # of an earlier end of this run
        (output / name).unlink(missing_ok=True)
    for name in FOLDERS:
        (output / name).mkdir(exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(ours, indent=2) + "\n")


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Settings that are not equal, by their keys."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            difference
            for key in {**theirs, **ours}
            for difference in _differences(
                theirs.get(key), ours.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if theirs == ours else [f"{name} was {theirs}, is {ours}"]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _record(output: Path, clip: EvalClip) -> Path:
    return output / "clips" / f"{clip.name}.json"


def _done(output: Path, clip: EvalClip) -> ClipRun | None:
    """The record of an earlier run of the clip, if its files and its masks are still the same."""
    path = _record(output, clip)
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    if record.pop("fingerprint") != clip.fingerprint():
        return None
    masks = output / "masks" / clip.name
    whole = masks.is_dir() and {p.name for p in masks.iterdir()} == {
        f"{stem}.png" for stem in clip.output_stems
    }
    return ClipRun(**record) if whole else None


def draw_clip(clip: EvalClip, output: Path, *, sheet: bool, movie: bool) -> None:
    """Draw overlays of a segmented clip.

    ``sheets/<clip>.png`` shows frames from first to last and, where there are masks for all, the
    truth below; ``videos/<clip>.mp4`` all frames.
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
