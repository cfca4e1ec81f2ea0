"""One training stage, in one process or many, that can be killed at any moment and resumed."""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stma.data.dataset import ClipDataset, clip_batches
from stma.data.sampling import BatchNumbers
from stma.errors import InputError
from stma.model.factory import build_backbone, build_model
from stma.model.pretrained import TIMM, load_pretrained
from stma.model.stma import STMA
from stma.model.weights import check_fits, pack_weights, write_weights
from stma.runtime.device import resolve_precision
from stma.runtime.distributed import Processes
from stma.runtime.outputs import full_disks_told
from stma.runtime.provenance import versions
from stma.runtime.resume import file_digest
from stma.structures import ClipBatch
from stma.training.checkpoint import (
    COUNTS,
    LENGTH,
    StageFolder,
    new_length,
    pack,
    stage_settings,
)
from stma.training.config import StageConfig, TrainConfig
from stma.training.display import Display
from stma.training.learner import (
    Learner,
    read_own_weights,
    release_memory,
    rng_state,
    seed_generators,
    set_rng_state,
)
from stma.training.optimizer import learning_rate
from stma.training.preemption import Preempted, StopRequest

log = logging.getLogger(__name__)

Validation = Callable[[STMA, Path], float]


def progress(stage: StageConfig, seconds: float, iteration: int) -> float:
    """The finished share of a stage, by iterations or time, whichever is more."""
    done = iteration / stage.iterations
    if stage.max_minutes is not None:
        done = max(done, seconds / (60 * stage.max_minutes))
    return done


class Feed:
    """Batches in parts, on the device.

    Args:
        batches: the parts of all batches, one after another.
        count: parts per batch.

    Attributes:
        waited: seconds spent fetching.
    """

    def __init__(self, batches: Iterator[ClipBatch], count: int, device: torch.device) -> None:
        self.batches, self.count, self.device = batches, count, device
        self.waited = 0.0
        self._ready: list[ClipBatch] = []

    def fetch(self) -> None:
        """Load the next batch, unless it is already loaded or there is none left.

        Raises:
            InputError: a file is faulty; the message names it.
        """
        if not self._ready:
            start = time.monotonic()
            parts = list(islice(self.batches, self.count))
            self.waited += time.monotonic() - start
            self._ready = [part.to(self.device) for part in parts]

    def take(self) -> list[ClipBatch]:
        """The parts of the next batch."""
        self.fetch()
        parts, self._ready = self._ready, []
        return parts


