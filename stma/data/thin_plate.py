"""Thin-plate spline deformations (Bookstein), coarse and cheap."""

import numpy as np

GRID = (4, 3)  # control points: one at random in each cell, so that no two coincide


class ThinPlate:
    """A smooth deformation of the plane that displaces control points as given.

    Args:
        points: ``(K, 2)``, not all on one line.
        displacements: ``(K, 2)``.
    """

    def __init__(self, points: np.ndarray, displacements: np.ndarray) -> None:
        count = len(points)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = _kernel(points, points)
        system[:count, count] = 1
        system[:count, count + 1 :] = points
        system[count:, :count] = system[:count, count:].T
        right = np.zeros((count + 3, 2))
        right[:count] = displacements
        solution = np.linalg.solve(system, right)
        self.points = points
        self.weights, self.offset, self.linear = (
            solution[:count],
            solution[count],
            solution[count + 1 :],
        )

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Displacements ``(N, 2)`` at points ``(N, 2)``."""
        return _kernel(points, self.points) @ self.weights + self.offset + points @ self.linear


def random_thin_plate(strength: float, rng: np.random.Generator) -> ThinPlate:
    """Of the unit square: 12 control points, moved by normal deviates of deviation ``strength``."""
    cells = np.stack(np.meshgrid(np.arange(GRID[0]), np.arange(GRID[1])), -1).reshape(-1, 2)
    points = (cells + rng.uniform(0.15, 0.85, cells.shape)) / GRID
    return ThinPlate(points, rng.normal(0, strength, points.shape))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``r^2 log r`` between all points of two sets."""
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return 0.5 * squared * np.log(np.maximum(squared, 1e-30))
