import copy
import math

import pytest
import torch
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed

from stma.model.backbone import (
    Backbone,
    FrameEmbedding,
    ResampledPositions,
    map_to_tokens,
    pool_tokens,
    resample_positions,
    sinusoidal_position_embedding,
    tokens_to_map,
)
from stma.model.convvit import ConvViT
from stma.model.vit import ViT


def test_positions_are_maes() -> None:
    """First half: sine then cosine of the column; second half: of the row (MAE's pos_embed.py)."""
    embedding = sinusoidal_position_embedding((2, 3), dim=8)[0]
    row, column = 1, 2
    bands = [1.0, 10000 ** (-1 / 2)]
    expected = [
        *(math.sin(column * band) for band in bands),
        *(math.cos(column * band) for band in bands),
        *(math.sin(row * band) for band in bands),
        *(math.cos(row * band) for band in bands),
    ]
    assert embedding[row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)
    row_first = build_sincos2d_pos_embed([2, 3], dim=8, interleave_sin_cos=True)
    assert torch.equal(embedding, row_first.roll(4, dims=1))


def test_positions_are_kept_at_the_pretraining_size_and_resampled_elsewhere() -> None:
    embedding = sinusoidal_position_embedding((14, 14), dim=8)
    assert torch.equal(resample_positions(embedding, (14, 14)), embedding)
    resampled = resample_positions(embedding, (3, 29))
    expected = resample_abs_pos_embed(embedding, [3, 29], old_size=[14, 14], num_prefix_tokens=0)
    assert torch.equal(resampled, expected)


def test_kept_positions_are_the_resampled_ones_and_follow_what_is_loaded() -> None:
    embedding = sinusoidal_position_embedding((14, 14), dim=8)
    positions = ResampledPositions()
    with torch.inference_mode():
        first = positions.at(embedding, (3, 29))
    assert torch.equal(first, resample_positions(embedding, (3, 29)))
    assert positions.at(embedding, (3, 29)) is first
    weight = torch.ones(1, requires_grad=True)
    (weight * first).sum().backward()  # a training step after a validation
    assert positions.at(embedding, (2, 2)).shape == (1, 4, 8)

    embedding.copy_(2 * embedding)  # as load_state_dict does
    assert torch.equal(positions.at(embedding, (3, 29)), 2 * first)
    torch.testing.assert_close(positions.at(embedding.double(), (3, 29)).float(), 2 * first)
    assert copy.deepcopy(positions).at(first.new_zeros(1, 196, 8), (3, 29)).abs().max() == 0


def test_tokens_and_maps_are_inverse() -> None:
    x = torch.randn(2, 3, 5, 4, 6)
    assert torch.equal(tokens_to_map(map_to_tokens(x), (4, 6)), x)


def test_pooled_tokens_are_means_of_squares() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)  # a prefix, then 0 + 1 .. 15 in rows of five
    pooled = pool_tokens(tokens, (3, 5), 2, num_prefix=1)
    assert pooled.flatten().tolist() == [0, 4.0, 6.0, 7.5, 11.5, 13.5, 15]
    assert pool_tokens(tokens, (3, 5), 1, num_prefix=1) is tokens


def test_an_embedding_of_clips_splits_into_frames() -> None:
    tokens = torch.arange(6.0).view(6, 1, 1)  # two clips of three frames
    fine = (torch.zeros(6, 1, 2, 2), tokens.view(6, 1, 1, 1))
    frames = FrameEmbedding(tokens, (1, 1), fine).frames(3)
    assert [frame.tokens.flatten().tolist() for frame in frames] == [[0, 3], [1, 4], [2, 5]]
    assert frames[1].fine is not None
    assert frames[1].fine[1].flatten().tolist() == [1, 4]
    assert FrameEmbedding(tokens, (1, 1), None).frames(3)[2].fine is None


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        (ConvViT(dims=(32, 64, 96), depths=(1, 1, 2), num_heads=2), "patch_embed3"),
        (ViT(dim=96, depth=2, num_heads=2, fine_dims=(16, 8)), "patch_embed"),
    ],
)
def test_patches_become_tokens_by_what_starts_as_a_linear_layer(
    backbone: Backbone, name: str
) -> None:
    """Xavier-uniform over a whole patch, as ConvMAE's and MAE's initialize_weights."""
    weight = backbone.get_submodule(name).proj.weight.flatten(1)
    bound = (6 / sum(weight.shape)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
