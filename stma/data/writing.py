"""Procedural clips on disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stma.data.pictures import save_clip
from stma.data.procedural import SceneConfig, procedural_clip


@dataclass(frozen=True)
class ClipWriter:
    """Writes clips in the DAVIS layout below ``root``, each a function of the seed and its index.

    Attributes:
        size: height and width.
        suffix: of the frames, ``.jpg`` or ``.png``.
    """

    root: Path
    scene: SceneConfig
    size: tuple[int, int]
    num_frames: int
    seed: int
    suffix: str = ".jpg"

    def __call__(self, job: tuple[int, str]) -> None:
        """Write clip number ``job[0]`` under the name ``job[1]``."""
        index, name = job
        # A stream apart from those of training, which are seeded (seed, epoch, index).
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, index), spawn_key=(0,)))
        times = np.arange(float(self.num_frames))
        images, masks, _ = procedural_clip(self.scene, self.size, times, rng)
        save_clip(self.root, name, images, masks, self.suffix)
