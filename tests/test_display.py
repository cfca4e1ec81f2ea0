import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import config, trained

from stma.training.display import Display


def test_the_time_left_counts_from_where_this_start_began(tmp_path) -> None:
    with Display(config(tmp_path), "only", tmp_path).new_bar(0.75) as bar:
        bar.start_t -= 10  # seconds for a tenth of the whole
        bar.update(10)
        assert bar.initial == 75
        assert "85%" in str(bar)
        assert "00:15" in str(bar)  # and not the two seconds of 85 % in ten


def test_what_tensorboard_shows(tmp_path) -> None:
    trainer = trained(config(tmp_path, iterations=4))
    events = EventAccumulator(str(trainer.output / "tensorboard")).Reload()
    assert {
        "loss/total",
        "loss/cross_entropy",
        "loss/dice",
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
