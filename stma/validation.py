"""J&F of a network in training, by the segmenter and the scores of evaluation.

Training and inference do not know each other; the entry joins them through this.
"""

import shutil
from pathlib import Path

from stma.data.video_folder import find_videos
from stma.errors import InputError
from stma.inference.evaluation import segment_video
from stma.inference.scoring import score_videos, summarize
from stma.inference.segmenter import Segmenter
from stma.model.stma import STMA
from stma.training.config import ValidationConfig
from stma.training.trainer import Validation


def build_validation(config: ValidationConfig) -> Validation | None:
    """What scores a network on the validation set; None without one.

    Raises:
        InputError: the set is not there, or lacks masks.
    """
    if config.root is None:
        return None
    videos = find_videos(config.root, config.split, config.clips)
    unscored = [v.name for v in videos if not v.fully_annotated or len(v) < 3]
    if unscored:
        raise InputError(
            f"validation: {config.root}: {', '.join(unscored)}: fewer than 3 frames, or frames "
            "without a mask, so there is nothing to score; choose others with validation.clips"
        )

    def validate(model: STMA, folder: Path) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        device = model.mean.device
        for video in videos:
            segment_video(video, Segmenter(model), folder / video.name, device)
        return summarize(score_videos(videos, folder, processes=1))[-1].jf

    return validate
