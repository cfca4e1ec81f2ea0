import argparse
import logging
import re
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from safetensors.torch import save_file
from test_learner import learner_of
from test_trainer import config
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from stma import InputError
from stma.model.attention import TransformerBlock
from stma.model.backbone import Backbone
from stma.model.factory import ModelConfig, build_backbone
from stma.model.pretrained import (
    convert_convmae,
    convert_dinov2,
    convert_mae,
    convert_moco_v3,
    kind_of,
    load_pretrained,
)
from stma.model.stml import encode_test
from stma.model.weights import load_model
from stma.training.run import train

# The names in public checkpoints, recorded from the public code; a{b,c}d stands for abd and acd.
AFFINE = "{weight,bias}"
BLOCK = f"{{norm1,norm2,attn.qkv,attn.proj,mlp.fc1,mlp.fc2}}.{AFFINE}"
TO_10 = "{0,1,2,3,4,5,6,7,8,9,10}"
TO_11 = "{0,1,2,3,4,5,6,7,8,9,10,11}"
DECODER = [
    "{mask_token,decoder_pos_embed}",
    f"{{decoder_embed,decoder_norm,decoder_pred}}.{AFFINE}",
    f"decoder_blocks.{{0,1,2,3,4,5,6,7}}.{BLOCK}",
]
CONVMAE = [
    "pos_embed",
    f"patch_embed{{1,2,3}}.{{proj,norm}}.{AFFINE}",
    f"{{patch_embed4,norm}}.{AFFINE}",
    f"blocks{{1,2}}.{{0,1}}.{{norm1,conv1,attn,conv2,norm2,mlp.fc1,mlp.fc2}}.{AFFINE}",
    f"blocks3.{TO_10}.{BLOCK}",
]
CONVMAE_DECODER = [*DECODER, f"stage{{1,2}}_output_decode.{AFFINE}"]
VIT = ["{cls_token,pos_embed}", f"{{patch_embed.proj,norm}}.{AFFINE}", f"blocks.{TO_11}.{BLOCK}"]
STATISTICS = "{running_mean,running_var,num_batches_tracked}"
MOCO_HEAD = [
    "{0,3,6}.weight",
    f"{{1,4}}.{{weight,bias,{STATISTICS[1:-1]}}}",
    f"7.{STATISTICS}",
]
MOCO = [
    *(f"module.{{base,momentum}}_encoder.{name}" for name in VIT),
    *(f"module.{{base,momentum}}_encoder.head.{name}" for name in MOCO_HEAD),
    "module.predictor.{0,3}.weight",
    f"module.predictor.1.{{weight,bias,{STATISTICS[1:-1]}}}",
    f"module.predictor.4.{STATISTICS}",
]
DINOV2 = [*VIT, "{mask_token,register_tokens}", f"blocks.{TO_11}.{{ls1,ls2}}.gamma"]

CONVVIT_MODEL = ModelConfig(dims=[4, 8, 16], depths=[2, 2, 11], num_heads=2)
VIT_MODEL = ModelConfig(
    backbone="vit", dims=[4, 8, 16], depths=[0, 0, 12], num_heads=2, class_token=True
)


def expanded(patterns: list[str]) -> list[str]:
    names = []
    for pattern in patterns:
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        names += ["".join(choice) for choice in product(*parts)]
    return names


def checkpoint(patterns: list[str], model: ModelConfig, prefix: str = "") -> dict[str, Tensor]:
    """Random tensors with the names of a public checkpoint's, but small."""
    own = build_backbone(model).state_dict()
    state = {}
    for name in expanded(patterns):
        inner = name.removeprefix(prefix)
        state[name] = torch.randn(own[inner].shape if inner in own else (2,))
        if inner == "pos_embed" and f"{prefix}cls_token" in state:
            state[name] = with_class_token(own[inner])
    return state


def with_class_token(positions: Tensor) -> Tensor:
    """Of a class token too, a small random one."""
    return torch.cat([0.1 * torch.randn_like(positions[:, :1]), positions], dim=1)


