import csv

import numpy as np
import pytest

from stma.data.video_folder import VideoFolder
from stma.errors import InputError
from stma.inference.scoring import ObjectScore, score_videos, summarize, write_csv
from stma.pictures import save_mask


def write(root, name: str, truth: list[np.ndarray], result: list[np.ndarray]) -> VideoFolder:
    """A video and its results, below ``root``."""
    for kind, images in (("truth", truth), ("result", result)):
        folder = root / kind / name
        folder.mkdir(parents=True)
        for number, mask in enumerate(images):
            save_mask(folder / f"{number:05d}.png", mask)
    stems = [f"{number:05d}" for number in range(len(truth))]
    return VideoFolder(
        name,
        image_folder=root,
        mask_folder=root / "truth" / name,
        frame_files=np.array([f"{stem}.jpg".encode() for stem in stems]),
        mask_files=np.array([f"{stem}.png".encode() for stem in stems]),
    )


def box(width: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((32, 64), np.uint8)
    mask[8:24, 8 : 8 + width] = value
    return mask


def test_j_by_hand_without_first_and_last_frame(tmp_path) -> None:
    result = [box(0), box(20), box(10), box(0)]  # frames 1 and 2 count: J of 1 and 1/2
    video = write(tmp_path, "a", [box(20)] * 4, result)
    (tmp_path / "truth" / "a" / ".DS_Store").touch()  # no frame: neither first nor last
    (tmp_path / "truth" / "a" / "zz.txt").touch()
    (score,) = score_videos([video], tmp_path / "result", processes=1)
    assert (score.clip, score.object_id) == ("a", 1)
    assert score.j == pytest.approx(75)
    assert 0 < score.f < 100
    assert score.jf == pytest.approx((score.j + score.f) / 2)


def test_equal_to_vos_benchmarks_own_command(tmp_path) -> None:
    from vos_benchmark.benchmark import benchmark

    rng = np.random.default_rng(0)

    def noisy(width: int) -> np.ndarray:
        return np.where(rng.random((32, 64)) < 0.1, 2, box(width)).astype(np.uint8)

    names = ("a", "b")
    videos = [
        write(tmp_path, n, [noisy(20) for _ in range(4)], [noisy(15) for _ in range(4)])
        for n in names
    ]
    ours = score_videos(videos, tmp_path / "result", processes=1)
    _, _, _, (theirs,) = benchmark(
        [str(tmp_path / "truth")], [str(tmp_path / "result")], num_processes=1, verbose=False
    )
    assert {(s.clip, s.object_id) for s in ours} == {(n, i) for n in names for i in (1, 2)}
    for score in ours:
        j, f = theirs[score.clip]
        assert score.j == pytest.approx(j[score.object_id])
        assert score.f == pytest.approx(f[score.object_id])


def test_several_processes_give_the_same_scores(tmp_path) -> None:
    videos = [
        write(tmp_path, name, [box(20, value)] * 3, [box(15, value)] * 3)
        for name, value in (("a", 1), ("b", 7))
    ]
    alone, shared = (score_videos(videos, tmp_path / "result", processes=n) for n in (1, 2))
    assert alone == shared


def test_truth_one_pixel_off_is_fitted_and_any_other_size_is_named(tmp_path) -> None:
    video = write(tmp_path, "a", [box(20)] * 3, [box(20)[:, :-1]] * 3)
    (score,) = score_videos([video], tmp_path / "result", processes=1)
    assert score.j > 90
    video = write(tmp_path, "b", [box(20)] * 3, [box(20)[:20]] * 3)
    with pytest.raises(InputError, match=r"truth.b.00001\.png: 32 x 64, but .*20 x 64"):
        score_videos([video], tmp_path / "result", processes=1)


def test_the_mean_is_over_objects_not_over_clips(tmp_path) -> None:
    scores = [ObjectScore("a", 1, 90, 80), ObjectScore("b", 1, 30, 50), ObjectScore("b", 2, 60, 50)]
    rows = summarize(scores)
    assert [(row.name, row.j, row.f) for row in rows] == [
        ("a", 90, 80),
        ("b", 45, 50),
        ("mean", 60, 60),
    ]
    write_csv(tmp_path / "scores.csv", scores)
    table = list(csv.reader((tmp_path / "scores.csv").open()))
    assert table[0] == ["clip", "object", "J&F", "J", "F"]
    assert table[3] == ["b", "2", "55.000", "60.000", "50.000"]
    assert table[-1] == ["mean", "", "60.000", "60.000", "60.000"]
