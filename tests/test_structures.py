import numpy as np
import pytest
import torch

from stma.structures import Clip, ClipBatch, KeyValue, Prediction


def clip(num_objects: int, size: int = 8) -> Clip:
    return Clip(
        name=f"clip of {num_objects}",
        frames=np.full((3, size, size, 3), num_objects, np.uint8),
        masks=np.full((3, size, size), num_objects, np.uint8),
        num_objects=num_objects,
        references=np.zeros((3, 2), np.int64),
    )


def test_collate_pads_objects_and_puts_channels_first() -> None:
    batch = ClipBatch.collate([clip(1), clip(3)])
    assert len(batch) == 2
    assert batch.frames.shape == (2, 3, 3, 8, 8)
    assert batch.valid_objects.tolist() == [[True, False, False], [True, True, True]]
    assert batch.has_padding
    assert not ClipBatch.collate([clip(2), clip(2)]).to("cpu").has_padding
    assert batch.masks.dtype == torch.uint8
    assert (batch.masks[1] == 3).all()


def test_collate_names_clips_of_different_size() -> None:
    with pytest.raises(ValueError, match=r"clip of 2: .*16"):
        ClipBatch.collate([clip(1), clip(2, size=16)])


def test_moving_a_batch_keeps_names_and_values() -> None:
    batch = ClipBatch.collate([clip(2)])
    moved = batch.to("cpu")
    assert moved.names == batch.names
    assert torch.equal(moved.frames, batch.frames)


def test_key_values_concatenate_along_the_sequence() -> None:
    a, b = KeyValue(*torch.zeros(2, 1, 2, 3, 4)), KeyValue(*torch.ones(2, 1, 2, 5, 4))
    joined = KeyValue.concatenate(a, b)
    assert joined.key.shape == (1, 2, 8, 4)
    assert torch.equal(joined.value[:, :, 3:], b.value)


def test_probabilities_of_a_prediction_sum_to_one() -> None:
    prediction = Prediction(torch.randn(2, 3, 4, 5, 6))
    assert torch.allclose(prediction.probabilities.sum(2), torch.ones(2, 3, 5, 6))
