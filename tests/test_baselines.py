import numpy as np
import pytest

from stma.data.procedural import random_texture
from stma.errors import InputError
from stma.inference.baselines import CopyFirstMask, FlowWarp


def square(left: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, left : left + 20] = value
    return mask


def moving_texture(shift: int) -> np.ndarray:
    texture = random_texture(np.random.default_rng(3), 96)
    return np.ascontiguousarray(texture[:64, 20 - shift : 84 - shift])


def test_copying_keeps_every_mask_where_it_was_given() -> None:
    method = CopyFirstMask()
    frame = np.zeros((64, 64, 3), np.uint8)
    assert not method.step(frame).mask.any()
    method.step(frame, square(4, value=9))
    assert np.array_equal(method.step(frame).mask, square(4, value=9))
    result = method.step(frame, square(30, value=200))
    assert result.ids == [9, 200]
    assert set(np.unique(result.mask)) == {0, 9, 200}
    assert np.array_equal(method.step(frame).mask, result.mask)


def test_flow_follows_a_moving_texture() -> None:
    method = FlowWarp()
    method.step(moving_texture(0), square(20))
    for shift in range(1, 6):
        mask = method.step(moving_texture(shift)).mask
    moved, still = (square(left) for left in (25, 20))

    def iou(truth: np.ndarray) -> float:
        return (mask & truth).sum() / (mask | truth).sum()

    assert iou(moved) > 0.9
    assert iou(moved) > iou(still)


def test_flow_refuses_frames_that_are_too_small_for_it() -> None:
    with pytest.raises(InputError, match="20 x 8; DIS flow needs 12"):
        FlowWarp().step(np.zeros((8, 20, 3), np.uint8), np.ones((8, 20), np.uint8))


@pytest.mark.parametrize("kind", [CopyFirstMask, FlowWarp])
def test_they_refuse_what_the_segmenter_refuses(kind) -> None:
    method = kind()
    method.step(moving_texture(0), square(20))
    with pytest.raises(InputError, match="all frames of a video must have the same size"):
        method.step(np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(InputError, match="holds no object"):
        method.step(moving_texture(0), square(20) * 0)
