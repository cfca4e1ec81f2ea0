"""From weights to masks, scores, an archive and a page to look at."""

import logging
import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from stma.errors import InputError
from stma.evaluation.archive import check_archive, write_archive
from stma.evaluation.benchmarks import EvalClip, Listing, list_clips
from stma.evaluation.eval_config import EvalConfig
from stma.evaluation.output import Output
from stma.evaluation.report import Result, draw_video, write_report
from stma.evaluation.results import Evaluation, Speed, write_results
from stma.evaluation.running import ClipRun, run_clip
from stma.evaluation.scoring import ObjectScore, score_clips
from stma.evaluation.tables import one_line
from stma.inference.augmentation import AugmentedSegmenter
from stma.inference.baselines import CopyFirstMask, FlowWarp
from stma.inference.segmenter import Segmenter, VideoSegmenter
from stma.model.weights import find_weights, load_model, shipped_weights
from stma.runtime.device import reset_peak
from stma.runtime.distributed import Processes, join_processes
from stma.runtime.outputs import check_apart, holding
from stma.runtime.provenance import versions
from stma.runtime.workers import available_cores

log = logging.getLogger(__name__)


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
        output = None if config.fps_only else processes.together(lambda: Output(config))
        device = device if config.method == "stma" else torch.device("cpu")
        listing, method = processes.together(lambda: _check(config, output, device, processes))
        clips, faults = listing.clips, listing.faults
        with ExitStack() as stack:

            def begin() -> None:
                if output is not None and processes.is_main:
                    stack.enter_context(holding(output.folder))
                    output.begin()
                _log_start(config, listing)

            processes.together(begin)  # if the first process cannot, all stop
            todo = [clip for clip in clips if output is None or output.run_of(clip) is None]
            processes.wait()
            if done := len(clips) - len(todo):
                log.info("already done: %d of %d clips", done, len(clips))
            runs, failed = _segment(todo, output, device, method, processes)
            if output is None:
                return _evaluation(config, runs, faults | failed)
            if not processes.is_main:
                return None
            return _conclude(config, clips, output, faults | failed, processes)


def _check(
    config: EvalConfig, output: Output | None, device: torch.device, processes: Processes
) -> tuple[Listing, Callable[[], VideoSegmenter]]:
    """Find all that can be wrong before anything is written."""
    if processes.world_size > 1 and config.fps_only:
        raise InputError("fps_only: processes slow one another down; run it without torchrun")
    listing = list_clips(config.benchmark, config.root, config.split, config.clips)
    if output is not None:
        root, rules = Path(config.root), config.benchmark
        check_apart(output.folder, (root, root / rules.images, root / rules.masks))
        output.check()
    if config.compare is not None:
        _check_comparable(config)
    return listing, _method(config, device)


def _method(config: EvalConfig, device: torch.device) -> Callable[[], VideoSegmenter]:
    """What segments a clip, anew for each."""
    threads = config.threads
    # torchrun gives its processes one thread each, which would change the last bits.
    if os.environ.get("OMP_NUM_THREADS") == "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        threads = threads or available_cores()
    if threads is not None:
        torch.set_num_threads(threads)
    if config.method == "copy":
        return CopyFirstMask
    if config.method == "flow":
        return FlowWarp
    model = load_model(config.weights, device)
    if config.augment.is_plain:
        return lambda: Segmenter(model, config.segmenter)
    return lambda: AugmentedSegmenter(model, config.segmenter, config.augment)


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


def _log_start(config: EvalConfig, listing: Listing) -> None:
    rules = config.benchmark
    log.info("%s, %s, %d clips: %s", rules.name, rules.frames, len(listing.clips), _title(config))
    if config.method == "stma" and config.weights in shipped_weights():
        log.info("weights: %s, shipped with stma (docs/model_card.md)", config.weights)
    for note in listing.notes:
        log.warning("%s", one_line(note))
    for name, fault in listing.faults.items():
        _log_fault(name, fault)


def _log_fault(name: str, fault: str, details: str = "") -> None:
    log.error("%s%s", one_line(f"{name}: {fault}"), details)


def own_share(clips: Sequence[EvalClip], processes: Processes) -> list[EvalClip]:
    """Of several processes' clips, this one's: the longest go first, each to the process with the
    least to do."""
    if processes.world_size == 1:
        return list(clips)
    load = [0] * processes.world_size
    share = []
    for clip in sorted(clips, key=lambda clip: (-len(clip.frames), clip.name)):
        rank = load.index(min(load))
        load[rank] += len(clip.frames)
        if rank == processes.rank:
            share.append(clip)
    return share


