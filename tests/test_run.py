"""Stages one after another."""

import dataclasses
import errno
import json
import weakref
from pathlib import Path

import pytest
import torch
from conftest import procedural_data
from safetensors.torch import save_file
from test_sources import video
from test_trainer import config, equal_weights

from stma.data.config import DatasetConfig
from stma.data.dataset import DataConfig
from stma.data.pictures import save_clip
from stma.errors import InputError
from stma.model.weights import load_model, read_weights
from stma.runtime.outputs import holding
from stma.runtime.resume import EVALUATION, Record
from stma.training import run as run_module
from stma.training.config import TrainConfig, ValidationConfig
from stma.training.preemption import EXIT_PREEMPTED, Preempted
from stma.training.run import train
from stma.training.trainer import Trainer


def two_stages(output, **settings) -> TrainConfig:
    one = config(output, **settings)
    stage = one.stages["only"]
    other = dataclasses.replace(stage, iterations=2, data=procedural_data(32, 32, 4))
    return dataclasses.replace(one, stages={"first": stage, "second": other})


def test_each_stage_starts_from_the_last_ones_weights(tmp_path) -> None:
    final = train(two_stages(tmp_path / "both"))
    assert final.read_bytes() == (tmp_path / "both/second/weights.safetensors").read_bytes()
    first = tmp_path / "both" / "first" / "weights.safetensors"
    assert read_weights(first)[1]["stage"] == "first"
    second = two_stages(tmp_path / "alone").stages["second"]
    alone = dataclasses.replace(
        two_stages(tmp_path / "alone", weights=str(first)), stages={"second": second}
    )
    assert equal_weights(load_model(train(alone)), load_model(final))


def test_how_cuda_computes_is_a_setting(tmp_path) -> None:
    for on in (True, False):
        train(config(tmp_path / str(on), iterations=1, tf32=on, cudnn_benchmark=on))
        assert torch.backends.cuda.matmul.allow_tf32 == on
        assert torch.backends.cudnn.benchmark == on


def test_finished_stages_are_skipped_even_if_their_data_are_gone(tmp_path, monkeypatch) -> None:
    """The run is asked to stop in its second stage; by then the first one's set is deleted."""
    step = Trainer.step

    def told_in_second(self, *arguments):
        self.stop.status = EXIT_PREEMPTED * (self.name == "second")
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", told_in_second)
    settings = two_stages(tmp_path)
    with pytest.raises(Preempted):
        train(settings)
    monkeypatch.undo()
    before = (tmp_path / "first" / "weights.safetensors").stat().st_mtime_ns
    built = []
    init = Trainer._build

    def recorded(self, weights):
        built.append((self.name, weights))
        init(self, weights)

    monkeypatch.setattr(Trainer, "_build", recorded)
    final = train(settings)
    assert built == [("second", None)]  # from its checkpoint, not from the first one's weights
    assert (tmp_path / "first" / "weights.safetensors").stat().st_mtime_ns == before
    whole = train(two_stages(tmp_path / "whole"))
    assert equal_weights(load_model(final), load_model(whole))


def test_faults_of_the_last_stage_are_told_before_the_first_starts(tmp_path) -> None:
    settings = two_stages(tmp_path / "run")
    missing = DataConfig(sources={"gone": DatasetConfig(root=str(tmp_path / "gone"))})
    bad = dataclasses.replace(settings.stages["second"], data=missing)
    settings = dataclasses.replace(settings, stages=settings.stages | {"second": bad})
    with pytest.raises(InputError, match="gone: no such folder"):
        train(settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="stages is empty"):
        train(TrainConfig(output=str(tmp_path / "run")))


def test_the_record_of_a_run(tmp_path) -> None:
    train(two_stages(tmp_path))
    record = json.loads((tmp_path / "run.json").read_text())["details"]
    assert record["device"] == "cpu"
    assert record["torch"] == torch.__version__
    assert {"git", "command", "python", "stma", "numpy"} <= set(record)
    log = (tmp_path / "train.log").read_text()
    assert "first: " in log
    assert "second: " in log
    assert "2 iterations" in log


