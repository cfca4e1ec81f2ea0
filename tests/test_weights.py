import dataclasses
import json
import pickle
import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stma import InputError, Segmenter, SegmenterConfig, build_model, load_model, save_weights
from stma.model.weights import (
    check_same_architecture,
    find_weights,
    load_state,
    read_segmenter_settings,
    read_weights,
    shipped_weights,
)

ROOT = Path(__file__).resolve().parent.parent


def test_one_file_is_enough_to_build_the_same_model(tmp_path, tiny_model, tiny_config) -> None:
    path = tmp_path / "new folder" / "weights.safetensors"
    save_weights(path, tiny_model, tiny_config, {"iterations": 7})
    loaded = load_model(path)
    assert not loaded.training
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float())
    config, provenance, _ = read_weights(path)
    assert config == tiny_config
    assert provenance == {"iterations": 7}
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.safetensors"]


def test_settings_of_a_segmenter_go_with_the_weights(tmp_path, tiny_model, tiny_config) -> None:
    tiny_model.segmenter_settings = {"short_side": 64, "capacity": None}
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_model, tiny_config, {})
    assert read_segmenter_settings(path) == {"short_side": 64, "capacity": None}
    config = Segmenter(load_model(path)).config
    assert (config.short_side, config.capacity) == (64, None)
    assert config.memory_interval == SegmenterConfig().memory_interval  # not said: the default
    assert Segmenter(load_model(path), SegmenterConfig()).config.short_side == 480


def test_weights_are_found_by_file_folder_or_name(tmp_path, weights, monkeypatch) -> None:
    assert find_weights(weights) == weights
    assert find_weights(weights.parent) == weights
    with pytest.raises(InputError, match="a folder without a weights"):
        find_weights(tmp_path / "..")
    monkeypatch.setattr("stma.model.weights.SHIPPED", tmp_path)
    assert shipped_weights() == ["weights"]
    assert find_weights("weights") == weights
    with pytest.raises(InputError, match=r"large: no such weights file .*by name: weights"):
        find_weights("large")


def test_half_precision_takes_half_the_disk_and_computes_in_full(
    tmp_path, weights, monkeypatch
) -> None:
    monkeypatch.setattr("stma.model.weights.SHIPPED", tmp_path / "package")
    monkeypatch.setattr("sys.argv", ["ship_weights.py", str(weights), "half", "short_side=96"])
    runpy.run_path(str(ROOT / "scripts" / "ship_weights.py"), run_name="__main__")
    out = find_weights("half")
    assert load_model(out).segmenter_settings["short_side"] == 96
    assert out.stat().st_size < 0.75 * weights.stat().st_size
    half, full = load_model(out).state_dict(), load_model(weights).state_dict()
    for name, tensor in full.items():
        assert half[name].dtype == tensor.dtype
        torch.testing.assert_close(half[name], tensor, rtol=1e-3, atol=1e-6)