def _segment(
    clips: Sequence[EvalClip],
    output: Output | None,
    device: torch.device,
    method: Callable[[], VideoSegmenter],
    processes: Processes,
) -> tuple[list[ClipRun], dict[str, str]]:
    """Segment this process's share of the clips, and record each that is done.

    Returns:
        How they went, and what went wrong with any clip, by name.
    """
    runs: list[ClipRun] = []
    faults: dict[str, tuple[str, str]] = {}  # a line, and a traceback if it is the program's own
    share = own_share(clips, processes)
    frames = sum(len(clip.frames) for clip in share)
    with tqdm(total=frames, unit="frame", disable=not processes.is_main, desc="segment") as bar:
        for clip in share:
            bar.set_postfix_str(one_line(clip.name))
            try:
                files = clip.files_state()
                folder = None if output is None else output.masks / clip.name
                run = run_clip(clip, method(), folder, device, bar.update)
                if output is not None:
                    output.finish(clip, files, run)
                runs.append(run)
                continue
            except (InputError, OSError) as error:
                faults[clip.name] = (str(error), "")
            except Exception as error:  # noqa: BLE001 - logged whole, and the run ends with status 1
                line = f"{type(error).__name__}: {error}"
                faults[clip.name] = (line, f"\n{traceback.format_exc()}")
            _log_fault(clip.name, *faults[clip.name])
    everyone = processes.gather(faults)
    for others in everyone[1:]:  # whose logs are off
        for name, fault in others.items():
            _log_fault(name, *fault)
    return runs, {name: line for each in everyone for name, (line, _) in each.items()}


def _conclude(
    config: EvalConfig,
    clips: Sequence[EvalClip],
    output: Output,
    faults: dict[str, str],
    processes: Processes,
) -> Evaluation:
    """Score, archive and draw what has been segmented."""
    runs = {clip.name: output.run_of(clip) for clip in clips}
    segmented = [clip for clip in clips if runs[clip.name] is not None]
    for name, run in runs.items():
        if run is None and name not in faults:
            faults[name] = "its files have changed since it was segmented; run the command again"
            _log_fault(name, faults[name])
    scores, not_scored = _score(segmented, output.masks)
    problems: list[str] = []
    archive = _make_archive(config, clips, output, faults, problems)
    result = _evaluation(
        config,
        [run for run in runs.values() if run is not None],
        faults | not_scored,
        scores,
        archive,
        problems,
        processes.world_size,
    )
    made_with = {
        "config": asdict(config),
        "identity": output.record.identity,
        "versions": versions(),
    }
    try:
        write_results(output.folder, result, made_with)
    except OSError as error:
        problems.append(f"{output.folder}: the results cannot be written ({error})")
        return result
    # Pictures come last: if they fail, everything else is already written.
    drawn = segmented if config.videos else []
    for clip in tqdm(drawn, unit="clip", desc="draw", disable=not drawn):
        try:
            draw_video(clip, output.folder)
        except (InputError, OSError) as error:
            problems.append(f"{clip.name}: not drawn: {error}")
    if config.report:
        folders = [output.folder] + ([] if config.compare is None else [Path(config.compare)])
        try:
            results = [Result.load(folder) for folder in folders]
            write_report(output.folder / "report.html", results, segmented)
        except InputError as error:
            problems.append(str(error))
    for problem in problems:
        log.error("%s", one_line(problem))
    return result


def _score(segmented: Sequence[EvalClip], masks: Path) -> tuple[list[ObjectScore], dict[str, str]]:
    clips = [clip for clip in segmented if clip.can_be_scored]
    if left_out := len(segmented) - len(clips):
        log.info("%d clips not scored: frames without a mask, or fewer than 3 frames", left_out)
    scores, faults = score_clips(clips, masks, available_cores())
    scored = {score.clip for score in scores}
    for clip in clips:
        if clip.name not in scored | faults.keys():
            faults[clip.name] = "no object to score: none appears before the last two frames"
    for name, fault in faults.items():
        _log_fault(name, fault)
    return scores, faults


def _evaluation(
    config: EvalConfig,
    runs: list[ClipRun],
    faults: dict[str, str],
    scores: Sequence[ObjectScore] = (),
    archive: Path | None = None,
    problems: list[str] | None = None,
    processes: int = 1,
) -> Evaluation:
    return Evaluation(
        benchmark=config.benchmark.name,
        frames=config.benchmark.frames,
        method=_title(config),
        runs=runs,
        scores=list(scores),
        faults=faults,
        speed=Speed.of(runs, min(processes, len(runs))) if runs else None,
        archive=archive,
        problems=[] if problems is None else problems,
        speed_only=config.fps_only,
        unseen=config.benchmark.unseen,
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
    output: Output,
    faults: dict[str, str],
    problems: list[str],
) -> Path | None:
    if config.benchmark.archive is None:
        return None
    if faults or config.clips is not None:
        why = "some failed" if faults else "only some are named in clips"
        log.warning("no archive: the server wants every clip, and %s", why)
        return None
    try:
        write_archive(output.archive, clips, output.masks)
        problems += check_archive(output.archive, clips)
    except InputError as error:
        problems.append(str(error))
    return output.archive if output.archive.is_file() else None
