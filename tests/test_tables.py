import csv

from stma.evaluation.tables import Table, number, one_line

TABLE = Table(["method", "J&F"], [["a|b", "90.1"], ["longer", ""]])


def test_markdown_is_padded_and_escaped() -> None:
    assert TABLE.markdown().splitlines() == [
        "| method |  J&F |",
        "| ------ | ---: |",
        "| a\\|b   | 90.1 |",
        "| longer |      |",
    ]


def test_csv_is_read_back(tmp_path) -> None:
    TABLE.write_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["method", "J&F"], ["a|b", "90.1"], ["longer", ""]]


def test_numbers() -> None:
    assert (number(1.25), number(0.9996, 3), number(None)) == ("1.2", "1.000", "")


def test_names_stay_on_their_line() -> None:
    assert one_line("ünï 日本") == "ünï 日本"
    assert one_line("a\nb\t\x1b[1m\udcff") == "a\\nb\\t\\x1b[1m\\udcff"
    assert Table(["a"], [["b\nc"]]).markdown().count("\n") == 2
