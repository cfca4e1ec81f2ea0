import math

import pytest
import torch

from stma.structures import ClipBatch, Prediction
from stma.training.losses import (
    LossConfig,
    bootstrap_fraction,
    bootstrapped_cross_entropy,
    clip_loss,
    dice_loss,
    object_loss,
)


def test_bootstrapping_falls_from_all_pixels_to_the_hardest_share() -> None:
    config = LossConfig(bootstrap_start=100, bootstrap_end=200, bootstrap_share=0.2)
    fractions = [bootstrap_fraction(config, i) for i in (0, 99, 100, 150, 200, 999)]
    assert fractions == pytest.approx([1, 1, 1, 0.6, 0.2, 0.2])


def test_cross_entropy_of_the_hardest_pixels_by_hand() -> None:
    # Two classes; the probabilities of the right one are 1/2, 1/4, 1/8 and 1/16.
    right = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 16])
    logits = torch.stack([right.log(), (1 - right).log()])[None, :, None]  # (1, 2, 1, 4)
    target = torch.zeros(1, 1, 4, dtype=torch.long)
    whole = bootstrapped_cross_entropy(logits, target, 1.0)
    assert whole.item() == pytest.approx(math.log(2) * (1 + 2 + 3 + 4) / 4)
    hardest = bootstrapped_cross_entropy(logits, target, 0.5)
    assert hardest.item() == pytest.approx(math.log(2) * (3 + 4) / 2)


def test_dice_by_hand_and_over_valid_objects_alone() -> None:
    probabilities = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]).view(1, 2, 2, 2)
    masks = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(1, 2, 2, 2)
    first = 1 - (2 * 1 + 1) / (2 + 1 + 1)
    second = 1 - 1 / (4 + 1)
    both = dice_loss(probabilities, masks, torch.tensor([[True, True]]))
    assert both.item() == pytest.approx((first + second) / 2)
    alone = dice_loss(probabilities, masks, torch.tensor([[True, False]]))
    assert alone.item() == pytest.approx(first)


def test_object_loss_by_hand_where_the_frame_was_padded() -> None:
    masks = torch.zeros(1, 2, 20, 16)  # padded to 32 x 16: two cells
    masks[0, 0, :16] = 1  # all of the first cell
    masks[0, 0, 16:] = 1  # and all that is real of the second: a quarter of it
    logits = torch.tensor([[2.0, -1.0], [0.0, 0.0]]).view(1, 2, 2, 1)
    log_sigmoid = torch.nn.functional.logsigmoid
    two, one = log_sigmoid(torch.tensor([2.0, -2.0])), log_sigmoid(torch.tensor([-1.0, 1.0]))
    first = -(two[0] + 0.25 * one[0] + 0.75 * one[1]).item() / 2
    both = object_loss(logits, masks, torch.tensor([[True, True]]))
    assert both.item() == pytest.approx((first + math.log(2)) / 2)
    alone = object_loss(logits, masks, torch.tensor([[True, False]]))
    assert alone.item() == pytest.approx(first)


def test_a_perfect_prediction_costs_nothing_and_padding_changes_nothing() -> None:
    masks = torch.randint(0, 3, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(masks[:, 1:], 3).permute(0, 1, 4, 2, 3) * 50.0

    def clip(num_objects: int) -> ClipBatch:
        valid = torch.arange(num_objects).expand(2, -1) < 2
        frames, references = torch.zeros(2, 3, 3, 8, 8), torch.zeros(2, 3, 2)
        return ClipBatch(["", ""], frames, masks, valid, references)

    config = LossConfig()
    perfect = clip_loss(Prediction(logits), clip(2), config, 0)
    assert perfect.total.item() == pytest.approx(0, abs=1e-4)

    noisy = logits / 50 + torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    padding = torch.full((2, 2, 1, 8, 8), float("-inf"))
    alone = clip_loss(Prediction(noisy), clip(2), config, 0)
    padded = clip_loss(Prediction(torch.cat([noisy, padding], 2)), clip(3), config, 0)
    assert padded.total.item() == pytest.approx(alone.total.item())
    assert alone.total.item() == pytest.approx(
        0.5 * alone.terms["cross_entropy"].item() + 0.5 * alone.terms["dice"].item()
    )


@pytest.mark.parametrize(
    "settings", [{"bootstrap_share": 0.0}, {"bootstrap_start": 9, "bootstrap_end": 5}]
)
def test_settings_that_make_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        LossConfig(**settings)