def test_the_best_by_validation_is_kept_beside_the_newest(tmp_path) -> None:
    scores = iter([10.0, 30.0, 20.0])
    asked = []

    def validation(model, folder) -> float:
        assert not model.training
        asked.append(folder)
        return next(scores)

    settings = config(tmp_path, iterations=6, save_every=2, keep_checkpoints=1)
    settings = dataclasses.replace(
        settings, validation=dataclasses.replace(settings.validation, every=2)
    )
    train(settings, lambda config: validation)
    assert asked == [tmp_path / "only" / "validation"] * 3
    kept = sorted(path.name for path in (tmp_path / "only" / "checkpoints").iterdir())
    assert kept == ["00000006.pt", "best.pt"]
    best = torch.load(tmp_path / "only" / "checkpoints" / "best.pt", weights_only=True)
    assert (best["iteration"], best["best"]) == (4, 30.0)
    assert read_weights(tmp_path / "only" / "best.safetensors")[1]["iterations"] == 4


def test_an_output_folder_in_use_is_refused_before_training(tmp_path) -> None:
    settings = two_stages(tmp_path)
    with holding(tmp_path):
        with pytest.raises(InputError, match="in use by a live run"):
            train(settings)
        assert not (tmp_path / "first").exists()
    train(settings)


def told_after(trainer_name: str, monkeypatch) -> None:
    """As by a signal in the last iteration of a stage, after all of them have agreed."""
    save = Trainer.save

    def saved(self) -> None:
        save(self)
        at_the_end = self.name == trainer_name and self.iteration == self.stage.iterations
        self.stop.status = EXIT_PREEMPTED * at_the_end

    monkeypatch.setattr(Trainer, "save", saved)


def test_told_to_leave_at_the_end_of_a_stage_the_next_one_does_not_start(
    tmp_path, monkeypatch, caplog
) -> None:
    told_after("first", monkeypatch)
    with pytest.raises(Preempted):
        train(two_stages(tmp_path))
    assert "asked to stop before stage second" in caplog.text
    assert (tmp_path / "first" / "run.json").is_file()
    assert not (tmp_path / "second").exists()
    monkeypatch.undo()
    assert train(two_stages(tmp_path)).is_file()
    told_after("second", monkeypatch)  # at the very end there is nothing left to go on with
    assert train(two_stages(tmp_path / "again")).is_file()


def test_starting_anew_forgets_all_stages_at_once(tmp_path, monkeypatch) -> None:
    """The second start is killed in its first stage; the third must not take the old run's second
    stage for its own."""
    final = train(two_stages(tmp_path))

    def killed(self, *arguments):
        raise RuntimeError("killed")

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(two_stages(tmp_path, resume=False, seed=5))
    monkeypatch.undo()
    assert not final.exists()
    assert not (tmp_path / "second" / "run.json").exists()
    again = load_model(train(two_stages(tmp_path, seed=5)))
    assert equal_weights(again, load_model(train(two_stages(tmp_path / "other", seed=5))))


