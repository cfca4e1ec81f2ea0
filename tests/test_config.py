import os
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from stma import SegmenterConfig, save_weights
from stma.compose import (
    load_config,
    load_model_config,
    model_names,
    parse_train_config,
    quoted,
)
from stma.data.config import DatasetConfig
from stma.data.dataset import DataConfig
from stma.errors import InputError
from stma.evaluation.eval_config import EvalConfig, parse_eval_config
from stma.inference.augmentation import AugmentConfig
from stma.model.factory import build_model
from stma.model.weights import read_segmenter_settings, read_weights
from stma.runtime.config import parse_config
from stma.training.config import StageConfig, TrainConfig, ValidationConfig

CONFIGS = Path(__file__).parent.parent / "configs"
MODELS = [name for name in model_names(CONFIGS) if name != "timm"]  # which needs model.timm
PAPERS = ("video", "static_video", "static_bl30k_video", "video_lvos")
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def composed(name: str, *overrides: str):
    return load_config(CONFIGS, name, overrides)


@pytest.fixture(scope="module")
def train() -> DictConfig:
    return composed("train")


def changed(config: DictConfig, override: str) -> DictConfig:
    """A copy with another value, which takes a hundredth of the time of composing it."""
    key, _, value = override.partition("=")
    config = deepcopy(config)
    OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
    return config


@pytest.mark.parametrize("model", MODELS)
def test_every_model_composes_and_builds(model: str) -> None:
    config = load_model_config(CONFIGS, model)
    with torch.device("meta"):
        network = build_model(config)
    assert network.backbone.dim == config.dims[2]


