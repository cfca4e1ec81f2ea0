import torch

from stma.model.aggregation import soft_aggregate


def test_hand_worked_case() -> None:
    """Odds are p / (1 - p): background 0.25 -> 1/3, objects 0.5 -> 1 and 0.5 -> 1."""
    logits = soft_aggregate(torch.full((1, 2, 1, 1), 0.5))
    expected = torch.tensor([1 / 3, 1.0, 1.0]) / (7 / 3)
    assert torch.allclose(logits.softmax(1).flatten(), expected, atol=1e-6)


def test_a_certain_object_wins_and_nothing_overflows() -> None:
    probabilities = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).requires_grad_()
    logits = soft_aggregate(probabilities)
    assert torch.isfinite(logits).all()
    assert logits.softmax(1).argmax() == 2
    logits.sum().backward()
    assert probabilities.grad is not None
    assert torch.isfinite(probabilities.grad).all()


def test_invalid_objects_take_no_part() -> None:
    probabilities = torch.rand(2, 3, 4, 4)
    valid = torch.tensor([[True, True, False]] * 2)
    padded = soft_aggregate(probabilities, valid)
    assert torch.equal(padded[:, :3], soft_aggregate(probabilities[:, :2]))
    assert (padded.softmax(1)[:, 3] == 0).all()