def test_a_stage_does_not_outlive_the_one_it_came_from(tmp_path) -> None:
    train(two_stages(tmp_path))
    first = tmp_path / "first"
    (first / "run.json").rename(first / "aside")
    with pytest.raises(InputError, match="the stage before it, first, is not finished"):
        train(two_stages(tmp_path))
    (first / "aside").rename(first / "run.json")
    other = train(config(tmp_path / "other", seed=7))
    (first / "weights.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=r"second: holds .*\n  weights: \w+ there, \w+ here"):
        train(two_stages(tmp_path))


def test_a_run_starts_from_the_folder_of_another(tmp_path) -> None:
    first = train(config(tmp_path / "first"))
    after = train(config(tmp_path / "folder", weights=str(first.parent), iterations=1))
    same = train(config(tmp_path / "file", weights=str(first), iterations=1))
    assert equal_weights(load_model(after), load_model(same))
    with pytest.raises(InputError, match=r"first/\.\.: a folder without a weights.safetensors"):
        train(config(tmp_path / "none", weights=str(first.parent / "..")))


def test_weights_to_start_from_may_move_but_not_change(tmp_path, monkeypatch) -> None:
    start = train(config(tmp_path / "start"))
    other = train(config(tmp_path / "other", seed=3))

    def go_on(weights) -> None:
        train(config(tmp_path / "run", weights=str(weights), iterations=4, save_every=1))

    step = Trainer.step

    def told(self, *arguments):
        self.stop.status = EXIT_PREEMPTED * (self.iteration < 3)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", told)
    with pytest.raises(Preempted):
        go_on(start)
    with pytest.raises(InputError, match=r"weights: \w+ there"):
        go_on(other)
    moved = start.rename(tmp_path / "moved.safetensors")
    with pytest.raises(Preempted):
        go_on(moved)
    moved.unlink()
    with pytest.raises(Preempted):
        go_on(moved)
    go_on(moved)


def test_a_run_goes_on_without_a_clip_that_has_become_unreadable(tmp_path, caplog) -> None:
    for name in "abc":
        save_clip(tmp_path / "data", name, *video(3), ".png")
    block = DatasetConfig(root=str(tmp_path / "data"))
    data = dataclasses.replace(procedural_data(32, 48, 3), sources={"mine": block})
    strict = config(tmp_path / "run", iterations=4, save_every=1, data=data)
    bad = tmp_path / "data" / "JPEGImages" / "b" / "00001.png"
    bad.write_bytes(b"")
    with pytest.raises(InputError, match=f"{bad}: cannot be read"):
        train(strict)
    tolerant = dataclasses.replace(data, max_bad_clips=1)
    train(config(tmp_path / "run", iterations=4, save_every=1, data=tolerant))
    assert "1 clip left out, with faulty files: mine: b" in caplog.text
    # Longer, and with the clip excluded.
    excluding = dataclasses.replace(
        data, sources={"mine": dataclasses.replace(block, exclude=["b"])}
    )
    train(config(tmp_path / "run", iterations=8, data=excluding))
    assert read_weights(tmp_path / "run")[1]["iterations"] == 8


def test_a_refused_command_changes_nothing(tmp_path) -> None:
    """Not even the record of the existing run."""
    settings = two_stages(tmp_path / "run")
    path = train(settings)
    cut = tmp_path / "cut.safetensors"
    model, _, tensors = read_weights(path)
    tensors.pop("decoder.head.bias")
    metadata = {
        "format": "stma-weights-1",
        "model": json.dumps(dataclasses.asdict(model)),
        "provenance": "{}",
    }
    save_file(tensors, cut, metadata)
    (tmp_path / "run" / "second" / "run.json").unlink()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    for change, message in (
        ({"seed": 4}, "seed: 0 there, 4 here"),
        ({"weights": str(cut), "resume": False}, "missing: decoder.head.bias"),
    ):
        with pytest.raises(InputError, match=message):
            train(dataclasses.replace(settings, **change))
    changed = dataclasses.replace(settings.stages["second"], batch_size=4)
    with pytest.raises(InputError, match=r"second: holds .*\n  stage\.batch_size: 2 there, 4 here"):
        train(dataclasses.replace(settings, stages=settings.stages | {"second": changed}))
    before.pop(tmp_path / "run" / "train.log")
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("content", ["{", "[]", "\x00", "null"])
def test_a_damaged_mark_of_the_end_is_told(tmp_path, content: str) -> None:
    train(config(tmp_path))
    (tmp_path / "only" / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: damaged.*remove it"):
        train(config(tmp_path))


def test_checkpoints_that_are_none_are_not_started_over(tmp_path) -> None:
    train(config(tmp_path))
    (tmp_path / "only" / "run.json").unlink()
    path = tmp_path / "only" / "checkpoints" / "00000003.pt"
    torch.save({"iteration": 3}, path)
    with pytest.raises(InputError, match=r"00000003\.pt: not a checkpoint .*lacks.*settings"):
        train(config(tmp_path))
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"none of 00000003\.pt can be read"):
        train(config(tmp_path))
    assert path.read_bytes() == b"damaged"


@pytest.mark.parametrize("name", ["run/run.json", "only/run.json", "masks"])
def test_a_full_disk_is_told_wherever_it_is_met(tmp_path, monkeypatch, name: str) -> None:
    """The record, the mark of the end, the masks of the validation."""
    write = Path.write_text

    def full(self: Path, text: str, **more):
        if name in str(self):
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, text, **more)

    def validation(model, folder: Path) -> float:
        folder.mkdir()
        (folder / "masks").write_text("")
        return 1.0

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=rf"{name}.*cannot be written \(No space left.*make room"):
        train(config(tmp_path / "run"), lambda config: validation)
    monkeypatch.undo()
    assert train(config(tmp_path / "run")).is_file()


