import csv

from stma.training.step_log import HEADER, Row, StepLog


def row(stage: str, iteration: int) -> Row:
    return Row(stage, iteration, 0.5, 3e-5, 1.25, 2.0, 3723.4)


def rows(path) -> list[tuple[str, int]]:
    with path.open(newline="") as file:
        header, *rest = csv.reader(file)
    assert header == HEADER
    return [(each[0], int(each[1])) for each in rest]


def test_a_row_in_words() -> None:
    assert str(row("video", 150)) == (
        "video: iteration 150, loss 0.5000, learning rate 3e-05, gradient norm 1.25, "
        "2.00 it/s, 1:02:03 left"
    )


def test_what_a_killed_start_wrote_too_much_goes(tmp_path) -> None:
    """Rows of this stage from the iteration where it resumes, and half a row."""
    path = tmp_path / "train.csv"
    first = StepLog(path, "first", 0)
    for iteration in (0, 5, 10):
        first.write(row("first", iteration))
    StepLog(path, "second", 0).write(row("second", 0))
    with path.open("a") as file:
        file.write("second,5,0.4")
    StepLog(path, "first", 6).write(row("first", 6))
    assert rows(path) == [("first", 0), ("first", 5), ("second", 0), ("first", 6)]


def test_a_log_that_cannot_be_written_costs_no_training(tmp_path, caplog) -> None:
    (tmp_path / "file").touch()
    StepLog(tmp_path / "file" / "train.csv", "a", 0).write(row("a", 0))
    log = StepLog(tmp_path / "train.csv", "a", 0)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.csv").mkdir()
    for iteration in range(3):
        log.write(row("a", iteration))
    assert caplog.text.count("training continues without it") == 2
