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
    features = ObjectFeatures(value_dim=4, dim=6).eval()
    pooled = torch.randn(1, 3, 6)
    assert torch.allclose(features(pooled)[:, 1:2], features(pooled[:, 1:2]))


def test_the_mean_over_objects_is_followed_however_a_batch_is_split() -> None:
    pooled = torch.randn(4, 3, 6)
    valid = torch.tensor([[True, True, False]] * 4)
    whole, halves = ObjectFeatures(4, 6).train(), ObjectFeatures(4, 6).train()
    whole(pooled, valid)
    halves(pooled[:1], valid[:1])
    halves(pooled[1:], valid[1:])
    assert (halves.center == 0).all()  # the same for all passes of one step
    for features in (whole, halves):
        features.update_center()
    assert torch.allclose(whole.center, pooled[:, :2].mean((0, 1)), atol=1e-6)
    assert torch.allclose(whole.center, halves.center, atol=1e-6)

    for _ in range(200):
        whole(torch.full((1, 1, 6), 5.0))
        whole.update_center()
    assert torch.allclose(whole.center, torch.full((6,), 5.0), atol=0.05)
    whole.eval()(torch.full((1, 1, 6), 100.0))
    assert whole.center.max() < 6


def test_what_objects_share_is_taken_away() -> None:
    torch.manual_seed(0)
    features = ObjectFeatures(4, 64).train()
    shared = 20 * torch.randn(64)
    objects = shared + torch.randn(1, 50, 64)
    for _ in range(3):
        features(objects)
        features.update_center()
    tokens = features.eval()(objects)[0]
    cosine = torch.nn.functional.cosine_similarity(tokens[:, None], tokens[None], dim=-1)
    assert cosine[~torch.eye(50, dtype=torch.bool)].mean().abs() < 0.1
