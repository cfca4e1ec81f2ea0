"""A training run: its stages in order, each from the previous one's weights."""

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from stma.errors import InputError
from stma.model.weights import find_weights, shipped_weights
from stma.runtime.distributed import Processes, join_processes
from stma.runtime.outputs import (
    check_apart,
    full_disks_told,
    holding,
    prepare_output,
    remove_partials,
    replacing,
)
from stma.runtime.provenance import versions
from stma.runtime.resume import RECORD, TRAINING, Record, differences, earlier_run
from stma.training.checkpoint import OVER
from stma.training.config import TrainConfig, ValidationConfig
from stma.training.dry_run import dry_run
from stma.training.loggers import check_logger
from stma.training.preemption import Preempted, stop_signals
from stma.training.trainer import Trainer, Validation

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    build_validation: Callable[[ValidationConfig], Validation | None] = lambda config: None,
) -> Path:
    """Train all stages; finished ones are skipped, an interrupted one continues.

    Args:
        build_validation: makes a function that gives a model's J&F, given a folder to work in.

    Returns:
        The weights file of the last stage.

    Raises:
        InputError: something in the input is wrong; the message names it.
        Preempted: a signal to stop came; the same call continues.
    """
    with (
        join_processes(config.device) as (processes, device),
        full_disks_told(Path(config.output)),
        ExitStack() as until_the_end,
    ):
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        given = config.weights
        if given in shipped_weights() or (given and Path(given).is_dir()):
            config = replace(config, weights=str(find_weights(given)))
        if config.dry_run:  # whatever the output contains
            config = replace(config, resume=False)
        stop = until_the_end.enter_context(stop_signals())

        def build() -> list[Trainer]:
            if not config.stages:
                raise InputError("stages is empty; choose some of configs/stage (stage=video)")
            check_logger(config.logger)
            validation = build_validation(config.validation)
            # All of them first: a fault in the last stage's data is found now, not in a week.
            return [
                Trainer(config, name, device, processes, validation, stop) for name in config.stages
            ]

        trainers = processes.together(build)
        final = Path(config.output) / "weights.safetensors"
        weights: str | Path | None = config.weights or config.pretrained
        _check_shared(trainers, processes)
        processes.together(lambda: _check(config, trainers))
        if config.dry_run:
            for trainer in trainers:
                dry_run(trainer, weights)
            return trainers[-1].weights_path
        if all(trainer.finished for trainer in trainers) and final.is_file():
            log.info("already finished: %s", final)
            return final

        def begin() -> None:
            if processes.is_main:
                until_the_end.enter_context(holding(Path(config.output)))
                remove_partials(Path(config.output))
                _write_record(config, processes, device)
                if not config.resume:  # or a later stage would be mistaken for one of this run
                    final.unlink(missing_ok=True)
                    for trainer in trainers:
                        trainer.folder.clear()

        processes.together(begin)
        for trainer in trainers:
            if status := max(processes.gather(stop.status)):
                _stop_before(trainer, status)
            trainer.run(weights)
            trainer.release()
            weights = trainer.weights_path
        processes.together(lambda: _finish(trainers[-1].weights_path, final, processes))
    return final


def _check_shared(trainers: Sequence[Trainer], processes: Processes) -> None:
    """Check that all processes see the same folder."""
    seen = processes.gather([trainer.finished for trainer in trainers])
    if any(finished != seen[0] for finished in seen):
        raise processes.common_error(
            f"output: {trainers[0].output.parent} holds finished stages for some processes and not "
            "for others; it must be on a disk shared by all machines"
        )


def _check(config: TrainConfig, trainers: Sequence[Trainer]) -> None:
    """Find all that can be wrong with the existing output, before anything is written."""
    if not config.dry_run:
        check_apart(Path(config.output), _folders(config))
        _earlier_start(config)
    weights: str | Path | None = config.weights or config.pretrained
    for index, trainer in enumerate(trainers):
        if index > 0:
            before = trainers[index - 1]
            if trainer.started and not before.finished:
                raise InputError(
                    f"{trainer.output}: has been started, but the stage before it, {before.name}, "
                    "is not finished in this output; give another output, or resume=false to start "
                    "all stages over"
                )
            weights = before.weights_path if before.finished else None
        trainer.check(weights)


def _folders(config: TrainConfig) -> list[Path]:
    """All folders that the run reads."""
    folders = [Path(config.validation.root)] if config.validation.root is not None else []
    for stage in config.stages.values():
        for block in stage.data.sources.values():
            folders += block.folders()
    return folders


def _stop_before(trainer: Trainer, status: int) -> None:
    log.warning(
        "asked to stop before stage %s; the same command continues with it (exit status %d)",
        trainer.name,
        status,
    )
    raise Preempted(status)


def _finish(weights: Path, final: Path, processes: Processes) -> None:
    if processes.is_main:
        with full_disks_told(final), replacing(final) as unfinished:
            shutil.copyfile(weights, unfinished)
        log.info("weights: %s", final)


def _write_record(config: TrainConfig, processes: Processes, device: torch.device) -> None:
    """Write beside the results: all settings, versions, the code's revision, the command, and the
    same for earlier starts of the run."""
    output = Path(config.output)
    prepare_output(output, "train.log")
    earlier = _earlier_start(config)
    if earlier is not None:
        for change in differences(earlier["config"], asdict(config), ignored=("root",)):
            log.info("changed since the last start: %s", change)
    start = versions() | {"processes": processes.world_size, "device": str(device)}
    start["config"] = asdict(config)
    before = [] if earlier is None else [*earlier.pop("earlier_starts"), earlier]
    with full_disks_told(output):
        with replacing(output / "config.yaml") as unfinished:
            OmegaConf.save(OmegaConf.structured(config), unfinished)
        Record(TRAINING, {}, details=start | {"earlier_starts": before}).write(output / RECORD)
    log.info("stma %s, torch %s, git %s", start["stma"], start["torch"], start["git"])


def _earlier_start(config: TrainConfig) -> dict[str, Any] | None:
    """What the last start recorded; None if there was none, or it is to be started over.

    Raises:
        InputError: the output holds something else.
    """
    earlier = earlier_run(
        Path(config.output), Record(TRAINING, {}), overwrite=not config.resume, over=OVER
    )
    return None if earlier is None else earlier.details
