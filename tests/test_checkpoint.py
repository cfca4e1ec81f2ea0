import logging
from pathlib import Path

import pytest
import torch
from test_trainer import config, trained

from stma.errors import InputError
from stma.model.weights import find_weights, load_model, read_segmenter_settings, read_weights
from stma.training.checkpoint import Checkpoints, pack
from stma.training.learner import rng_state, set_rng_state


def test_the_newest_stay_and_the_last_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.load_newest() is None
    for iteration in (5, 10, 200):
        checkpoints.save(iteration, pack({"iteration": iteration, "x": torch.ones(2)}))
    assert [path.name for path in checkpoints.paths()] == ["00000010.pt", "00000200.pt"]
    state = checkpoints.load_newest()
    assert state is not None
    assert state["iteration"] == 200
    checkpoints.clear()
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "no checkpoint", "changed"])
def test_a_damaged_file_is_passed_over_with_a_warning(tmp_path: Path, caplog, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, pack({"iteration": 1}))
    path = checkpoints.save(2, pack({"iteration": 2, "x": torch.ones(1000)}))
    content = path.read_bytes()
    at = content.index(torch.ones(1000).numpy().tobytes()) + 2000
    changed = content[:at] + b"\x01" + content[at + 1 :]
    damaged = {"cut": content[:-50], "empty": b"", "no checkpoint": b"hello", "changed": changed}
    path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load_newest() == {"iteration": 1}
    assert "00000002.pt: cannot be read" in caplog.text


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil()}, tmp_path / "00000001.pt")
    with pytest.raises(InputError, match=r"none of 00000001\.pt can be read.*resume=false"):
        Checkpoints(tmp_path, keep=1).load_newest()
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    last = checkpoints.save(1, pack({"iteration": 1}))

    def full(self: Path, data: bytes) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"00000002\.pt: .*No space left.*00000001\.pt"):
        checkpoints.save(2, pack({"iteration": 2}))
    assert [path for path in tmp_path.iterdir()] == [last]
    assert checkpoints.load_newest() == {"iteration": 1}


def test_generators_go_on_where_they_were() -> None:
    state = rng_state(torch.device("cpu"))
    first = torch.rand(3)
    set_rng_state(state, torch.device("cpu"))
    assert torch.equal(first, torch.rand(3))


def test_a_checkpoint_is_weights_too(tmp_path: Path) -> None:
    """With ``ema`` the average, as saved beside it, or the weights as trained."""
    learner = trained(config(tmp_path, ema=0.9, segmenter={"short_side": 64})).learner
    path = find_weights(tmp_path / "only" / "checkpoints" / "00000003.pt")
    for raw, expected in ((False, learner.result), (True, learner.model)):
        model = load_model(path, "cpu", raw=raw)
        assert model.segmenter_settings == read_segmenter_settings(path) == {"short_side": 64}
        torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    settings, provenance, tensors = read_weights(path)
    saved = read_weights(tmp_path / "only")
    assert (settings, provenance) == (saved[0], saved[1] | {"raw": False})
    assert tensors.keys() == saved[2].keys()
    plain = trained(config(tmp_path / "again", weights=str(path), iterations=1))
    again = load_model(plain.checkpoints.paths()[-1], "cpu").state_dict()
    torch.testing.assert_close(again, plain.learner.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["tensors", "no dict", "cut", "empty", "text"])
def test_another_pt_file_is_no_checkpoint(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other.pt"
    torch.save({"model": {"x": torch.ones(9)}} if kind != "no dict" else torch.ones(9), path)
    if kind in ("cut", "empty", "text"):
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-50], "empty": b"", "text": b"hello"}[kind])
    for read in (read_weights, read_segmenter_settings):
        with pytest.raises(InputError, match=r"other\.pt: .*not a complete checkpoint"):
            read(path)
