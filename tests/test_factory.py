import pytest
import torch

from stma.model.factory import ModelConfig, build_model


def test_the_default_is_the_papers_convvit_b() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig())
    assert model.backbone.dim == 768
    assert len(model.backbone.last_stage) == 11


def test_stml_adds_no_parameter_to_a_block() -> None:
    """A last-stage block has what a plain transformer block has, and no more."""
    with torch.device("meta"):
        block = build_model(ModelConfig()).backbone.last_stage[0]
    dim = 768
    plain = 4 * dim + (dim * 3 * dim + 3 * dim) + (dim * dim + dim) + 8 * dim * dim + 5 * dim
    assert sum(p.numel() for p in block.parameters()) == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet"}, "resnet.*convvit"),
        ({"dims": [8, 16]}, "model.dims"),
        ({"num_heads": 5}, "768.*num_heads"),
        ({"similarity": "cosine"}, "cosine.*dot"),
        ({"value_widths": [1]}, "model.value_widths"),
        ({"reference_pooling": 0}, "model.reference_pooling is 0"),
        ({"reference_pooling": 2, "variant": "no_spatial_memory"}, "cannot be pooled"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_a_vit_has_blocks_at_stride_16_only() -> None:
    with pytest.raises(ValueError, match=r"needs \[0, 0, n\]"):
        ModelConfig(backbone="vit", dims=[8, 8, 16], num_heads=2)
    with pytest.raises(ValueError, match="the last needs 2 or more"):
        ModelConfig(backbone="vit", dims=[8, 8, 16], num_heads=2, depths=[0, 0, 1])
    with pytest.raises(ValueError, match="class_token is true, but only a vit"):
        ModelConfig(class_token=True)


@pytest.mark.parametrize("similarity", ["dot", "l2"])
@pytest.mark.parametrize("widths", [{}, {"value_dim": 20}])
def test_options_build_and_run(tiny_config: ModelConfig, similarity: str, widths: dict) -> None:
    import dataclasses

    from conftest import make_batch

    model = build_model(dataclasses.replace(tiny_config, similarity=similarity, **widths))
    assert torch.isfinite(model(make_batch(num_frames=3, size=32)).probabilities).all()
