"""Writing sampled clips to disk, to validate on or to look at."""

from dataclasses import dataclass
from pathlib import Path

from stma.data.dataset import ClipDataset
from stma.data.pictures import save_clip


@dataclass(frozen=True)
class ClipWriter:
    """Writes clips in the DAVIS layout under ``root``, each a function of the seed and its index.

    Attributes:
        suffix: of the frames, ``.jpg`` or ``.png``.
    """

    root: Path
    clips: ClipDataset
    suffix: str = ".jpg"

    def __call__(self, job: tuple[int, str]) -> None:
        """Write clip number ``job[0]`` under the name ``job[1]``."""
        index, name = job
        clip = self.clips.sample(index)
        save_clip(self.root, name, clip.frames, clip.masks, self.suffix)
