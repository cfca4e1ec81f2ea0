"""Backbones of timm, with random weights and, for plain ViTs, tiny sizes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, box, make_batch, random_frame
from safetensors.torch import save_file

from stma.compose import load_config
from stma.errors import InputError
from stma.inference.export import Sizes, export, parts, positions_of_any_grid
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model import timm_backbone as module
from stma.model.factory import ModelConfig, build_backbone, build_model
from stma.model.pretrained import load_pretrained
from stma.model.stml import encode_test
from stma.model.streams import VARIANTS
from stma.model.timm_backbone import TimmViT
from stma.model.vit import ViT
from stma.model.weights import load_model, save_weights
from stma.structures import unrotated
from stma.training.config import TrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
ROTARY = [
    "vit_small_patch16_dinov3",
    "vit_base_patch16_rope_224",
    "vit_base_patch16_rope_mixed_224",
    "eva02_tiny_patch14_224",
]
PLAIN = [
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_224.augreg_in21k",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_clip_224",
    "deit3_small_patch16_224",
    "eva_large_patch14_196",
]
STAGES = ["resnet18", "sam2_hiera_tiny", "swin_tiny_patch4_window7_224"]
CUT_OFF = ["mobilenetv3_small_100"]  # whose later stages are of no use
SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plain ViTs get tiny sizes."""
    create = timm.create_model

    def small(name: str, **options):
        vit = name in (*PLAIN, *ROTARY)
        return create(name, **(SMALL if vit else {}), **options)

    monkeypatch.setattr(timm, "create_model", small)
    module.facts.cache_clear()
    yield
    module.facts.cache_clear()


def config_of(name: str, **settings) -> ModelConfig:
    own = {"dims": [8, 12, 16], "depths": [1, 1, 2], "num_heads": 2, "conv_stem": True}
    own |= {"mean": None, "std": None}
    return replace(TINY, backbone="timm", timm=name, **(own | settings))