def convmae() -> dict[str, Tensor]:
    return checkpoint(CONVMAE, CONVVIT_MODEL)


def mae() -> dict[str, Tensor]:
    return checkpoint(VIT, VIT_MODEL)


def dinov2() -> dict[str, Tensor]:
    state = checkpoint(DINOV2, VIT_MODEL)
    state["pos_embed"] = torch.randn(1, 37 * 37 + 1, 16)
    state["patch_embed.proj.weight"] = torch.randn(16, 3, 14, 14)
    for name in state:
        if name.endswith("gamma"):
            state[name] = torch.randn(16)
    return state


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def assert_holds(backbone: Backbone, expected: dict[str, Tensor]) -> None:
    state = backbone.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("decoder", [[], CONVMAE_DECODER], ids=["encoder", "decoder"])
def test_convmae(tmp_path, decoder: list[str], caplog) -> None:
    state = checkpoint([*CONVMAE, *decoder], CONVVIT_MODEL)
    # What ConvMAE's own training saves beside the weights.
    settings = argparse.Namespace(lr=1e-3, output_dir="./out", world_size=8)
    path = saved(tmp_path / "convmae.pth", {"model": state, "epoch": 1599, "args": settings})
    backbone = build_backbone(CONVVIT_MODEL)
    with caplog.at_level(logging.INFO):
        load_pretrained(backbone, path)
    assert_holds(backbone, {name: state[name] for name in expanded(CONVMAE)})
    assert "ConvMAE checkpoint: kept 205 of" in caplog.text
    assert ("dropped 108: mask_token 1, " in caplog.text) == bool(decoder)
    assert "new" not in caplog.text


def test_a_fine_tuned_checkpoint_leaves_the_final_norm_as_it_was(tmp_path, caplog) -> None:
    """Its ``fc_norm`` is for the mean over all tokens."""
    patterns = [*CONVMAE, f"{{fc_norm,head}}.{AFFINE}"]
    state = checkpoint(patterns, CONVVIT_MODEL)
    for name in expanded([f"norm.{AFFINE}"]):
        del state[name]
    backbone = build_backbone(CONVVIT_MODEL)
    with caplog.at_level(logging.INFO):
        load_pretrained(backbone, saved(tmp_path / "tuned.pth", {"model": state}))
    assert_holds(backbone, {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)})
    assert "new 2: norm 2" in caplog.text


