"""Which frames make a training clip, and which past frames its frames refer to."""

import numpy as np


def sample_times(num_frames: int, max_gap: int, rng: np.random.Generator) -> np.ndarray:
    """``num_frames`` growing frame numbers from 0, each at most ``max_gap`` after the last."""
    gaps = rng.integers(1, max_gap + 1, num_frames - 1)
    return np.concatenate([[0], np.cumsum(gaps)])


def draw_references(num_frames: int, num_references: int, rng: np.random.Generator) -> np.ndarray:
    """For every frame, past frames as its references, drawn at random as the paper does.

    Distinct and in order; a frame with fewer past frames than ``num_references`` takes all of
    them, and the rest of its row is 0 and not to be read.

    Returns:
        ``(num_frames, num_references)`` int64.
    """
    references = np.zeros((num_frames, num_references), np.int64)
    for frame in range(1, num_frames):
        count = min(frame, num_references)
        references[frame, :count] = np.sort(rng.choice(frame, count, replace=False))
    return references