def test_no_training_is_lost_for_a_board_that_cannot_be_written(
    tmp_path, monkeypatch, caplog
) -> None:
    def full(self, *arguments, **settings) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stma.training.loggers.SummaryWriter.add_scalar", full)
    assert train(config(tmp_path)).is_file()
    assert caplog.text.count("training continues without it") == 1


def test_the_record_keeps_earlier_starts(tmp_path, monkeypatch) -> None:
    for number in range(3):
        monkeypatch.setattr("sys.argv", ["train.py", f"start {number}"])
        (tmp_path / "only" / "run.json").unlink(missing_ok=True)
        train(config(tmp_path))
    record = json.loads((tmp_path / "run.json").read_text())["details"]
    assert record["command"] == ["train.py", "start 2"]
    commands = [start["command"][1] for start in record["earlier_starts"]]
    assert commands == ["start 0", "start 1"]


def test_networks_of_earlier_stages_are_given_back(tmp_path, monkeypatch) -> None:
    networks = []
    build = Trainer._build

    def built(self, weights) -> None:
        assert [network() for network in networks] == [None] * len(networks)
        build(self, weights)
        networks.append(weakref.ref(self.learner.model))

    monkeypatch.setattr(Trainer, "_build", built)
    train(two_stages(tmp_path, ema=0.9))
    assert len(networks) == 2


def test_an_output_among_the_clips_is_refused(tmp_path) -> None:
    """Of the stages, what they are cut from, and the validation."""
    root = tmp_path / "root"
    for name in ("JPEGImages", "Annotations"):
        (root / name).mkdir(parents=True)
    videos = DatasetConfig(root=str(root))
    cut = DatasetConfig(kind="composite", cut_from={"a": DatasetConfig(root=str(root))})
    procedural = config(tmp_path)
    for block in (videos, cut):
        data = DataConfig(sources={"a": block})
        stage = dataclasses.replace(procedural.stages["only"], data=data)
        settings = dataclasses.replace(procedural, stages={"only": stage})
        assert {root, root / "JPEGImages"} <= set(run_module._folders(settings))
    validation = ValidationConfig(root=str(root))
    for output in (root, root / "JPEGImages" / "out", tmp_path):
        with pytest.raises(InputError, match=r"output: .* the data"):
            train(config(output, validation=validation))
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "Annotations",
        "JPEGImages",
        "root",
    ]


def test_the_output_of_an_evaluation_is_not_taken(tmp_path) -> None:
    Record(EVALUATION, {}).write(tmp_path / "run.json")
    for resume in (True, False):
        with pytest.raises(InputError, match="holds an evaluation"):
            train(config(tmp_path, resume=resume))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(InputError, match="output is empty"):
        config("")


def test_settings_that_have_changed_since_the_last_start_are_told(tmp_path, caplog) -> None:
    with caplog.at_level("INFO"):
        train(config(tmp_path, iterations=1))
        assert "changed" not in caplog.text
        train(config(tmp_path, iterations=2, log_every=7))
    assert "changed since the last start: log_every: 1 there, 7 here" in caplog.text
    assert "changed since the last start: stages.only.iterations: 1 there, 2 here" in caplog.text
    (tmp_path / "run.json").write_text("null")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        train(config(tmp_path, iterations=3))
    train(config(tmp_path, iterations=3, resume=False))
