import csv

import numpy as np
import pytest

from stma.errors import InputError
from stma.inference.scoring import ObjectScore, score_clips, summarize, write_csv
from stma.pictures import save_mask


def write(folder, masks: list[np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        save_mask(folder / f"{number:05d}.png", mask)


def box(width: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((32, 64), np.uint8)
    mask[8:24, 8 : 8 + width] = value
    return mask


def test_j_by_hand_without_first_and_last_frame(tmp_path) -> None:
    truth = [box(20)] * 4
    result = [box(0), box(20), box(10), box(0)]  # frames 1 and 2 count: J of 1 and 1/2
    write(tmp_path / "truth" / "a", truth)
    write(tmp_path / "result" / "a", result)
    (score,) = score_clips(tmp_path / "truth", tmp_path / "result", ["a"], processes=1)
    assert (score.clip, score.object_id) == ("a", 1)
    assert score.j == pytest.approx(75)
    assert 0 < score.f < 100
    assert score.jf == pytest.approx((score.j + score.f) / 2)


def test_several_processes_give_the_same_scores(tmp_path) -> None:
    for name, value in (("a", 1), ("b", 7)):
        write(tmp_path / "truth" / name, [box(20, value)] * 3)
        write(tmp_path / "result" / name, [box(15, value)] * 3)
    arguments = (tmp_path / "truth", tmp_path / "result", ["a", "b"])
    assert score_clips(*arguments, processes=1) == score_clips(*arguments, processes=2)


def test_truth_of_another_size_is_named(tmp_path) -> None:
    write(tmp_path / "truth" / "a", [box(20)] * 3)
    write(tmp_path / "result" / "a", [box(20)[:, :-1]] * 3)
    with pytest.raises(InputError, match=r"truth.a.00001\.png"):
        score_clips(tmp_path / "truth", tmp_path / "result", ["a"], processes=1)


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
