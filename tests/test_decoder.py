import pytest
import torch

from stma.model.decoder import Decoder, soft_aggregate


def inputs(num_objects: int) -> tuple:
    generator = torch.Generator().manual_seed(0)

    def map_of(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    fine = (map_of(1, 10, 4, 6), map_of(1, 8, 8, 12))
    return map_of(1, num_objects, 12, 2, 3), map_of(1, 16, 2, 3), fine


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(value_dim=12, dim=16, fine_dims=(10, 8), widths=(16, 8)).eval()


def test_one_logit_map_of_full_size_per_object() -> None:
    assert decoder()(*inputs(5)).shape == (1, 5, 32, 48)


def test_objects_are_decoded_independently() -> None:
    model, (readout, features, fine) = decoder(), inputs(3)
    together = model(readout, features, fine)
    alone = model(readout[:, 1:2], features, fine)
    assert torch.allclose(together[:, 1:2], alone, atol=1e-5)


def test_split_input_is_one_convolution_of_the_concatenation() -> None:
    model, (readout, features, _) = decoder(), inputs(1)
    weight = torch.cat([model.from_readout.weight, model.from_features.weight], dim=1)
    joined = torch.cat([readout[:, 0], features], dim=1)
    expected = torch.nn.functional.conv2d(joined, weight, model.from_readout.bias, padding=1)
    split = model.from_readout(readout[:, 0]) + model.from_features(features)
    assert torch.allclose(split, expected, atol=1e-5)


@pytest.mark.parametrize("widths", [(32, 16), (256, 128)])
def test_untrained_it_is_unsure(widths: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Decoder(value_dim=12, dim=16, fine_dims=(10, 8), widths=widths)
    assert model(*inputs(3)).abs().max() < 3


def test_soft_aggregation_by_hand() -> None:
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
