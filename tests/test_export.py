import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TINY, box, perturbed, procedural_data, write_clip

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
from stma.model.backbone import PRETRAINING_GRID, resample_positions
from stma.model.factory import ModelConfig, build_model
from stma.model.weights import load_model, save_weights

SCRIPT = Path(__file__).parent.parent / "scripts" / "segment_onnx.py"
STEM = replace(
    TINY,
    backbone="vit",
    depths=[1, 1, 2],
    conv_stem=True,
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


@pytest.mark.parametrize("new", [6, 30])
def test_bicubic_is_pytorchs(new: int) -> None:
    embedding = torch.randn(1, 14 * 14, 8)
    expected = resample_positions(embedding, (new, 20))
    rows, columns = bicubic(14, new, embedding), bicubic(14, 20, embedding)
    table = embedding.unflatten(1, PRETRAINING_GRID)
    found = torch.einsum("yj,xk,bjkc->byxc", rows, columns, table).flatten(1, 2)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, STEM], ids=["convvit", "stem"])
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


@pytest.fixture(scope="module", params=["convvit", "stem"])
def onnx(request, tmp_path_factory) -> tuple[Path, Path]:
    """Weights, and their parts, with settings that make the network scale and evict."""
    folder = tmp_path_factory.mktemp(request.param)
    config, settings = (TINY, {}) if request.param == "convvit" else (STEM, {"top_k": 20})
    settings |= {"memory_interval": 2, "capacity": 40, "short_side": 48, "kernel": 0.2}
    weights = save(folder / "w.safetensors", config, **settings)
    main(["export", f"--weights={weights}", f"--output={folder / 'parts'}"])
    return weights, folder / "parts"


@pytest.mark.slow
def test_onnx_at_another_size(onnx: tuple[Path, Path]) -> None:
    """Every part gives what it gives in PyTorch, relative to its largest value."""
    weights, exported = onnx
    about = json.loads((exported / "stma.json").read_text())
    assert {path.name for path in exported.iterdir()} == {*about["parts"], "stma.json"}
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
    model = load_model(weights)
    clip = ClipDataset(procedural_data(60, 92, 14, max_objects=2), 1, seed=3).sample(0)
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    script = runpy.run_path(str(SCRIPT))
    # Rounded otherwise by Pillow than by PyTorch, bytes that are resized differ by 1.
    for short_side, tolerance in ((None, 1e-4), (48, 0.02)):
        video, segmenter = script["Video"](exported), Segmenter(model, short_side=short_side)
        video.settings["short_side"] = short_side
        for t, frame in enumerate(clip.frames):
            mask = clip.masks[0] if t == 0 else None
            expected = segmenter.step(frame, mask).probabilities.numpy()
            found = video.step(frame, mask)
            assert np.abs(found - expected).max() < tolerance, (short_side, t)
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
