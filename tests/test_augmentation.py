import numpy as np
import pytest
import torch
from conftest import make_batch

from stma.errors import InputError
from stma.inference.augmentation import AugmentConfig, AugmentedSegmenter
from stma.inference.segmenter import Segmenter, SegmenterConfig, network_size
from stma.model.stma import STMA

CONFIG = SegmenterConfig(memory_interval=1)


@pytest.fixture
def clip() -> tuple[np.ndarray, np.ndarray]:
    batch = make_batch(num_frames=4, size=48)
    frames = batch.frames[0].permute(0, 2, 3, 1).numpy()
    return frames[:, :, :40], np.ascontiguousarray(batch.masks[0, 0].numpy()[:, :40])


def run(segmenter, frames: np.ndarray, mask: np.ndarray) -> list[torch.Tensor]:
    return [segmenter.step(f, None if i else mask).probabilities for i, f in enumerate(frames)]


def test_one_view_is_the_plain_segmenter(tiny_model: STMA, clip) -> None:
    alone = run(AugmentedSegmenter(tiny_model, CONFIG, AugmentConfig()), *clip)
    for ours, plain in zip(alone, run(Segmenter(tiny_model, CONFIG), *clip), strict=True):
        assert torch.equal(ours, plain)


def test_views_are_averaged_each_with_its_own_memory(tiny_model: STMA, clip) -> None:
    frames, mask = clip
    both = run(AugmentedSegmenter(tiny_model, CONFIG, AugmentConfig(flip=True)), frames, mask)
    straight = run(Segmenter(tiny_model, CONFIG), frames, mask)
    mirrored = run(Segmenter(tiny_model, CONFIG), frames[:, :, ::-1].copy(), mask[:, ::-1].copy())
    for ours, a, b in zip(both, straight, mirrored, strict=True):
        torch.testing.assert_close(ours, (a + b.flip(-1)) / 2)
    assert not torch.allclose(both[-1], straight[-1])


def test_a_mirrored_video_gives_mirrored_masks(tiny_model: STMA, clip) -> None:
    """What one view alone does not: padding and interpolation have a direction."""
    frames, mask = clip
    augment = AugmentConfig(scales=[1.0, 0.75], flip=True)
    straight = run(AugmentedSegmenter(tiny_model, CONFIG, augment), frames, mask)
    mirrored = run(
        AugmentedSegmenter(tiny_model, CONFIG, augment),
        frames[:, :, ::-1].copy(),
        mask[:, ::-1].copy(),
    )
    for a, b in zip(straight, mirrored, strict=True):
        torch.testing.assert_close(a, b.flip(-1))


def test_scale_is_of_what_the_short_side_leaves() -> None:
    assert network_size(480, 854, 480) == (480, 854)
    assert network_size(720, 1280, 480) == (480, 853)
    assert network_size(720, 1280, 480, 1.5) == (720, 1280)
    assert network_size(240, 320, 480, 1.5) == (360, 480)  # enlarged on request only
    assert network_size(240, 320, None, 0.5) == (120, 160)
    assert network_size(3, 4, None, 0.1) == (1, 1)


def test_views_that_make_no_sense() -> None:
    for scales in ([], [1.0, 1.0]):
        with pytest.raises(InputError, match="scales is"):
            AugmentConfig(scales=scales)
    for scale in (0.0, -1.0, 9.0):
        with pytest.raises(InputError, match="scale is"):
            SegmenterConfig(scale=scale)
