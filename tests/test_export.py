import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TINY, box, perturbed, procedural_data, random_frame, write_clip

from stma.cli import main
from stma.data.dataset import ClipDataset
from stma.data.masks import read_mask
from stma.data.pictures import davis_palette
from stma.errors import InputError
from stma.inference import export as module
from stma.inference.export import (
    Sizes,
    bicubic,
    export,
    parts,
    positions_of_any_grid,
)
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.backbone import PRETRAINING_GRID, resample_positions, tokens_to_map
from stma.model.factory import ModelConfig, build_model
from stma.model.weights import load_model, read_weights, save_weights

SCRIPT = Path(__file__).parent.parent / "scripts" / "segment_onnx.py"
VIT = replace(
    TINY,
    backbone="vit",
    depths=[0, 0, 2],
    similarity="l2",
    class_token=True,
    enhanced_keys=True,
    reference_pooling=2,
)


def save(path: Path, config: ModelConfig, **settings) -> Path:
    torch.manual_seed(0)
    model = perturbed(build_model(config)).eval()
    model.segmenter_settings = settings
    save_weights(path, model, config, {})
    return path


@pytest.mark.parametrize("new", [1, 6, 14, 30])
def test_bicubic_is_pytorchs(new: int) -> None:
    embedding = torch.randn(1, 14 * 14, 8)
    expected = resample_positions(embedding, (new, 20))
    rows, columns = bicubic(14, new, embedding), bicubic(14, 20, embedding)
    table = embedding.unflatten(1, PRETRAINING_GRID)
    found = torch.einsum("yj,xk,bjkc->byxc", rows, columns, table).flatten(1, 2)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, VIT], ids=["convvit", "vit"])
def test_positions_are_put_back(config: ModelConfig) -> None:
    model = build_model(config).eval()
    image = torch.randn(1, 3, 64, 96)
    kept = model.backbone.positions
    expected = model.embed(image).tokens
    with positions_of_any_grid(model):
        assert torch.allclose(model.embed(image).tokens, expected, atol=1e-5)
    assert model.backbone.positions is kept


def test_what_cannot_be_exported_is_said(tmp_path: Path, monkeypatch) -> None:
    weights = save(tmp_path / "w.safetensors", ModelConfig(**{**vars(TINY), "variant": "joint"}))
    with pytest.raises(InputError, match=r"model\.variant=joint; only the full model"):
        export(weights, tmp_path / "out")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else 1)
    with pytest.raises(InputError, match="pip install onnxscript"):
        export("small", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(weights: Path) -> None:
    with pytest.raises(InputError, match="cannot be made"):
        export(weights, weights)


def test_top_k_and_kernel_are_in_the_readout() -> None:
    """Against the network's own association, which gathers."""
    model = perturbed(build_model(TINY)).eval()
    settings = SegmenterConfig(memory_interval=1, top_k=5, kernel=0.3)
    segmenter = Segmenter(model, settings)
    rng = np.random.default_rng(0)
    segmenter.step(random_frame(rng, 40, 56), box(4, 4, 20, 30))
    memory = segmenter.memory.temporal
    features = torch.randn(1, 12, 16)
    by_name = {part.name: part.module for part in parts(model, settings, Sizes())}
    with torch.inference_mode():
        expected = model.association(features, memory, (3, 4), settings.reading)
        query = tokens_to_map(features, (3, 4))
        found, _ = by_name["readout"](query, memory.keys, memory.values)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module", params=["shipped", "vit"])
def onnx(request, tmp_path_factory) -> tuple[Path, Path]:
    """Weights, and their parts. The shipped network gets settings that make it scale and evict."""
    folder = tmp_path_factory.mktemp(request.param)
    weights = folder / "w.safetensors"
    settings = {"memory_interval": 2, "capacity": 40, "short_side": 48, "kernel": 0.2}
    if request.param == "shipped":
        config, _, state = read_weights("small")
        model = build_model(config)
        model.load_state_dict(state)
        model.segmenter_settings = settings
        save_weights(weights, model, config, {})
    else:
        save(weights, VIT, **settings, top_k=20)
    export(weights, folder / "parts")
    return weights, folder / "parts"


@pytest.mark.slow
def test_onnx_at_another_size(onnx: tuple[Path, Path]) -> None:
    """Every part gives what it gives in PyTorch, relative to its largest value."""
    weights, exported = onnx
    model = load_model(weights)
    settings = SegmenterConfig(**model.segmenter_settings)
    sizes = Sizes(height=4, width=7, objects=2, frames=6, references=1)
    for part in parts(model, settings, sizes):
        session = onnxruntime.InferenceSession(exported / f"{part.name}.onnx")
        names = [each.name for each in session.get_inputs()]
        found = session.run(
            None, {name: x.numpy() for name, x in zip(names, part.inputs, strict=True)}
        )
        with torch.inference_mode():
            expected = part.module.eval()(*part.inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for a, b in zip(expected, found, strict=True):
            assert (a - torch.from_numpy(b)).abs().max() < 1e-4 * a.abs().max(), part.name


@pytest.mark.slow
def test_example_is_the_segmenter(onnx: tuple[Path, Path], monkeypatch) -> None:
    """Through evictions and scaling."""
    weights, exported = onnx
    torch.manual_seed(0)
    clip = ClipDataset(procedural_data(60, 92, 14, max_objects=2), 1, seed=3).sample(0)
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    video = runpy.run_path(str(SCRIPT))["Video"](exported)
    segmenter = Segmenter(load_model(weights))
    for t, frame in enumerate(clip.frames):
        mask = clip.masks[0] if t == 0 else None
        expected = segmenter.step(frame, mask).probabilities.numpy()
        found = video.step(frame, mask)
        assert np.abs(found - expected).max() < 1e-4, t
    assert video.ids == segmenter.ids
    assert len(video.memory["age"]) == len(segmenter.memory.temporal)


def test_example_takes_frames_in_order_and_davis_colours(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    for name in ("img_10.jpg", "img_9.JPG", "img_100.png", ".DS_Store", "._img_9.jpg", "notes.txt"):
        (tmp_path / name).touch()
    names = [path.name for path in script["pictures"](tmp_path)]
    assert names == ["img_9.JPG", "img_10.jpg", "img_100.png"]
    assert script["davis_palette"]() == davis_palette().tobytes()


@pytest.mark.slow
def test_example_as_a_program(onnx: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    root = write_clip(tmp_path, "clip", {0: box(4, 4, 20, 30, value=3)}, frames=3)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            str(SCRIPT),
            str(onnx[1]),
            str(root / "JPEGImages" / "clip"),
            str(root / "Annotations" / "clip" / "00000.png"),
            str(tmp_path / "masks"),
        ],
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT)])
        with pytest.raises(SystemExit, match="EXPORT FRAMES FIRST_MASK"):
            runpy.run_path(str(SCRIPT), run_name="__main__")
    runpy.run_path(str(SCRIPT), run_name="__main__")
    first, _ = read_mask(tmp_path / "masks" / "00000.png")
    assert np.array_equal(first, box(4, 4, 20, 30, value=3))
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys) -> None:
    weights = save(tmp_path / "w.safetensors", TINY, short_side=64)
    folder = tmp_path / "parts"
    main(["export", f"--weights={weights}", f"--output={folder}"])
    about = json.loads((folder / "stma.json").read_text())
    assert len(about["parts"]) == 5
    assert {path.name for path in folder.iterdir()} == {*about["parts"], "stma.json"}
    assert str(folder / "encode.onnx") in capsys.readouterr().out
