import pickle

import pytest
import torch
from safetensors.torch import save_file

from stma import InputError, build_model, load_model, save_weights
from stma.model.weights import load_state, read_weights


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
    with pytest.raises(InputError, match=r"cut\.safetensors: not a whole"):
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
