import numpy as np
from conftest import TINY, make_batch

from stma.model.factory import build_model
from stma.training.board import prediction_picture


def test_the_picture_shows_every_frame_twice() -> None:
    batch = make_batch(num_frames=3, size=32)
    picture = prediction_picture(batch, build_model(TINY)(batch))
    assert picture.shape[1] == 3 * (160 + 2)
    assert picture.dtype == np.uint8
