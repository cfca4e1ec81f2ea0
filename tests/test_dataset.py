import numpy as np
import pytest
from torch.utils.data import DataLoader

from stma.data.dataset import DataConfig, ProceduralClips
from stma.data.procedural import SceneConfig
from stma.structures import ClipBatch

CONFIG = DataConfig(num_frames=3, scene=SceneConfig(height=32, width=48))


def test_a_clip_is_a_function_of_seed_and_index() -> None:
    clips = ProceduralClips(CONFIG, length=10, seed=7)
    clip, again = clips[4], ProceduralClips(CONFIG, length=99, seed=7)[4]
    assert np.array_equal(clip.frames, again.frames)
    assert np.array_equal(clip.references, again.references)
    assert not np.array_equal(clip.frames, clips[5].frames)
    assert not np.array_equal(clip.frames, ProceduralClips(CONFIG, length=10, seed=8)[4].frames)
    assert clip.frames.shape == (3, 32, 48, 3)
    assert clip.masks[0].max() == clip.num_objects


def test_workers_change_nothing() -> None:
    clips = ProceduralClips(CONFIG, length=6, seed=0)
    alone, shared = (
        list(DataLoader(clips, batch_size=2, num_workers=n, collate_fn=ClipBatch.collate))
        for n in (0, 2)
    )
    for a, b in zip(alone, shared, strict=True):
        assert a.names == b.names
        assert (a.frames == b.frames).all()
        assert (a.masks == b.masks).all()


@pytest.mark.parametrize("settings", [{"num_frames": 1}, {"max_gap": 0}, {"num_references": 0}])
def test_settings_that_make_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DataConfig(**settings)
