import numpy as np
import pytest
from conftest import box, write_clip
from vos_benchmark.benchmark import benchmark
from vos_benchmark.evaluator import Evaluator

from stma.data.pictures import save_mask
from stma.errors import InputError
from stma.evaluation.benchmarks import BenchmarkConfig, EvalClip, FrameRange, list_clips
from stma.evaluation.scoring import ClipScorer, Measure, ObjectScore, score_clips, summarize

DAVIS = BenchmarkConfig(objects="first_mask", void=255)


def clip_of(root, name: str, truth: list[np.ndarray], rules=DAVIS, **attributes) -> EvalClip:
    write_clip(root, name, dict(enumerate(truth)), frames=len(truth))
    (clip,) = list_clips(rules, root, names=[name]).clips
    return EvalClip(clip.video, rules, **attributes)


def write_results(root, name: str, masks: list[np.ndarray]) -> None:
    (root / "results" / name).mkdir(parents=True)
    for number, mask in enumerate(masks):
        save_mask(root / "results" / name / f"{number:05d}.png", mask)


def scored(clip: EvalClip, results: list[np.ndarray]) -> dict[int, ObjectScore]:
    scorer = ClipScorer(clip)
    for index in scorer.indices:
        scorer.feed(index, results[index], clip.read_mask(f"{index:05d}")[0])
    return {score.object_id: score for score in scorer.conclude()}


def wide(width: int, value: int = 1) -> np.ndarray:
    return box(8, 8, 16, width, value)


def test_j_by_hand_without_first_and_last_frame(tmp_path) -> None:
    clip = clip_of(tmp_path, "a", [wide(20)] * 4)
    score = scored(clip, [wide(1), wide(20), wide(10), wide(1)])[1]
    assert score.stems == ["00001", "00002"]
    assert score.j.values.tolist() == [1, 0.5]
    assert score.j.mean == 75
    assert score.j.recall == 50  # one half is not above one half
    assert 0 < score.f.mean < 100


def test_decay_by_hand() -> None:
    """Eight frames: borders at 1, 3 (2.75), 5 (4.5), 6 (6.25) and 8, counted from 1, and shared."""
    values = np.array([8, 8, 8, 4, 4, 2, 2, 2]) / 8
    assert Measure(values).decay == pytest.approx(100 * (1 - 2 / 8))
    assert Measure(np.full(300, 0.5)).decay == 0
    falling = np.linspace(1, 0, 401)
    assert Measure(falling).decay == pytest.approx(75, abs=0.5)


def test_equal_to_vos_benchmarks_own_command(tmp_path) -> None:
    rng = np.random.default_rng(0)

    def noisy(width: int) -> np.ndarray:
        return np.where(rng.random((40, 56)) < 0.1, 2, wide(width)).astype(np.uint8)

    clips = []
    for name in ("a", "b"):
        clips.append(clip_of(tmp_path, name, [noisy(20) for _ in range(4)]))
        write_results(tmp_path, name, [noisy(15) for _ in range(4)])
    ours, faults = score_clips(clips, tmp_path / "results", processes=1)
    assert not faults
    _, _, _, (theirs,) = benchmark(
        [str(tmp_path / "Annotations")], [str(tmp_path / "results")], num_processes=1, verbose=False
    )
    assert {(s.clip, s.object_id) for s in ours} == {(n, i) for n in "ab" for i in (1, 2)}
    for score in ours:
        j, f = theirs[score.clip]
        assert score.j.mean == pytest.approx(j[score.object_id], abs=1e-9)
        assert score.f.mean == pytest.approx(f[score.object_id], abs=1e-9)


@pytest.mark.parametrize("at", [(8, 8), (0, 0), (24, 40), (0, 36), (39, 0)])
def test_scored_where_the_objects_are_is_scored_everywhere(tmp_path, at) -> None:
    """The frame around the objects is left out; at its borders, boundaries count differently."""
    rng = np.random.default_rng(1)
    truth, result = (np.zeros((240, 320), np.uint8) for _ in range(2))
    patch = (rng.random((16, 20)) < 0.7).astype(np.uint8)
    truth[at[0] : at[0] + 16, at[1] : at[1] + 20] = patch[: 240 - at[0], : 320 - at[1]]
    result[at[0] : at[0] + 16, at[1] : at[1] + 20] = np.roll(patch, 2)
    result, truth = np.flip(result, 0), np.flip(truth, 0)  # the other border too
    clip = clip_of(tmp_path, "a", [truth] * 3)
    score = scored(clip, [result] * 3)[1]
    whole = Evaluator()
    whole.feed_frame(result, truth)
    j, f = whole.conclude()
    assert score.j.mean == j[1]
    assert score.f.mean == f[1]