@pytest.mark.parametrize("decoder", [[], DECODER], ids=["encoder", "decoder"])
def test_mae(tmp_path, decoder: list[str], caplog) -> None:
    state = checkpoint([*VIT, *decoder], VIT_MODEL)
    backbone = build_backbone(VIT_MODEL)
    with caplog.at_level(logging.INFO):
        load_pretrained(backbone, saved(tmp_path / "mae.pth", {"model": state}))
    expected = {name: state[name] for name in expanded(VIT)}
    expected["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    expected["pos_embed"] = state["pos_embed"][:, 1:]
    assert_holds(backbone, expected)
    assert "MAE ViT checkpoint: kept 150 of" in caplog.text
    assert "new 8: to_stride8 4, to_stride4 4" in caplog.text


@pytest.mark.parametrize("encoder", ["base", "momentum"])
def test_moco_v3(tmp_path, encoder: str, caplog) -> None:
    """The momentum encoder, if it is the only one."""
    prefix = f"module.{encoder}_encoder."
    state = checkpoint(MOCO, VIT_MODEL, prefix)
    if encoder == "momentum":
        state = {k: v for k, v in state.items() if "base_encoder" not in k}
    backbone = build_backbone(VIT_MODEL)
    with caplog.at_level(logging.INFO):
        load_pretrained(backbone, saved(tmp_path / "moco.pth.tar", {"state_dict": state}))
    expected = {name: state[prefix + name] for name in expanded(VIT)}
    positions = state[f"{prefix}pos_embed"]
    expected["cls_token"] = state[f"{prefix}cls_token"] + positions[:, :1]
    expected["pos_embed"] = positions[:, 1:]
    assert_holds(backbone, expected)
    assert f"kept 150 of {len(state)} tensors ({encoder}_encoder.*)" in caplog.text
    assert "predictor 10" in caplog.text


def test_moco_v3_of_a_linear_probe() -> None:
    state = checkpoint([*VIT, f"head.{AFFINE}"], VIT_MODEL)
    probe = {f"module.{name}": tensor for name, tensor in state.items()}
    converted, expected = convert_moco_v3(probe), convert_mae(state)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_encoders_of_equal_names_are_told_apart_by_their_positions(tmp_path) -> None:
    """MoCo v3's first half of channels is the row, MAE's the column."""
    state = mae()
    assert kind_of(saved(tmp_path / "a.pth", state)) == "MAE ViT"
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    assert kind_of(saved(tmp_path / "b.pth", parallel)) == "MAE ViT"
    moco = state | {"pos_embed": state["pos_embed"].roll(8, dims=2)}
    assert kind_of(saved(tmp_path / "c.pth", moco)) == "MoCo v3 ViT"
    learned = state | {"pos_embed": torch.randn(1, 14 * 14 + 1, 16)}
    assert kind_of(saved(tmp_path / "d.pth", learned)) == "ViT"
    for name in "abcd":
        load_pretrained(build_backbone(VIT_MODEL), tmp_path / f"{name}.pth")
    parallel = {f"module.{name}": tensor for name, tensor in convmae().items()}
    assert kind_of(saved(tmp_path / "e.pth", parallel)) == "ConvMAE"
    load_pretrained(build_backbone(CONVVIT_MODEL), tmp_path / "e.pth")


@pytest.mark.parametrize("value", [float("nan"), 3])
def test_tensors_that_are_no_finite_numbers_are_named(tmp_path, value: float) -> None:
    state = changed(mae(), norm__weight=torch.full((16,), value))
    with pytest.raises(InputError, match=r"norm.weight: not all numbers are finite"):
        load_pretrained(build_backbone(VIT_MODEL), saved(tmp_path / "mae.pth", state))


def test_dinov2(tmp_path, caplog) -> None:
    state = dinov2()
    path = tmp_path / "dinov2.safetensors"
    save_file(state, path)
    backbone = build_backbone(VIT_MODEL)
    with caplog.at_level(logging.INFO):
        load_pretrained(backbone, path)
    assert_holds(backbone, {"blocks.7.attn.qkv.weight": state["blocks.7.attn.qkv.weight"]})
    for line in (
        "dropped 2: mask_token 1, register_tokens 1",
        "folded 24",
        "pos_embed (1, 1370, 16) to (1, 196, 16)",
        "patch_embed.proj.weight (16, 3, 14, 14) to (16, 3, 16, 16)",
    ):
        assert line in caplog.text


def test_dinov2_with_registers_by_timms_names(tmp_path) -> None:
    """Whose positions have none for the class token; they go the way of DINOv2's own."""
    state = dinov2()
    state["reg_token"] = state.pop("register_tokens")
    state["pos_embed"] = state["pos_embed"][:, 1:]
    backbone = build_backbone(VIT_MODEL)
    load_pretrained(backbone, saved(tmp_path / "reg4.pth", state))
    assert_holds(backbone, {"cls_token": state["cls_token"]})


def test_features_are_those_of_timms_vit_with_its_class_token(tmp_path) -> None:
    """MAE's and MoCo v3's code are subclasses of this network."""
    torch.manual_seed(0)
    norm = partial(nn.LayerNorm, eps=1e-6)
    theirs = VisionTransformer(embed_dim=16, depth=12, num_heads=2, norm_layer=norm).eval()
    for parameter in theirs.parameters():  # none so small that its place would not matter
        nn.init.normal_(parameter, std=0.3)
    backbone = build_backbone(VIT_MODEL).eval()
    load_pretrained(backbone, saved(tmp_path / "vit.pth", theirs.state_dict()))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        frame = backbone.embed(images)
        ours = backbone.finish(encode_test(backbone.last_stage, frame.tokens, None))
        expected = theirs.forward_features(images)
    assert ours.shape == (2, 14 * 14, 16)
    assert torch.allclose(ours, expected[:, 1:], atol=1e-4)
    assert not torch.allclose(expected[:, :1].expand_as(ours), ours, atol=0.1)


def test_a_class_token_may_be_left_out(tmp_path) -> None:
    state = mae()
    backbone = build_backbone(replace(VIT_MODEL, class_token=False))
    load_pretrained(backbone, saved(tmp_path / "mae.pth", state))
    assert "cls_token" not in backbone.state_dict()
    path = saved(tmp_path / "none.pth", without(state, "cls_token"))
    with pytest.raises(InputError, match=r"missing: cls_token \(model.class_token=false"):
        load_pretrained(build_backbone(VIT_MODEL), path)


def test_a_folded_layer_scale_gives_the_same_features() -> None:
    torch.manual_seed(0)
    norm = partial(nn.LayerNorm, eps=1e-6)
    theirs = Block(12, num_heads=2, qkv_bias=True, init_values=1.0, norm_layer=norm)
    for name in ("ls1", "ls2"):
        nn.init.normal_(theirs.get_parameter(f"{name}.gamma"))
    state = {f"blocks.0.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = TransformerBlock(12, num_heads=2)
    ours.load_state_dict(
        {name.removeprefix("blocks.0."): tensor for name, tensor in convert_dinov2(state).items()}
    )
    tokens = torch.randn(2, 6, 12)
    assert torch.allclose(encode_test([ours], tokens, None), theirs(tokens), atol=1e-6)


def test_a_resized_patch_projection_gives_an_enlarged_patch_the_same_token() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 14, 14) / 24
    resized = convert_dinov2({"patch_embed.proj.weight": weight})["patch_embed.proj.weight"]
    patches = torch.randn(5, 3, 14, 14)
    enlarged = F.interpolate(patches, size=(16, 16), mode="bicubic", antialias=True)
    assert torch.allclose(F.conv2d(enlarged, resized), F.conv2d(patches, weight), atol=1e-5)


def test_positions_are_resized_bicubically_without_the_class_tokens() -> None:
    positions = torch.randn(1, 37 * 37 + 1, 4)
    resized = convert_mae({"pos_embed": positions})["pos_embed"]
    grid = positions[:, 1:].reshape(1, 37, 37, 4).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(14, 14), mode="bicubic", antialias=True)
    assert torch.allclose(resized, expected.flatten(2).transpose(1, 2), atol=1e-6)
    without = torch.randn(1, 14 * 14, 4)
    assert torch.equal(convert_convmae({"pos_embed": without})["pos_embed"], without)


