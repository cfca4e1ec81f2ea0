"""J&F of a network in training, by the segmenter and evaluation's scores.

Training and inference do not know each other; the entry point joins them through this.
"""

import shutil
from pathlib import Path

from stma.data.video_folder import find_videos
from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip
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
    clips = [EvalClip(v) for v in find_videos(config.root, config.split, config.clips)]
    unscored = [clip.name for clip in clips if not clip.can_be_scored]
    if unscored:
        raise InputError(
            f"validation: {config.root}: {', '.join(unscored)}: fewer than 3 frames, or frames "
            "without a mask, so there is nothing to score; choose others with validation.clips"
        )

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
