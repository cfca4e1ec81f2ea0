"""J&F of a network in training, by the segmenter and evaluation's scores.

Training and inference do not know each other; the entry point joins them through this.
"""

import shutil
from pathlib import Path

from stma.errors import InputError
from stma.evaluation.benchmarks import scored_clips
from stma.evaluation.running import run_clip
from stma.evaluation.scoring import score_clips, summarize
from stma.inference.segmenter import Segmenter
from stma.model.stma import STMA
from stma.training.config import ValidationConfig
from stma.training.trainer import Validation


def build_validation(config: ValidationConfig) -> Validation | None:
    """A function that scores a network on the validation set; None without a set.

    Raises:
        InputError: the set does not exist, or lacks masks.
    """
    if config.root is None:
        return None
    try:
        clips = scored_clips(config.root, config.split, config.clips)
    except InputError as error:
        raise InputError(f"validation: {error}") from error

    def validate(model: STMA, folder: Path) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        device = model.mean.device
        for clip in clips:
            run_clip(clip, Segmenter(model), folder / clip.name, device)
        scores, faults = score_clips(clips, folder, processes=1)
        if faults:
            raise InputError(next(iter(faults.values())))
        return summarize(scores)[-1].jf

    return validate