@cache
def experiment(name: str) -> DictConfig:
    return composed("train", f"experiment={name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_builds(name: str) -> None:
    config = deepcopy(experiment(name))
    asked = dict.fromkeys(PAPERS, ("pretrained", r"convmae_base\.pth.*null", None))
    asked["medium"] = ("pretrained", "dinov2_vits14", None)
    asked["small"] = ("stages.shipped_distill.teacher", "dinov2_vits14", "vit.pth")
    if name in asked:
        key, message, given = asked[name]
        with pytest.raises(InputError, match=rf"{key}: is missing; .*{message}"):
            parse_train_config(config)
        OmegaConf.update(config, key, given)
    config = parse_train_config(config)
    with torch.device("meta"):
        build_model(config.model)


def test_fine_tuning_takes_the_network_that_comes_with_the_package() -> None:
    recipe = changed(experiment("small"), "stages.shipped_distill.teacher=vit.pth")
    finetune = experiment("finetune")
    assert finetune.weights == "small"
    assert finetune.model == recipe.model
    stored = SegmenterConfig(**read_segmenter_settings("small"))
    for config in (finetune, recipe):
        parsed = parse_train_config(config)
        assert parsed.model == read_weights("small")[0]
        assert SegmenterConfig(**parsed.segmenter) == stored
    assert list(finetune.stages) == ["finetune"]


def test_the_shipped_networks_share_their_stages() -> None:
    small, medium = experiment("small"), experiment("medium")
    assert list(small.stages) == ["shipped_distill", *medium.stages]
    for name in medium.stages:
        one, other = (OmegaConf.to_container(c.stages[name]) for c in (small, medium))
        differing = {key for key in one if one[key] != other[key]}
        assert differing <= {"iterations", "optimizer"}


def test_without_overrides_the_settings_are_the_dataclasses_defaults() -> None:
    data = DataConfig(sources={"procedural": DatasetConfig(kind="procedural")})
    stages = {"procedural": StageConfig(data=data)}
    assert parse_train_config(composed("train")) == TrainConfig("runs/train", stages)
    config = parse_eval_config(composed("eval", "root=x", "method=copy"))
    assert config == EvalConfig(root="x", method="copy", output="results/folder/copy")


def test_what_changes_of_the_segmenter_is_stored_with_the_weights() -> None:
    for override in ("segmenter={short_side: 288}", "segmenter.short_side=288"):
        assert parse_train_config(composed("train", override)).segmenter == {"short_side": 288}
    with pytest.raises(InputError, match=r"segmenter: scale is 9\.0"):
        parse_train_config(composed("train", "segmenter.scale=9"))


def test_every_key_of_a_benchmark_can_be_set() -> None:
    given = ("benchmark.void=255", "benchmark.objects=first_mask", "benchmark.scored=true")
    rules = parse_eval_config(composed("eval", "root=x", "method=copy", *given)).benchmark
    assert (rules.void, rules.objects, rules.scored) == (255, "first_mask", True)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(InputError, match="learning_rat"):
        parse_config(TrainConfig, composed("train", "+stages.procedural.optimizer.learning_rat=1"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.procedural.batch_size=many", "batch_size"),
        ("stages.procedural.batch_size=0", r"stages\.procedural: batch_size is 0"),
        ("stages.procedural=3", r"stages\.procedural: .*StageConfig"),
        ("validation=3", r"ValidationConfig"),
        ("accumulate=0", "accumulate is 0"),
        ("ema=1", "ema is 1"),
        ("validation.every=0", "validation: every is 0"),
        ("stages.procedural.data.num_frames=1", r"data\.num_frames is 1"),
        ("validation.split=val", r"validation: split is val, but root is null"),
        ("validation.clips=[a]", r"validation: clips is \['a'\], but root is null"),
        ("model.depths=[1,1,1]", r"model\.depths is \[1, 1, 1\]; the last needs 2"),
        ("model.num_heads=5", r"model\.num_heads"),
        ("stages.procedural.loss.objects=-1", r"loss\.objects is -1"),
        ("model.num_heads=0", r"model\.num_heads"),
        ("model.value_widths=[0,8,8]", r"model\.value_widths"),
        ("model.drop_path=2", r"model\.drop_path"),
        ("seed=-1", "seed is -1"),
        ("precision=fp8", "fp8"),
        ("stages.procedural.optimizer.betas=[2,0.9]", r"optimizer\.betas"),
        ("stages.procedural.optimizer.weight_decay=-1", r"optimizer\.weight_decay"),
        ("stages.procedural.optimizer.learning_rate=nan", r"optimizer\.learning_rate"),
        ("stages.procedural.optimizer.decay_at=[100000]", r"decay_at is \[100000.*shares"),
        ("stages.procedural.optimizer.decay_at=[0.5,0.2]", r"optimizer\.decay_at"),
        ("stages.procedural.optimizer.decay_factor=-3", r"optimizer\.decay_factor is -3"),
        ("stages.procedural.loss.cross_entropy=-1", r"loss\.cross_entropy is -1"),
        ("stages.procedural.loss.dice=inf", r"loss\.dice is inf"),
        ("stages.procedural.loss={cross_entropy: 0, dice: 0}", "are both 0"),
    ],
)
def test_a_bad_value_is_named(train, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(TrainConfig, changed(train, override))


def test_a_bad_value_deep_inside_is_named_with_its_path(train) -> None:
    for override, message in (
        (
            "stages.procedural.data.sources.procedural.scene.blur=2",
            r"stages\.procedural\.data\.sources\.procedural\.scene: blur is 2",
        ),
        (
            "stages.procedural.data.sources.procedural.weight=0",
            r"data\.sources\.procedural: weight is 0",
        ),
    ):
        with pytest.raises(InputError, match=message):
            parse_config(TrainConfig, changed(train, override))


def test_what_is_auto_comes_from_the_weights(tmp_path, tiny_model, tiny_config) -> None:
    tiny_model.segmenter_settings = {"short_side": 64, "memory_interval": 2}
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny_model, tiny_config, {})
    chosen = "root=x", f"weights={quoted(path)}"
    config = parse_eval_config(composed("eval", *chosen)).segmenter
    assert config == SegmenterConfig(short_side=64, memory_interval=2)
    config = parse_eval_config(composed("eval", *chosen, "segmenter.short_side=null")).segmenter
    assert config == SegmenterConfig(short_side=None, memory_interval=2)
    # A benchmark's own setting is the paper's, whatever the weights.
    config = parse_eval_config(composed("eval", *chosen, "benchmark=davis2017_val")).segmenter
    assert config.memory_interval == 3
    # A reference without training has no weights to be asked.
    assert parse_eval_config(composed("eval", "root=x", "method=flow")).segmenter.short_side == 480


def test_a_loss_on_object_tokens_needs_some() -> None:
    overrides = "stages.procedural.loss.objects=0.3", "model.variant=joint"
    with pytest.raises(InputError, match=r"procedural\.loss\.objects is 0\.3, but with .*joint"):
        parse_config(TrainConfig, composed("train", *overrides))


def test_missing_values_are_named() -> None:
    with pytest.raises(InputError, match="root"):
        parse_eval_config(composed("eval", "method=copy"))


def test_a_missing_value_is_not_its_default() -> None:
    config = composed("train")
    config.ema = "???"
    with pytest.raises(InputError, match=r"ema is missing; give ema=\.\.\."):
        parse_config(TrainConfig, config)


def test_an_unknown_model_is_named_beside_those_there_are() -> None:
    with pytest.raises(InputError, match="no model resnet; there are convvit_b, convvit_s"):
        load_model_config(CONFIGS, "resnet")


@pytest.mark.parametrize(
    "settings",
    [
        {"memory_interval": 2.5},
        {"memory_interval": None},
        {"memory_interval": True},
        {"capacity": "abc"},
        {"short_side": float("nan")},
        {"scale": float("nan")},
        {"precision": None},
    ],
)
def test_the_library_checks_types_as_the_command_line_does(settings) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"^{name}\b"):
        SegmenterConfig(**settings)


