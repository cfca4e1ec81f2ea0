import pytest

from stma.model.cost import count_cost
from stma.model.factory import ModelConfig


def test_counted_parts_by_hand() -> None:
    """ConvViT-T's last stage at 32 x 32: 4 tokens and 8 of references."""
    config = ModelConfig(dims=[8, 8, 16], depths=[1, 1, 2], num_heads=2, decoder_widths=[8, 8])
    _, parts = count_cost(config, 32, 32, objects=1, memory_frames=3)
    dim, tokens, keys = 16, 4, 4 + 8
    block = 2 * tokens * (3 * dim * dim + dim * dim + 2 * 4 * dim * dim + 2 * keys * dim)
    assert parts["test stream"] == pytest.approx(2 * block / 1e9)
    assert parts["readout"] == pytest.approx(2 * tokens * 12 * (dim + dim) / 1e9)
