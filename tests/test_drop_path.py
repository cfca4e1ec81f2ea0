import torch

from stma.model.drop_path import DropPath


def test_whole_samples_are_left_out_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    y = layer(torch.ones(4000, 2, 3))
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(y.mean().item() - 1) < 0.05
    assert layer(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_nothing_is_left_out_outside_training_and_nothing_is_saved() -> None:
    layer = DropPath(0.9).eval()
    x = torch.randn(8, 3)
    assert torch.equal(layer(x), x)
    assert layer.state_dict() == {}
