import logging
import threading
import time

import numpy as np
from conftest import TINY, make_batch

from stma.model.factory import build_model
from stma.training.board import Board, prediction_picture


def test_the_picture_shows_every_frame_twice() -> None:
    batch = make_batch(num_frames=3, size=32)
    picture = prediction_picture(batch, build_model(TINY)(batch))
    assert picture.shape[1] == 3 * (160 + 2)
    assert picture.dtype == np.uint8


def test_a_full_disk_is_told_once_and_without_a_traceback(
    tmp_path, monkeypatch, caplog, capfd
) -> None:
    """It is met by a thread of TensorBoard's, and raised by the call after."""

    def full(self, data) -> None:
        raise OSError(28, "No space left on device")

    # Only this test's: programs that other tests ran may have left handlers of closed streams.
    monkeypatch.setattr(logging.root, "handlers", [caplog.handler])
    hook = threading.excepthook
    with Board(tmp_path) as board:
        board.scalars({"a": 1.0}, 0)
        board._writer.flush()
        monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        deadline = time.monotonic() + 300
        while board.is_open and time.monotonic() < deadline:
            board.scalars({"a": 1.0}, 1)
            time.sleep(0.01)
        assert not board.is_open
        board.scalars({"a": 1.0}, 2)
    assert caplog.text.count("training continues without TensorBoard") == 1
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook
