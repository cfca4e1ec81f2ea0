import numpy as np

from stma.data.sampling import draw_references, sample_times


def test_times_start_at_0_and_keep_to_the_gap() -> None:
    gaps = np.concatenate(
        [np.diff(sample_times(5, 3, np.random.default_rng(seed))) for seed in range(50)]
    )
    assert set(gaps) == {1, 2, 3}
    assert sample_times(4, 1, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]


def test_references_are_distinct_past_frames() -> None:
    drawn = set()
    for seed in range(100):
        references = draw_references(4, 2, np.random.default_rng(seed))
        assert references[1].tolist() == [0, 0]  # one past frame; the second is not read
        assert references[2].tolist() == [0, 1]
        drawn.add(tuple(references[3]))
    assert drawn == {(0, 1), (0, 2), (1, 2)}