def test_conversion_leaves_its_input_as_it_was() -> None:
    state = dinov2()
    before = {name: tensor.clone() for name, tensor in state.items()}
    convert_dinov2(state)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: tensor for other, tensor in state.items() if other != name}


def changed(state: dict[str, Tensor], **tensors: Tensor) -> dict[str, Tensor]:
    return state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("state", "model", "message"),
    [
        (lambda: {"conv1.weight": torch.zeros(1)}, VIT_MODEL, r"none of .*ConvMAE.*conv1\.weight"),
        (lambda: {f"a{i}": torch.zeros(1) for i in range(20)}, VIT_MODEL, "a7 and 12 more"),
        (mae, CONVVIT_MODEL, r"MAE ViT .*backbone is a ConvViT; set model=vit_b"),
        (convmae, VIT_MODEL, r"ConvMAE .*backbone is a ViT; set model=convvit_b"),
        (dinov2, CONVVIT_MODEL, "DINOv2 ViT .*backbone is a ConvViT"),
        (
            lambda: changed(mae(), norm__weight=torch.zeros(24)),
            VIT_MODEL,
            r"architecture differs.*norm\.weight: \(24,\) in the file, \(16,\) in the model",
        ),
        (mae, replace(VIT_MODEL, depths=[0, 0, 14]), "missing: blocks.12.*and 16"),
        (mae, replace(VIT_MODEL, depths=[0, 0, 11]), "unexpected: blocks.11"),
        (lambda: without(mae(), "norm.bias"), VIT_MODEL, r"missing: norm\.bias"),
        (lambda: without(mae(), "pos_embed"), VIT_MODEL, "missing: pos_embed"),
        (lambda: changed(mae(), pos_embed=torch.zeros(1, 200, 16)), VIT_MODEL, "no square"),
        (lambda: changed(dinov2(), blocks__0__ls1__gamma=torch.zeros(3)), VIT_MODEL, "DINOv2.*but"),
    ],
)
def test_checkpoints_of_the_wrong_kind_say_what_they_hold(
    tmp_path, state, model: ModelConfig, message: str
) -> None:
    path = saved(tmp_path / "their.pth", {"model": state()})
    backbone = build_backbone(model)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(InputError, match=rf"(?s)their\.pth.*{message}"):
        load_pretrained(backbone, path)
    assert_holds(backbone, before)


