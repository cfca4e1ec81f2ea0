import numpy as np
import pytest

from stma.data.thin_plate import ThinPlate, random_thin_plate


def test_control_points_go_where_they_are_told() -> None:
    rng = np.random.default_rng(0)
    points, displacements = rng.uniform(0, 1, (8, 2)), rng.normal(0, 0.05, (8, 2))
    assert np.allclose(ThinPlate(points, displacements)(points), displacements)


@pytest.mark.parametrize("linear", [[[1.1, 0.2], [-0.3, 0.9]], [[1, 0], [0, 1]]])
def test_an_affine_motion_of_the_points_bends_nothing(linear) -> None:
    """The spline has the least bending energy, so it reproduces affine maps."""
    points = np.random.default_rng(1).uniform(0, 1, (6, 2))
    plate = ThinPlate(points, points @ np.array(linear).T + [0.1, -0.2] - points)
    where = np.random.default_rng(2).uniform(-1, 2, (20, 2))
    assert np.allclose(plate(where), where @ np.array(linear).T + [0.1, -0.2] - where)


def test_random_plates_are_seeded_and_as_strong_as_told() -> None:
    where = np.random.default_rng(0).uniform(0, 1, (500, 2))
    plates = [random_thin_plate(0.02, np.random.default_rng(seed)) for seed in range(50)]
    assert np.array_equal(
        plates[3](where), random_thin_plate(0.02, np.random.default_rng(3))(where)
    )
    spread = np.std([plate(where) for plate in plates])
    assert 0.01 < spread < 0.04


def test_random_plates_never_fold() -> None:
    """The map keeps its orientation: neighbouring grid points stay in order."""
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 40)), -1)
    for seed in range(100):
        plate = random_thin_plate(0.02, np.random.default_rng(seed))
        moved = grid + plate(grid.reshape(-1, 2)).reshape(grid.shape)
        right, down = np.diff(moved, axis=1)[:-1], np.diff(moved, axis=0)[:, :-1]
        area = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
        assert (area > 0).mean() > 0.999
