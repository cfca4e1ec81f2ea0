import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import box, write_clip

from stma.errors import InputError
from stma.evaluation import report
from stma.evaluation.eval_config import EvalConfig
from stma.evaluation.evaluation import evaluate
from stma.evaluation.report import PLOT_HEIGHT, PLOT_WIDTH, Result, plot


@pytest.fixture
def root(tmp_path):
    """A folder for results, with the clips in ``data``."""
    for name, step in (("still", 0), ("<fast>", 4), ("slow", 1)):
        write_clip(tmp_path / "data", name, {i: box(10, 2 + step * i, 12, 12) for i in range(5)})
    write_clip(tmp_path / "data", "unscored", {0: box(2, 2, 9, 9)})
    return tmp_path


def run(root, output: str, **settings):
    return evaluate(
        EvalConfig(str(root / "data"), str(root / output), device="cpu", method="copy", **settings)
    )


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for found, attributes in self.found if found == tag]


def test_one_page_holds_all_that_it_shows_the_worst_clip_first(root) -> None:
    run(root, "out")
    text = (root / "out" / "report.html").read_text()
    page = Elements(text)
    assert [each["data-name"] for each in page.all("details")] == [
        "<fast>",
        "slow",
        "still",
        "unscored",
    ]
    assert "open" in page.all("details")[0]
    assert "&lt;fast&gt;" in text
    assert "<fast>" not in text
    pictures = [each["src"] for each in page.all("img") if "src" in each]
    assert all(source.startswith("data:image/") for source in pictures)
    assert not page.all("link")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert len(page.all("polyline")) == 3 * 2  # J and F of the scored clips
    assert len(pictures) == 3 * 5 * 2 + 5  # of result and truth; the unscored one has no truth


def test_two_results_side_by_side(root) -> None:
    run(root, "one")
    run(root, "two", compare=str(root / "one"))
    text = (root / "two" / "report.html").read_text()
    page = Elements(text)
    assert len(page.all("polyline")) == 3 * 4
    assert f"copying the first mask in {root}/one" in text  # they are called the same
    assert "difference" in [each.get("value") for each in page.all("option")]


def test_a_clip_that_cannot_be_drawn_costs_no_other_and_no_score(root) -> None:
    run(root, "one", clips=["slow", "still"])
    (root / "one/masks/slow/00002.png").write_bytes(b"")  # of the other result
    result = run(root, "two", clips=["slow", "still"], compare=str(root / "one"))
    assert result.ok
    text = (root / "two" / "report.html").read_text()
    assert "not shown: copying the first mask in" in text
    assert "00002.png: cannot be read" in text
    assert len(Elements(text).all("img")) == 2 * 2 * 5 + 5 + 1  # with the dialog's own


def test_every_clip_has_its_scores_though_the_worst_alone_are_drawn(root, monkeypatch) -> None:
    monkeypatch.setattr(report, "MAX_CLIPS", 1)
    run(root, "out")
    text = (root / "out" / "report.html").read_text()
    page = Elements(text)
    assert len(page.all("details")) == 4
    assert len(page.all("polyline")) == 3 * 2
    assert len(page.all("img")) == 5 * 2 + 1
    assert "pictures of 1 of 4 clips" in text


def test_what_cannot_be_compared_is_refused_before_anything_runs(root) -> None:
    with pytest.raises(InputError, match=r"nowhere: not the complete output of an evaluation"):
        run(root, "out", compare=str(root / "nowhere"))
    run(root, "one")
    with pytest.raises(InputError, match="the output of this evaluation itself"):
        run(root, "one", compare=str(root / "one"))
    summary = json.loads((root / "one" / "results.json").read_text())
    (root / "one" / "results.json").write_text(json.dumps(summary | {"benchmark": "mose_val"}))
    with pytest.raises(InputError, match="is a result on mose_val, split None; this is folder"):
        run(root, "out", compare=str(root / "one"))
    assert not (root / "out").exists()
    assert Result.load(root / "one").title == "copying the first mask"


def test_a_plot_by_hand() -> None:
    """Two objects, the second from the second frame on: the mean is over those there are."""
    side = {
        "1": {"frames": ["1", "2", "3"], "j": [1.0, 0.5, 0.0], "f": [0, 0, 0]},
        "2": {"frames": ["2", "3"], "j": [0.0, 1.0], "f": [0, 0]},
    }
    drawn = plot([side, None])
    assert drawn is not None
    j, f = drawn["lines"]
    points = [tuple(map(float, point.split(","))) for point in j["points"].split()]
    assert np.allclose(
        points,
        [(0, 0), (PLOT_WIDTH / 2, 0.75 * PLOT_HEIGHT), (PLOT_WIDTH, 0.5 * PLOT_HEIGHT)],
    )
    assert (j["dashed"], f["dashed"]) == (False, True)
    assert plot([None]) is None


def test_a_page_without_scores_says_why(root) -> None:
    run(root, "out", clips=["unscored"])
    text = (root / "out" / "report.html").read_text()
    assert "nothing to score: no clip has at least 3 frames and a mask for each" in text
    run(root, "scored", clips=["slow"])
    assert "nothing to score" not in (root / "scored" / "report.html").read_text()
