from pathlib import Path

from stma.video.scores import SCORES, Scores


def test_rows_are_in_the_order_of_the_frames_and_kept_for_the_next_start(tmp_path: Path) -> None:
    scores = Scores(tmp_path)
    scores.add("10", {1: 0.5})
    scores.add("9", {1: 0.75, 7: 1.0})
    scores.write()
    text = (tmp_path / SCORES).read_text()
    assert text == "frame,object,confidence\n9,1,0.750\n9,7,1.000\n10,1,0.500\n"
    again = Scores(tmp_path)
    again.add("10", {1: 0.25})
    again.write()
    assert (tmp_path / SCORES).read_text() == text.replace("0.500", "0.250")


def test_the_least_sure_frame_of_each_uncertain_object_is_to_be_looked_at(tmp_path: Path) -> None:
    scores = Scores(tmp_path)
    scores.add("a", {1: 0.6, 2: 0.7, 3: 0.99})
    scores.add("b", {1: 0.5, 2: 0.8, 3: 0.95})
    assert scores.doubts() == [(0.5, "b", 1), (0.7, "a", 2)]
    scores.add("c", dict.fromkeys(range(10, 20), 0.1))
    assert len(scores.doubts()) == 5


def test_a_damaged_file_costs_scores_alone(tmp_path: Path, caplog) -> None:
    (tmp_path / SCORES).write_text("frame,object,confidence\n1,1,0.9\n2,x")
    scores = Scores(tmp_path)
    assert str(tmp_path / SCORES) in caplog.text
    scores.write()
    assert "1,1,0.900" in (tmp_path / SCORES).read_text()