def test_types_of_nested_settings() -> None:
    with pytest.raises(InputError, match=r"scales\[0\]"):
        AugmentConfig(scales=[None])
    with pytest.raises(InputError, match="StageConfig"):
        TrainConfig("out", stages={"a": 3})
    with pytest.raises(InputError, match="benchmark"):
        EvalConfig("root", "output", benchmark=None)
    with pytest.raises(InputError, match="seed is"):
        TrainConfig("out", seed=10**23)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+segmenter.memory_intervall=3"], "did you mean segmenter.memory_interval?"),
        (["+fo=1"], "no setting fo; the top level has "),
        (["root=x", "clips=a"], "clips: "),
        ([], "root is missing; give root=..."),
    ],
)
def test_what_is_wrong_with_the_settings_is_told_in_one_line(overrides, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        parse_eval_config(composed("eval", "method=copy", *overrides))
    assert "\n" not in str(error.value)


def test_a_scale_that_cannot_be_is_told_as_one_of_the_views() -> None:
    with pytest.raises(InputError, match=r"augment\.scales holds 9\.0: scale is 9\.0; give"):
        EvalConfig("root", "output", augment=AugmentConfig([1.0, 9.0]))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (EvalConfig, {"root": "?", "output": "out"}),
        (EvalConfig, {"root": "data", "output": "?"}),
        (EvalConfig, {"root": "data", "output": "out", "compare": "?"}),
        (TrainConfig, {"output": "?"}),
        (TrainConfig, {"output": "out", "weights": "?"}),
        (TrainConfig, {"output": "out", "pretrained": "?"}),
        (ValidationConfig, {"root": "?"}),
        (DatasetConfig, {"root": "?"}),
    ],
)
def test_paths_that_no_file_can_have_are_refused_in_one_line(tmp_path, kind, settings) -> None:
    """A loop of links, one below it, too long a name, and one that is not UTF-8."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    not_utf8 = os.fsdecode(b"bad\xff")
    for path in (str(loop), str(loop / "below"), "n" * 300, not_utf8):
        with pytest.raises(InputError, match=r"links|too long|not UTF-8") as refused:
            kind(**{key: path if value == "?" else value for key, value in settings.items()})
        assert "\n" not in str(refused.value)
    colon = str(tmp_path / "a:b")
    kind(**{key: colon if value == "?" else value for key, value in settings.items()})