def moved(module: torch.nn.Module) -> None:
    """So that parameters of zero, one or nearly so hide nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", [*PLAIN, *ROTARY])
def test_features_are_those_of_timms_own_forward(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(config_of(name)).eval()
    assert isinstance(backbone, TimmViT)
    moved(backbone.vit)
    for size in ((48, 80), backbone.vit.patch_embed.img_size):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            frame = backbone.embed(images)
            tokens = encode_test(
                backbone.last_stage, frame.tokens, None, rope=backbone.rope(frame.grid)
            )
            expected = backbone.vit.fc_norm(backbone.vit.forward_features(images))
        assert frame.grid == (size[0] // 16, size[1] // 16)
        found = backbone.finish(tokens)
        torch.testing.assert_close(found, expected[:, backbone.num_prefix :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*STAGES, *CUT_OFF])
def test_stages_are_timms_own(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(config_of(name)).eval()
    images = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        frame = backbone.embed(images)
        expected = backbone.network(images)
    assert frame.fine is not None
    for x, theirs, stride in zip(frame.fine, expected[::-1], (8, 4), strict=True):
        theirs = theirs if theirs.shape[1] == x.shape[1] else theirs.permute(0, 3, 1, 2)
        assert torch.equal(x, theirs)
        assert x.shape[2:] == (96 // stride, 160 // stride)
    assert tuple(x.shape[1] for x in frame.fine) == backbone.fine_dims
    assert backbone.embed(images[..., :80, :112]).fine[0].shape[2:] == (10, 14)  # not all of 32


@pytest.mark.parametrize("name", [*PLAIN, *ROTARY, *STAGES, *CUT_OFF])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(name)).train()
    model.checkpoint_blocks()
    clip = make_batch(num_frames=3, size=64)
    model(clip).logits.square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize(
    ("name", "variant"), [*((ROTARY[0], variant) for variant in VARIANTS), ("resnet18", "full")]
)
def test_every_variant_trains_and_segments(name: str, variant: str, tmp_path) -> None:
    torch.manual_seed(0)
    config = config_of(name, variant=variant, conv_stem=False)
    model = build_model(config)
    model(make_batch(num_frames=3, size=48)).logits.square().mean().backward()
    save_weights(tmp_path / "w.safetensors", model, config, {})
    segmenter = Segmenter(load_model(tmp_path / "w.safetensors"), SegmenterConfig())
    rng = np.random.default_rng(0)
    segmenter.step(random_frame(rng, 40, 56), box(4, 4, 20, 30))
    assert segmenter.step(random_frame(rng, 40, 56)).mask.shape == (40, 56)


def test_what_has_no_place_is_not_rotated() -> None:
    backbone = build_backbone(config_of(ROTARY[0]))
    block, (rope, *_) = backbone.last_stage[0], backbone.rope((2, 3))
    objects = torch.randn(1, 4, 32)
    query, keys = block.project(objects)
    rotated, rotated_keys = block.project(objects, unrotated(rope, 4))
    torch.testing.assert_close(rotated, query)
    torch.testing.assert_close(rotated_keys.key, keys.key)
    query, _ = block.project(torch.randn(1, backbone.num_prefix + 6, 32), rope)
    assert query.shape[2] == backbone.num_prefix + 6


def test_every_reference_has_the_places_of_a_frame() -> None:
    torch.manual_seed(0)
    model = build_model(config_of(ROTARY[0])).eval()
    moved(model)
    blocks, rope = model.backbone.last_stage, model.backbone.rope((2, 3))
    references, objects = torch.randn(1, 2, 5 + 6, 32), torch.randn(1, 3, 32)
    tokens = torch.randn(1, 5 + 6, 32)
    prepared = model.streams.prepare(blocks, references, objects, None, rope)
    swapped = model.streams.prepare(blocks, references.flip(1), objects, None, rope)
    first, second = (model.streams.encode(blocks, tokens, p, rope) for p in (prepared, swapped))
    torch.testing.assert_close(first, second)
    upright = model.streams.prepare(blocks, references, objects, None, model.backbone.rope((3, 2)))
    assert not torch.allclose(first, model.streams.encode(blocks, tokens, upright, rope))


@pytest.mark.slow
def test_parts_are_exported() -> None:
    """And give the same at another size."""
    model = build_model(config_of("vit_small_patch14_reg4_dinov2")).eval()
    other = {part.name: part for part in parts(model, SegmenterConfig(), Sizes(4, 7, 2, 6, 1))}
    with positions_of_any_grid(model), torch.no_grad():
        for part in parts(model, SegmenterConfig(), Sizes()):
            exported = torch.export.export(
                part.module.eval(), part.inputs, dynamic_shapes=part.dynamic
            )
            inputs = other[part.name].inputs
            for a, b in zip(
                exported.module()(*inputs), other[part.name].module(*inputs), strict=True
            ):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "resnet18"])
def test_a_local_file_of_timm_loads(name: str, tmp_path: Path) -> None:
    """With the head that it has; the patches grow from 14 to 16 pixels, the positions stay."""
    torch.manual_seed(1)
    theirs = timm.create_model(name).state_dict()
    save_file(theirs, tmp_path / "theirs.safetensors")
    backbone = build_backbone(config_of(name))
    load_pretrained(backbone, tmp_path / "theirs.safetensors")
    if isinstance(backbone, TimmViT):
        loaded = backbone.vit.state_dict()
        assert loaded["patch_embed.proj.weight"].shape[-1] == 16
        names = [name for name in loaded if not name.startswith("patch_embed.proj.weight")]
    else:
        loaded, names = backbone.network.state_dict(), ["conv1.weight", "bn1.running_mean"]
    for each in names:
        assert torch.equal(loaded[each], theirs[each]), each


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    backbone = build_backbone(config_of(PLAIN[0]))
    with pytest.raises(InputError, match=r"none\.safetensors: no such weights file.*=timm"):
        load_pretrained(backbone, tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match=r"foreign\.safetensors: no weights of timm's vit_small"):
        load_pretrained(backbone, tmp_path / "foreign.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"123456789")
    with pytest.raises(InputError, match=r"cut\.safetensors: no weights of timm's vit_small"):
        load_pretrained(backbone, tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_smal_patch14_dinov2", "did you mean vit_small_patch14_dinov2"),
        ("vit_small_patch14_dinov2.nothing", "nothing"),
        ("beit_base_patch16_224", "relative positions"),
        ("vit_tiny_r_s16_p8_224", "HybridEmbed"),
        ("hiera_tiny_224", "frames of one size"),
        ("vit_base_patch16_18x2_224", "ParallelThingsBlock"),
        ("mixer_b16_224", "without features at strides 4 and 8"),
    ],
)
def test_what_cannot_be_a_backbone_says_why(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"model\.timm is '{name}': .*{reason}"):
        config_of(name)


def test_settings_that_contradict_the_backbone() -> None:
    with pytest.raises(InputError, match=r"model\.timm is None"):
        ModelConfig(backbone="timm")
    with pytest.raises(InputError, match=r"model\.timm is 'resnet18'.*model\.backbone 'vit'"):
        ModelConfig(backbone="vit", timm="resnet18")
    with pytest.raises(InputError, match=r"model\.reference_pooling is 2.*rotary"):
        config_of(ROTARY[0], reference_pooling=2)
    with pytest.raises(InputError, match=r"model\.std is \[0\.5\]"):
        config_of(PLAIN[0], std=[0.5])


def test_rotary_positions_are_not_exported(tmp_path: Path) -> None:
    config = config_of(ROTARY[0])
    save_weights(tmp_path / "w.safetensors", build_model(config), config, {})
    with pytest.raises(InputError, match=r"rotary positions of model\.timm"):
        export(tmp_path / "w.safetensors", tmp_path / "out")


def test_what_timm_determines_is_in_the_configuration(tmp_path: Path) -> None:
    plain = config_of("vit_small_patch16_224.augreg_in21k", dims=[8, 12, 1], depths=[1, 1, 9])
    assert (plain.dims, plain.depths, plain.num_heads) == ([8, 12, 32], [1, 1, 3], 2)
    assert plain.mean == plain.std == [0.5, 0.5, 0.5]
    assert config_of(PLAIN[0], conv_stem=False).depths == [0, 0, 3]
    stages = config_of("resnet18")
    assert (stages.dims, stages.depths) == ([64, 128, 16], [0, 0, 2])
    model = build_model(plain)
    save_weights(tmp_path / "w.safetensors", model, plain, {})
    white = load_model(tmp_path / "w.safetensors").normalize(torch.ones(1, 3, 1, 1))
    assert white.flatten().tolist() == [1, 1, 1]


def test_the_command_line_asks_for_a_name() -> None:
    from stma.runtime.config import parse_config

    config = load_config(CONFIGS, "train", ["model=timm"])
    with pytest.raises(InputError, match=r"model\.timm is None"):
        parse_config(TrainConfig, config)
    config = load_config(CONFIGS, "train", ["model=timm", "model.timm=vit_small_patch14_dinov2"])
    assert parse_config(TrainConfig, config).model.dims == [64, 128, 32]


@pytest.mark.parametrize("by_name", [False, True])
def test_weights_that_expect_other_frames_are_not_loaded_in_silence(
    tmp_path: Path, by_name: bool
) -> None:
    """In the names of MAE, into the paper's plain ViT."""
    vit = ViT(dim=16, depth=2, num_heads=2, fine_dims=(12, 8))
    state = {name: x for name, x in vit.state_dict().items() if not name.startswith("to_")}
    name = "vit_base_patch16_224.augreg_in21k" if by_name else "model"
    save_file(state, tmp_path / f"{name}.safetensors")
    if not by_name:
        about = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
        (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=rf"{name}.*model\.mean=\[0\.5,0\.5,0\.5\] model\.std"):
        load_pretrained(vit, tmp_path / f"{name}.safetensors")
    vit.normalization = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    load_pretrained(vit, tmp_path / f"{name}.safetensors")
