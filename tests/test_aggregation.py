import torch

from stma.model.aggregation import soft_aggregate


def test_hand_worked_case() -> None:
    """Odds are p / (1 - p): background 0.25 -> 1/3, objects 0.5 -> 1 and 0.5 -> 1."""
    logits = soft_aggregate(torch.zeros(1, 2, 1, 1))
    expected = torch.tensor([1 / 3, 1.0, 1.0]) / (7 / 3)
    assert torch.allclose(logits.softmax(1).flatten(), expected, atol=1e-6)


def test_equal_to_the_definition_on_probabilities() -> None:
    logits = torch.linspace(-20, 20, 60, dtype=torch.float64).view(1, 3, 4, 5)
    probabilities = logits.sigmoid()
    background = (1 - probabilities).prod(dim=1, keepdim=True)
    joined = torch.cat([background, probabilities], dim=1).clamp(1e-7, 1 - 1e-7)
    assert torch.allclose(soft_aggregate(logits), joined.logit(), atol=1e-6)


def test_two_certain_objects_keep_their_order_in_fp32() -> None:
    """On probabilities, both would be 1 - 1e-7 to the last digit."""
    logits = soft_aggregate(torch.tensor([14.0, 15.0]).view(1, 2, 1, 1))
    exact = soft_aggregate(torch.tensor([14.0, 15.0]).double().view(1, 2, 1, 1)).softmax(1)
    assert torch.allclose(logits.softmax(1), exact.float(), atol=1e-6)


def test_extremes_give_finite_values_and_gradients() -> None:
    logits = torch.tensor([[-100.0, 100.0], [-100.0, -100.0]]).view(2, 2, 1, 1).requires_grad_()
    joined = soft_aggregate(logits)
    assert torch.isfinite(joined).all()
    assert joined.argmax(1).flatten().tolist() == [2, 0]
    joined.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_invalid_objects_take_no_part() -> None:
    logits = torch.randn(2, 3, 4, 4).requires_grad_()
    valid = torch.tensor([[True, True, False]] * 2)
    padded = soft_aggregate(logits, valid)
    assert torch.equal(padded[:, :3], soft_aggregate(logits[:, :2]))
    assert (padded.softmax(1)[:, 3] == 0).all()
    padded.softmax(1)[:, 0].sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 2] == 0).all()
