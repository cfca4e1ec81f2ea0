import numpy as np
import pytest
from conftest import TINY, make_batch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import config, trained

from stma.model.factory import build_model
from stma.training.display import Display, prediction_picture
from stma.training.losses import LossConfig
from stma.training.run import train


def test_the_time_left_counts_from_where_this_start_began(tmp_path) -> None:
    with Display(config(tmp_path), "only", tmp_path).new_bar(0.75) as bar:
        bar.start_t -= 10  # seconds for a tenth of the whole
        bar.update(10)
        assert bar.initial == 75
        assert "85%" in str(bar)
        assert "00:15" in str(bar)  # and not the two seconds of 85 % in ten


def test_what_tensorboard_shows(tmp_path) -> None:
    loss = LossConfig(objects=0.1)
    trainer = trained(config(tmp_path, iterations=4, loss=loss))
    events = EventAccumulator(str(trainer.output / "tensorboard")).Reload()
    assert {
        "loss/total",
        "loss/cross_entropy",
        "loss/dice",
        "loss/objects",
        "loss/bootstrap_fraction",
        "optimizer/learning_rate",
        "optimizer/backbone_learning_rate",
        "optimizer/gradient_norm",
        "optimizer/skipped_steps",
        "time/share_waiting_for_data",
        "memory/peak_gigabytes",
        "attention_of_references/block1_objects",
        "attention/block2_itself",
        "attention/block2_reference1",
        "attention/block2_reference2",
        "attention_spread/block0",
    } <= set(events.Tags()["scalars"])
    attention = [name for name in events.Tags()["scalars"] if name.startswith("attention/block2_")]
    assert sum(events.Scalars(name)[0].value for name in attention) == pytest.approx(1, abs=1e-4)
    assert events.Tags()["images"] == ["prediction"]
    assert [event.step for event in events.Scalars("loss/total")] == [0, 1, 2, 3]


def test_a_loss_without_a_weight_is_not_shown(tmp_path) -> None:
    train(config(tmp_path, iterations=5, log_every=2))
    steps = [
        line for line in (tmp_path / "train.log").read_text().splitlines() if "only: it" in line
    ]
    assert len(steps) == 3
    for part in ("iteration 4, total ", "dice", "rate 3e-05, gradient norm ", " it/s, 0:00:0"):
        assert part in steps[-1]
    assert "objects" not in steps[-1]


def test_the_picture_shows_every_frame_twice() -> None:
    batch = make_batch(num_frames=3, size=32)
    picture = prediction_picture(batch, build_model(TINY)(batch))
    assert picture.shape[1] == 3 * (160 + 2)
    assert picture.dtype == np.uint8