def test_shipped_weights_may_be_the_mean_of_many_runs(
    tmp_path, weights, tiny_model, tiny_config, monkeypatch
) -> None:
    other, third = tmp_path / "other.safetensors", tmp_path / "third.safetensors"
    for path, git in ((other, "abc"), (third, "def")):
        with torch.no_grad():
            for parameter in tiny_model.parameters():
                parameter += 0.5
        save_weights(path, tiny_model, tiny_config, {"git": git})
    monkeypatch.setattr("stma.model.weights.SHIPPED", tmp_path / "package")
    of = ["--average-with", str(other), str(third)]
    monkeypatch.setattr("sys.argv", ["ship_weights.py", str(weights), "both", "scale=2", *of])
    runpy.run_path(str(ROOT / "scripts" / "ship_weights.py"), run_name="__main__")
    _, provenance, _ = read_weights(find_weights("both"))
    assert provenance["averaged_with"] == [{"git": "abc"}, {"git": "def"}]
    both, first = load_model("both"), load_model(weights)
    assert both.segmenter_settings["scale"] == 2
    for (name, mean), one in zip(both.named_parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(mean, one + 0.5, rtol=1e-3, atol=1e-3, msg=name)

    misfit = dataclasses.replace(tiny_config, enhanced_keys=not tiny_config.enhanced_keys)
    save_weights(other, build_model(misfit), misfit, {})
    with pytest.raises(SystemExit, match=r"other\.safetensors: weights of another architecture"):
        runpy.run_path(str(ROOT / "scripts" / "ship_weights.py"), run_name="__main__")


def test_weights_of_another_architecture_are_named(tmp_path, tiny_model, tiny_config) -> None:
    tensors = tiny_model.state_dict()
    shape = tuple(tensors["decoder.head.weight"].shape)
    tensors["decoder.head.weight"] = tensors["decoder.head.weight"][:, :1]
    tensors["classifier.weight"] = tensors.pop("decoder.head.bias")
    model = build_model(tiny_config)
    before = model.decoder.head.weight.clone()
    with pytest.raises(InputError) as error:
        load_state(model, tensors, "their.safetensors")
    message = str(error.value)
    assert "their.safetensors" in message
    assert "missing: decoder.head.bias" in message
    assert "unexpected: classifier.weight" in message
    assert f"decoder.head.weight: {(shape[0], 1, *shape[2:])} in the file" in message
    assert torch.equal(model.decoder.head.weight, before)


class Payload:
    ran = False

    def __reduce__(self) -> tuple:
        return (setattr, (Payload, "ran", True))


def test_settings_of_training_alone_do_not_make_another_architecture(tiny_config) -> None:
    trained = dataclasses.replace(tiny_config, train_top_k=4, train_kernel=0.2, drop_path=0.3)
    check_same_architecture(trained, tiny_config, "weights")
    with pytest.raises(InputError, match="similarity: l2 in the file, dot here"):
        check_same_architecture(dataclasses.replace(trained, similarity="l2"), tiny_config, "w")


@pytest.mark.parametrize("kind", ["torch zip", 2, 5])
def test_a_pickle_is_refused_and_never_run(tmp_path, kind: str | int) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(kind, str):
        torch.save(Payload(), path)
    else:
        path.write_bytes(pickle.dumps(Payload(), protocol=kind))
    with pytest.raises(InputError, match=r"weights\.pth.*pickle"):
        load_model(path)
    assert not Payload.ran


def test_damaged_missing_and_foreign_files_are_named(tmp_path, tiny_model, tiny_config) -> None:
    with pytest.raises(InputError, match="no such weights file"):
        load_model(tmp_path / "none.safetensors")
    path = tmp_path / "cut.safetensors"
    save_weights(path, tiny_model, tiny_config, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut\.safetensors: not a complete"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match=r"foreign\.safetensors.*configuration"):
        load_model(tmp_path / "foreign.safetensors")


def test_our_own_files_never_look_like_a_pickle(tmp_path, tiny_model, tiny_config) -> None:
    """safetensors starts with the length of its header; 0x4B50 reads "PK"."""
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny_model, tiny_config, {"pad": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    target = next(n for n in range(length, length + 70_000) if n % 65536 == 0x4B50)
    save_weights(path, tiny_model, tiny_config, {"pad": "x" * (target - length)})
    assert path.read_bytes()[:2] == b"PK"
    load_model(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": "{"}, "damaged metadata"),
        ({"model": None}, "damaged metadata"),
        ({"provenance": None}, "damaged metadata"),
        ({"model": '{"dims": "abc"}'}, "model: dims"),
        ({"model": '{"num_heads": 0}'}, "num_heads"),
        ({"model": '{"depht": 3}'}, "depht"),
        ({"model": "[]"}, "model"),
    ],
)
def test_damaged_metadata_is_named(tmp_path, metadata: dict, message: str) -> None:
    path = tmp_path / "w.safetensors"
    whole = {"format": "stma-weights-1", "model": "{}", "provenance": "{}"} | metadata
    save_file({"a": torch.zeros(1)}, path, {k: v for k, v in whole.items() if v is not None})
    with pytest.raises(InputError, match=rf"w\.safetensors.*{message}"):
        load_model(path)


def test_a_file_with_a_setting_that_is_gone(tmp_path, tiny_model, tiny_config) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny_model, tiny_config, {})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    config = dataclasses.asdict(tiny_config)
    metadata["model"] = json.dumps(config | {"key_dim": None})
    save_file(tensors, path, metadata)
    assert read_weights(path)[0] == tiny_config
    metadata["model"] = json.dumps(config | {"key_dim": 8})
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=r"w\.safetensors: model: .*key_dim"):
        load_model(path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path, tiny_model, tiny_config, value: str
) -> None:
    with torch.no_grad():
        tiny_model.decoder.head.bias[0] = float(value)
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_model, tiny_config, {})
    with pytest.raises(InputError, match=r"decoder\.head\.bias holds NaN or infinity"):
        load_model(path)


def test_what_is_no_file_and_no_device_is_refused(weights) -> None:
    with pytest.raises(InputError, match="weights are None; give a file"):
        load_model(None)
    with pytest.raises(InputError, match="device is 'cuda:99'"):
        load_model(weights, "cuda:99")
    assert load_model(weights, torch.device("cpu")).mean.device.type == "cpu"
