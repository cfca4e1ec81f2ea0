"""A run of training: its stages one after another, each from the last one's weights."""

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path

from omegaconf import OmegaConf

from stma.distributed import Processes, join_processes
from stma.errors import InputError
from stma.model.weights import check_same_architecture, read_weights
from stma.outputs import holding, prepare_output, replacing
from stma.provenance import versions
from stma.training.config import TrainConfig
from stma.training.dry_run import dry_run
from stma.training.trainer import Trainer, Validation

log = logging.getLogger(__name__)


def train(config: TrainConfig, validation: Validation | None = None) -> Path:
    """Train all stages; those that are finished are skipped, one that was stopped goes on.

    Args:
        validation: gives J&F of a model, given a folder to work in.

    Returns:
        The weights file of the last stage.

    Raises:
        InputError: something in the input is wrong; the message names it.
        Preempted: a signal to leave came; the same call goes on.
    """
    if not config.stages:
        raise InputError("stages is empty; choose some of configs/stage (stage=[static,video])")
    with join_processes(config.device) as (processes, device):
        # All of them first: a fault in the data of the last stage is told now, not in a week.
        trainers = [Trainer(config, name, device, processes, validation) for name in config.stages]
        final = Path(config.output) / "weights.safetensors"
        if all(trainer.finished for trainer in trainers) and final.is_file():
            log.info("finished already: %s", final)
            return final
        if config.weights is not None and not trainers[0].started:
            theirs, _, _ = read_weights(config.weights)
            if config.strict_weights:
                check_same_architecture(theirs, config.model, config.weights)
        weights = config.weights or config.pretrained
        if config.dry_run:
            for trainer in trainers:
                dry_run(trainer, weights)
            return trainers[-1].weights_path
        with holding(Path(config.output)) if processes.is_main else nullcontext():
            if processes.is_main:
                _write_record(config, processes, str(device))
            for trainer in trainers:
                trainer.run(weights)
                weights = str(trainer.weights_path)
            if processes.is_main:
                with replacing(final) as unfinished:
                    shutil.copyfile(trainers[-1].weights_path, unfinished)
                log.info("weights: %s", final)
    return final


def _write_record(config: TrainConfig, processes: Processes, device: str) -> None:
    """Beside the results: all settings, versions, the revision of the code, the command."""
    output = Path(config.output)
    prepare_output(output, "train.log")
    OmegaConf.save(OmegaConf.structured(config), output / "config.yaml")
    record = versions() | {"processes": processes.world_size, "device": device}
    (output / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    log.info("stma %s, torch %s, git %s", record["stma"], record["torch"], record["git"])