class Payload:
    ran = False

    def __reduce__(self) -> tuple:
        return (setattr, (Payload, "ran", True))


def test_nothing_is_run_that_a_pickle_brings(tmp_path) -> None:
    path = saved(tmp_path / "evil.pth", {"model": mae(), "args": Payload()})
    with pytest.raises(InputError, match=r"evil\.pth: holds .*setattr, which can run code"):
        load_pretrained(build_backbone(VIT_MODEL), path)
    assert not Payload.ran


def test_files_without_weights_and_damaged_ones_are_named(tmp_path, weights) -> None:
    backbone = build_backbone(VIT_MODEL)
    with pytest.raises(InputError, match=r"none\.pth: no such"):
        load_pretrained(backbone, tmp_path / "none.pth")
    cut = saved(tmp_path / "cut.pth", {"model": mae()})
    for size in (2, 100, 2000):
        cut.write_bytes(cut.read_bytes()[:-size])
        with pytest.raises(InputError, match=r"cut\.pth: not a complete"):
            load_pretrained(backbone, cut)
    (tmp_path / "text.pth").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"text\.pth: neither"):
        load_pretrained(backbone, tmp_path / "text.pth")
    with pytest.raises(InputError, match=r"it has epoch, lr"):
        load_pretrained(backbone, saved(tmp_path / "empty.pth", {"epoch": 3, "lr": 0.1}))
    with pytest.raises(InputError, match=r"it is a list"):
        load_pretrained(backbone, saved(tmp_path / "list.pth", [torch.zeros(1)]))
    with pytest.raises(InputError, match=r"a complete STMA model; give it as weights="):
        load_pretrained(backbone, weights)


def public_file(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A ConvMAE checkpoint of the tests' tiny model."""
    state = {k: torch.randn(v.shape) * 0.1 for k, v in build_backbone(TINY).state_dict().items()}
    return saved(folder / "public.pth", {"model": state}), state


def test_training_starts_from_a_public_backbone_and_never_asks_for_it_again(tmp_path) -> None:
    path, state = public_file(tmp_path)
    settings = config(tmp_path / "run", pretrained=str(path))
    assert_holds(learner_of(settings, str(path)).model.backbone, state)
    fixed = load_model(train(settings)).backbone.state_dict()["pos_embed"]
    assert torch.equal(fixed, state["pos_embed"])
    path.unlink()
    (tmp_path / "run" / "only" / "run.json").unlink()
    train(settings)


def test_weights_and_a_public_backbone_exclude_each_other(tmp_path) -> None:
    with pytest.raises(InputError, match="weights is a and pretrained b"):
        config(tmp_path, weights="a", pretrained="b")
