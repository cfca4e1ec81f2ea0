import torch

from stma.model.object_features import ObjectFeatures, object_regions


def test_region_is_every_cell_that_the_object_touches() -> None:
    masks = torch.zeros(1, 1, 32, 48)
    masks[0, 0, 15:17, 20] = 1  # a thin line across the two rows of the middle column
    assert object_regions(masks)[0, 0].tolist() == [False, True, False, False, True, False]


def test_region_of_an_absent_object_is_the_whole_map() -> None:
    assert object_regions(torch.full((1, 1, 32, 32), 0.4)).all()


def test_pooling_is_the_maximum_over_the_region_alone() -> None:
    features = ObjectFeatures(value_dim=2, dim=2)
    with torch.no_grad():
        features.f_o.weight.copy_(torch.eye(2))
        features.f_o.bias.zero_()
    values = torch.tensor([[1.0, 5.0, 9.0, 2.0], [8.0, -1.0, -2.0, 7.0]]).view(1, 1, 2, 2, 2)
    masks = torch.zeros(1, 1, 32, 32)
    masks[0, 0, :16, 16:] = 1  # the second cell
    masks[0, 0, 16:, :16] = 1  # the third
    assert features.pool(values, masks).tolist() == [[[9.0, -1.0]]]


def test_tokens_do_not_depend_on_the_other_objects() -> None:
    features = ObjectFeatures(value_dim=4, dim=6)
    pooled = torch.randn(1, 3, 4 + 2)[..., :6]
    assert torch.allclose(features(pooled)[:, 1:2], features(pooled[:, 1:2]))