class Trainer:
    """Trains one network on one stage's clips.

    Args:
        name: of the stage.
        validation: gives a model's J&F, given a folder to work in.
        stop: records that the run has been asked to stop.

    Attributes:
        iteration: steps taken, including skipped ones.
        learner: the network and all that belongs to it, once the stage runs.
        finished: whether the stage is finished, in this start or an earlier one.

    Raises:
        InputError: the data are faulty, the batch cannot be divided, or the end mark is damaged.
    """

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        device: torch.device,
        processes: Processes | None = None,
        validation: Validation | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.config, self.stage, self.name = config, config.stages[name], name
        self.device = device
        self.processes = processes or Processes()
        self.validation = validation
        self.stop = stop or StopRequest()
        self.output = Path(config.output) / name
        self.folder = StageFolder(self.output, config.keep_checkpoints)
        self.weights_path, self.checkpoints = self.folder.weights, self.folder.checkpoints
        self.iteration = 0
        self.seconds = 0.0  # over all starts, at the end of the last step
        self.best: float | None = None  # validation J&F
        self.validated = self.saved = -1  # iterations of the last ones
        # As agreed on by all processes: progress, the exit status, whether to save.
        self.progress, self.stop_with, self.due = 0.0, 0, False
        self.weights: str | None = None  # digest of those the stage starts from
        self.display = Display(config, name, self.output if self.processes.is_main else None)
        self._since = self._last_save = time.monotonic()
        self._writing: Future[None] | None = None  # of the last save
        self.finished = False
        if config.resume and (theirs := self.folder.finished_settings()) is not None:
            self.finished = not new_length(theirs, self._settings())
        if not self.finished:
            self.numbers(0)  # refuses a batch that cannot be divided
            self.clips = ClipDataset(
                self.stage.data,
                length=self.stage.iterations * self.stage.batch_size,
                seed=config.seed,
                stage=name,
            )

    @property
    def started(self) -> bool:
        """Whether there is something to resume."""
        return self.config.resume and (self.finished or bool(self.checkpoints.paths()))

    def check(self, weights: str | Path | None) -> None:
        """Compare what the stage would start or resume from with its settings, changing nothing.

        Args:
            weights: that the stage starts from; None also if they do not exist yet.

        Raises:
            InputError: the output holds a stage with other settings, or from other weights; a file
                is faulty; the weights do not fit.
        """
        theirs, begun = None, None
        if self.config.resume:
            theirs = self.folder.finished_settings()
            begun = None if self.finished else self.folder.begun()
            if theirs is not None and not self.finished and begun is None:
                raise InputError(
                    f"{self.output}: is finished, and has no checkpoint left to resume; give "
                    "another output, and weights= to start from"
                )
        if begun is not None:
            self._check_settings(begun["settings"], weights)
            if begun["iteration"] > self.stage.iterations:
                raise InputError(
                    f"stages.{self.name}.iterations is {self.stage.iterations}, but {self.output} "
                    f"has already made {begun['iteration']}; give as many or more"
                )
        elif theirs is not None:
            self._check_settings(theirs, weights)
        elif weights is not None:
            if weights == self.config.pretrained:
                load_pretrained(build_backbone(self.config.model), weights)
                return
            with torch.device("meta"):
                model = build_model(self.config.model)
            tensors = read_own_weights(self.config, weights)
            if self.config.strict_weights:
                check_fits(model, tensors, weights)

    def run(self, weights: str | Path | None = None) -> None:
        """Train to the end of the stage; the weights are in :attr:`weights_path`.

        Args:
            weights: to start from if there is no checkpoint.

        Raises:
            InputError: a faulty file; a full disk; steps that are not finite, too many in a row or
                more than half of them; weights or a checkpoint that do not fit.
            Preempted: SIGTERM, SIGUSR1 or Ctrl-C came.
        """
        processes = self.processes
        if self.finished:
            log.info("%s: already finished: %s", self.name, self.weights_path)
            return
        processes.together(lambda: self._start(weights))
        if len(places := set(processes.gather(self.iteration))) > 1:
            raise processes.common_error(
                f"output: the processes would resume after different iterations {sorted(places)}; "
                f"{self.output} must be on a disk shared by all machines"
            )
        self.learner.connect()
        with self.display.opened(self.iteration, self._progress(self.seconds, self.iteration)):
            self._loop()
        if 2 * self.learner.skipped > self.iteration:
            raise processes.common_error(
                f"{self.name}: {self.learner.skipped} of {self.iteration} steps were skipped, as "
                "their loss or gradient was not finite (train.log names the clips), so do not use "
                "the weights. Lower the stage's optimizer.learning_rate or set precision=fp32, and "
                "start over with resume=false"
            )
        processes.together(self._finish)
        if left_out := self.clips.left_out:
            clips = "1 clip" if len(left_out) == 1 else f"{len(left_out)} clips"
            log.warning("%s left out, with faulty files: %s", clips, ", ".join(left_out))
        skipped = f", {self.learner.skipped} of them skipped" if self.learner.skipped else ""
        log.info("%d iterations%s; weights: %s", self.iteration, skipped, self.weights_path)
        self.finished = True

    def _start(self, weights: str | Path | None) -> None:
        """Start from the newest checkpoint, or else from the weights."""
        if self.processes.is_main:
            if not self.config.resume:
                self.folder.clear()
            self.folder.mark.unlink(missing_ok=True)  # left by a shorter stage
        state = self.checkpoints.load_newest() if self.config.resume else None
        self._build(weights if state is None else None)
        if state is not None:
            self.resume(state, weights)
        elif weights is not None:
            self.weights = TIMM if weights == TIMM else file_digest(weights)
        count = sum(p.numel() for p in self.learner.model.parameters())
        precision = resolve_precision(self.device, self.config.precision)
        log.info("%s: %.2f M parameters, %s, %s", self.name, count / 1e6, self.device, precision)
        for line in self.clips.describe().splitlines():
            log.info("%s", line)
        if state is not None:
            log.info("resumed after iteration %d", self.iteration)

    def _build(self, weights: str | Path | None) -> None:
        self.learner = Learner(self.config, self.stage, self.device, self.processes, weights)

    def _finish(self) -> None:
        if self.processes.is_main:
            self.folder.finish(self._settings())

    def release(self) -> None:
        """Free the memory of the network and all that belongs to it."""
        self.__dict__.pop("learner", None)
        release_memory(self.device)

    def _loop(self) -> None:
        with ThreadPoolExecutor(1) as self._writer:  # its end waits for what is being written
            with closing(self.batches()) as batches:
                self._train(Feed(batches, self.config.accumulate, self.device))
            self.save()
            if self.validated != self.iteration:
                self.validate()
        self.display.advance(1)

    def _train(self, feed: Feed) -> None:
        self._last_save = time.monotonic()
        self._since = self._last_save - self.seconds
        notes = torch.tensor(self._notes(self.iteration), dtype=torch.float64, device=self.device)
        self._agree(self.processes.maximum(notes).tolist())
        self._between_steps()
        while self.iteration < self.stage.iterations and self.progress < 1:
            self.step(feed)
            if self.due or self.iteration % self.config.save_every == 0:
                self.save(wait=False)
            self._between_steps()

    def step(self, feed: Feed) -> None:
        """Take one step, and show it."""
        parts, progress = feed.take(), self.progress
        step = self.learner.step(
            parts,
            self.iteration,
            progress,
            notes=lambda: self._notes(self.iteration + 1),
            meanwhile=feed.fetch,
        )
        self._agree(step.notes)
        self.display.show_step(self.learner, step, parts[-1], self.iteration, progress, feed.waited)
        self.display.advance(progress)
        self.iteration += 1
        self.seconds = time.monotonic() - self._since

    def _notes(self, iteration: int) -> list[float]:
        """What all processes must agree on before the step of this iteration: whether to stop, the
        progress, and whether it is time to save."""
        now, minutes = time.monotonic(), self.config.save_minutes
        due = minutes is not None and now - self._last_save > 60 * minutes
        return [self.stop.status, self._progress(now - self._since, iteration), due]

    def _agree(self, notes: list[float]) -> None:
        stop, self.progress, due = notes
        self.stop_with, self.due = int(stop), bool(due)

    def _between_steps(self) -> None:
        if self.stop_with:
            self.save()
            log.warning(
                "asked to stop: saved after iteration %d; the same command continues from there "
                "(exit status %d)",
                self.iteration,
                self.stop_with,
            )
            raise Preempted(self.stop_with)
        due = self.iteration > 0 and self.iteration % self.config.validation.every == 0
        if due and self.validated != self.iteration:
            self.validate()

    def validate(self) -> None:
        """Score the result so far on the validation set, and keep the best; saves first.

        Raises:
            InputError: something is wrong with the set or the disk.
        """
        if self.validation is None or self.stage.teacher is not None:
            return
        self.save()  # whatever happens, the steps so far are safe
        self.validated = self.iteration
        generators = self.processes.gather(rng_state(self.device))
        self.processes.together(lambda: self._validate(generators))

    def _validate(self, generators: list[dict[str, Tensor]]) -> None:
        if not self.processes.is_main or self.validation is None:
            return
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # make room for frames of other sizes
        self.learner.result.eval()
        with full_disks_told(self.output):
            score = self.validation(self.learner.result, self.output / "validation")
        log.info("iteration %d: validation J&F %.1f", self.iteration, score)
        self.display.show_validation(score, self.iteration)
        if self.best is None or score > self.best:
            self.best = score
            self.checkpoints.save_best(pack(self._state(generators)))
            self._write_weights(self.folder.best_weights, self._weights())

    def save(self, *, wait: bool = True) -> None:
        """Write a checkpoint and the weights, with their provenance, unless already done.

        Args:
            wait: until they are on disk; otherwise they are written while training goes on, and
                the next save raises what went wrong.

        Raises:
            InputError: they cannot be written (the message names the last complete checkpoint); or
                the processes together have found too many faulty clips.
        """
        if self.saved != self.iteration:
            generators = self.processes.gather(rng_state(self.device))
            left_out = self.processes.gather(self.clips.left_out)
            everyones = {name: fault for theirs in left_out for name, fault in theirs.items()}
            self.processes.together(lambda: self._save(generators, everyones))
            self.saved, self._last_save = self.iteration, time.monotonic()
        if wait:
            self.processes.together(self._wait_for_writing)

    def _save(self, generators: list[dict[str, Tensor]], left_out: dict[str, str]) -> None:
        """Copy the state, and let it be written once the save before is."""
        self._wait_for_writing()
        try:
            self.clips.leave_out(left_out)
        finally:  # if those are too many, the steps so far are safe
            if self.processes.is_main:
                state, weights = pack(self._state(generators)), self._weights()
                self._writing = self._writer.submit(self._write, self.iteration, state, weights)

    def _wait_for_writing(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write(self, iteration: int, state: bytes, weights: bytes) -> None:
        self.checkpoints.save(iteration, state)
        self._write_weights(self.weights_path, weights)

    def _weights(self) -> bytes:
        return pack_weights(self.learner.result, self.config.model, self._provenance())

    def _write_weights(self, path: Path, content: bytes) -> None:
        try:
            write_weights(path, content)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error}); the checkpoint is complete. Make room and "
                "run the same command again"
            ) from error

    def _settings(self) -> dict[str, Any]:
        return stage_settings(self.config, self.name, self.weights)

    def _check_settings(self, theirs: Mapping[str, Any], weights: str | Path | None) -> None:
        """Check that a stage with these settings is this one. The weights it started from may be
        gone by now."""
        if weights is None:
            self.weights = None
        elif Path(weights).is_file():
            self.weights = file_digest(weights)
        else:
            self.weights = theirs.get("weights")
        self.folder.check_settings(theirs, self._settings())

    def _state(self, generators: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {name: getattr(self, name) for name in COUNTS} | {
            **self.learner.state(),
            "shown": self.display.shown,
            "left_out": self.clips.left_out,
            "settings": self._settings(),
            "generators": generators,
            "provenance": json.dumps(self._provenance()),
        }

    def resume(self, state: dict[str, Any], weights: str | Path | None = None) -> None:
        """Continue from a checkpoint; the position in the data is the iteration.

        Args:
            weights: that the stage is to start from.

        Raises:
            InputError: it comes from other settings (the message names those that differ) or from
                another version of the network.
        """
        self._check_settings(state["settings"], weights)
        self._tell_new_length(state)
        try:
            self.learner.load_state(state)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.checkpoints.folder}: the newest checkpoint does not fit this version of "
                f"the network ({error}); continue with the version that wrote it, or start over "
                "with resume=false"
            ) from error
        for name in COUNTS:
            setattr(self, name, state[name])
        self.display.shown = state["shown"]
        self.clips.left_out = dict(state.get("left_out", {}))
        generators = state["generators"]
        if len(generators) == self.processes.world_size:
            set_rng_state(generators[self.processes.rank], self.device)
        else:  # another number of processes
            seed_generators(self.config.seed, self.processes.rank, self.iteration)

    def _tell_new_length(self, state: dict[str, Any]) -> None:
        """Log how the length has changed, and what that means for the learning rate."""
        changes = new_length(state["settings"], self._settings())
        if not changes:
            return
        before = replace(self.stage, **{key: state["settings"]["stage"][key] for key in LENGTH})
        optimizer, at = self.stage.optimizer, (state["seconds"], state["iteration"])
        was, now = (
            learning_rate(optimizer, progress(stage, *at)) for stage in (before, self.stage)
        )
        follows = (
            f"the learning rate continues at {now:.3g}"
            if now == was
            else f"the learning rate follows the new length: {now:.3g} from here on, instead of "
            f"{was:.3g}"
        )
        log.warning("%s: new length: %s; %s", self.name, "; ".join(changes), follows)

    def _progress(self, seconds: float, iteration: int) -> float:
        return progress(self.stage, seconds, iteration)

    def numbers(self, start: int) -> BatchNumbers:
        """The numbers of this process's clips from an iteration on."""
        return BatchNumbers(
            start,
            self.stage.iterations,
            self.stage.batch_size,
            self.processes.rank,
            self.processes.world_size,
            self.config.accumulate,
        )

    def batches(self) -> Generator[ClipBatch, None, None]:
        """This process's clips from the iteration on, the parts of a batch one after another."""
        return clip_batches(
            self.clips,
            self.numbers(self.iteration),
            self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _provenance(self) -> dict[str, Any]:
        return versions() | {
            "stage": self.name,
            "iterations": self.iteration,
            "config": asdict(self.config),
        }
