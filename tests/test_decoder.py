import pytest
import torch

from stma.model.decoder import Decoder


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
