"""The folder of an evaluation, and which of its clips are done."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip, identity
from stma.evaluation.eval_config import EvalConfig
from stma.evaluation.results import FRAME_SCORES, RESULTS
from stma.evaluation.running import ClipRun
from stma.model.weights import find_weights
from stma.runtime.outputs import prepare_output
from stma.runtime.resume import (
    CLIP,
    EVALUATION,
    Record,
    begin,
    earlier_run,
    file_digest,
    files_state,
    read_record,
)

FILES = (RESULTS, FRAME_SCORES, "results.md", "results.csv", "scores.csv", "report.html")
OVER = "overwrite=true to start over"
FOLDERS = ("masks", "clips", "videos")


class Output:
    """Where everything is, what it is the result of, and what is done.

    Attributes:
        record: of the evaluation.
        archive: for the server.

    Raises:
        InputError: there are no such weights.
    """

    def __init__(self, config: EvalConfig) -> None:
        self.folder = Path(config.output)
        self.masks = self.folder / "masks"
        self.archive = self.folder / f"{config.benchmark.name}.zip"
        ours = config.method == "stma"
        made_of = {
            "method": config.method,
            "weights": file_digest(find_weights(config.weights)) if ours else None,
            "benchmark": identity(config.benchmark, config.root, config.split),
            "segmenter": asdict(config.segmenter) if ours else None,
            "augment": asdict(config.augment) if ours else None,
        }
        self.record = Record(EVALUATION, made_of)
        self._overwrite = config.overwrite
        self._files = (*FILES, self.archive.name)

    def check(self) -> None:
        """Raises :class:`InputError`: it holds something else."""
        earlier_run(self.folder, self.record, self._names, overwrite=self._overwrite, over=OVER)

    def begin(self) -> None:
        """Make it this evaluation's. Of an earlier start, the clips that are done are kept.

        Raises:
            InputError: it holds something else, or cannot be written to.
        """
        begin(self.folder, self.record, self._names, overwrite=self._overwrite, over=OVER)
        prepare_output(self.folder, "eval.log")
        try:
            for name in self._files:
                (self.folder / name).unlink(missing_ok=True)
            for name in FOLDERS:
                (self.folder / name).mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"output: {self.folder} cannot be written to ({error})") from error

    def run_of(self, clip: EvalClip) -> ClipRun | None:
        """How a clip went; None if it is not done, or its files or masks have changed since."""
        try:
            record = read_record(self._record_path(clip))
            if record is None or record.identity != self._identity(clip, clip.files_state()):
                return None
            return ClipRun(**record.details)
        except (OSError, InputError, TypeError):
            return None  # damaged, or masks are missing: the clip runs again

    def finish(self, clip: EvalClip, files: str, run: ClipRun) -> None:
        """Record a clip as done.

        Args:
            files: their state before it ran: a file that changed meanwhile outdates the result.

        Raises:
            OSError: for example, the disk is full.
        """
        record = Record(CLIP, self._identity(clip, files), done=True, details=asdict(run))
        record.write(self._record_path(clip), flush=False)

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self._files, *FOLDERS)

    def _identity(self, clip: EvalClip, files: str) -> dict[str, Any]:
        masks = [self.masks / clip.name / f"{stem}.png" for stem in clip.output_stems]
        sizes = files_state(masks, times=False)
        return {"evaluation": self.record.digest, "files": files, "masks": sizes}

    def _record_path(self, clip: EvalClip) -> Path:
        return self.folder / "clips" / f"{clip.name}.json"
