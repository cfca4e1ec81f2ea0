"""Training clips as a map-style dataset: every one a function of (seed, index) alone."""

from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Dataset

from stma.data.procedural import SceneConfig, procedural_clip
from stma.data.sampling import draw_references, sample_times
from stma.errors import InputError
from stma.structures import Clip


@dataclass
class DataConfig:
    """Training clips.

    Attributes:
        num_frames: of a clip.
        max_gap: largest distance of two neighbouring frames of a clip.
        num_references: past frames drawn as references of every frame (2 in the paper).
        scene: what the procedural clips show.
    """

    num_frames: int = 5
    max_gap: int = 5
    num_references: int = 2
    scene: SceneConfig = field(default_factory=SceneConfig)

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise InputError(f"data.num_frames is {self.num_frames}; a clip needs 2 or more")
        if self.max_gap < 1:
            raise InputError(f"data.max_gap is {self.max_gap}; give 1 or more")
        if self.num_references < 1:
            raise InputError(f"data.num_references is {self.num_references}; give 1 or more")


class ProceduralClips(Dataset[Clip]):
    """Endless procedural clips, ``length`` of them.

    Args:
        seed: with the index of a clip, the only source of chance.
    """

    def __init__(self, config: DataConfig, length: int, seed: int) -> None:
        self.config = config
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Clip:
        config = self.config
        rng = np.random.default_rng((self.seed, index))
        times = sample_times(config.num_frames, config.max_gap, rng)
        frames, masks, num_objects = procedural_clip(
            config.scene, times.astype(float), (self.seed, index, 1)
        )
        return Clip(
            name=f"procedural clip {index} of seed {self.seed}",
            frames=frames,
            masks=masks,
            num_objects=num_objects,
            references=draw_references(config.num_frames, config.num_references, rng),
        )