def test_davis_counts_all_ids_up_to_the_largest_of_the_first_frame(tmp_path) -> None:
    """One that nobody shows is right; one that only the truth shows is wrong; 255 is void."""
    truth = wide(20, 3) + box(30, 30, 4, 4, 255)
    clip = clip_of(tmp_path, "a", [truth] * 4)
    result = wide(20, 3) + box(30, 30, 6, 6, 2)
    scores = scored(clip, [result] * 4)
    assert {i: score.j.mean for i, score in scores.items()} == {1: 100, 2: 0, 3: 100}
    gone = clip_of(tmp_path, "b", [wide(20), *[wide(0)] * 3])
    assert scored(gone, [wide(0)] * 4)[1].j.mean == 100
    assert scored(gone, [wide(20)] * 4)[1].f.mean == 0


def test_an_id_above_those_of_the_first_mask_is_refused(tmp_path) -> None:
    """As by DAVIS's evaluator: it would score another numbering."""
    clip = clip_of(tmp_path, "a", [wide(20)] * 4)
    with pytest.raises(InputError, match="a, frame 00001: the result holds the ID 2"):
        scored(clip, [wide(20, 2)] * 4)


def test_objects_that_enter_later_count_from_the_frame_after(tmp_path) -> None:
    late = wide(20) + box(30, 30, 8, 8, 2)
    clip = clip_of(tmp_path, "a", [wide(20), wide(20), late, late, late, late], BenchmarkConfig())
    half = wide(20) + box(30, 30, 8, 4, 2)
    early = wide(20) + box(1, 1, 3, 3, 2)  # before its time; no frame of it counts
    scores = scored(clip, [early, early, half, half, late, late])
    assert scores[2].stems == ["00003", "00004"]
    assert scores[2].j.values.tolist() == [0.5, 1]
    assert scores[1].stems == ["00001", "00002", "00003", "00004"]
    last = clip_of(tmp_path, "b", [wide(20), wide(20), late, late], BenchmarkConfig())
    assert set(scored(last, [wide(20)] * 4)) == {1}  # enters at the last frame but one


def test_stated_ranges_count_without_their_ends(tmp_path) -> None:
    """As LVOS has it; an object that leaves for good is not scored after its last frame."""
    truth = [wide(20)] * 4 + [wide(0)] * 3
    ranges = {1: FrameRange(0, 4, 5), 2: FrameRange(5, 6, 2)}
    clip = clip_of(tmp_path, "a", truth, BenchmarkConfig(), ranges=ranges)
    scores = scored(clip, [wide(20)] * 7)
    assert scores[1].stems == ["00001", "00002", "00003"]
    assert scores[1].j.mean == 100
    assert set(scores) == {1}
    beyond = clip_of(tmp_path, "b", truth, BenchmarkConfig(), ranges={1: FrameRange(0, 9, 10)})
    with pytest.raises(InputError, match="object 1 is to be scored in frame 6"):
        ClipScorer(beyond)


def test_what_cannot_be_scored_is_named_and_the_rest_is_scored(tmp_path) -> None:
    clips = []
    for name, size in (("fits", 55), ("other", 30), ("missing", 56)):
        clips.append(clip_of(tmp_path, name, [wide(20)] * 3))
        write_results(tmp_path, name, [wide(20)[:, :size]] * 3)
    (tmp_path / "results/missing/00001.png").unlink()
    scores, faults = score_clips(clips, tmp_path / "results", processes=1)
    assert [score.clip for score in scores] == ["fits"]  # one pixel off is fitted
    assert scores[0].j.mean > 90
    assert "other/00001.png: 56 x 40, but" in faults["other"]
    assert "missing/00001.png: cannot be read" in faults["missing"]


def test_the_mean_is_over_objects_not_over_clips() -> None:
    def score(clip: str, object_id: int, j: float, f: float) -> ObjectScore:
        return ObjectScore(clip, object_id, ["0"], Measure(np.array([j])), Measure(np.array([f])))

    scores = [score("a", 1, 0.9, 0.8), score("b", 1, 0.3, 0.5), score("b", 2, 0.6, 0.5)]
    rows = [
        (row.name, round(row.j, 6), round(row.f, 6), round(row.jf, 6)) for row in summarize(scores)
    ]
    assert rows == [("a", 90, 80, 85), ("b", 45, 50, 47.5), ("mean", 60, 60, 60)]
