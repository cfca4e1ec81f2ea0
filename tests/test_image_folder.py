from pathlib import Path

import pytest

from stma.data.image_folder import Layout, find_layout, list_images
from stma.errors import InputError

FLAT = Layout("*.jpg", "*.png")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("layout", "files", "names"),
    [
        (Layout("im/*.jpg", "gt/*.png"), ["im/a.jpg", "gt/a.png", "im/b.JPG", "gt/b.png"], "a b"),
        (Layout("*/*.jpg", "*/*.png"), ["ab/1.jpg", "ab/1.png", "c d/10.jpg", "c d/10.png"],
         "ab/1 c d/10"),
        (Layout("*/*_im.jpg", "*/*_gt.png"), ["val/x_im.jpg", "val/x_gt.png"], "val/x"),
        (Layout("T_*/*.jpg", "T_*_mask/*.png"), ["T_tr/1.jpg", "T_tr_mask/1.png", "T_te/1.jpg",
                                                  "T_te_mask/1.png"], "te/1 tr/1"),
        (FLAT, ["a.b.jpg", "a.b.png"], "a.b"),
    ],
)  # fmt: skip
def test_layouts(tmp_path: Path, layout: Layout, files: list[str], names: str) -> None:
    touch(tmp_path, *files)
    pairs, problems = list_images(tmp_path, layout)
    assert problems == []
    assert " ".join(pair.name for pair in pairs) == names
    assert all(pair.frame(0).is_file() and pair.mask(0).is_file() for pair in pairs)


def test_the_first_layout_that_fits(tmp_path: Path) -> None:
    layouts = [Layout("images/*.jpg", "masks/*.png"), FLAT]
    touch(tmp_path, "a.jpg", "a.png")
    assert find_layout(tmp_path, layouts) == FLAT
    touch(tmp_path, "images/b.jpg", "masks/b.png")
    assert find_layout(tmp_path, layouts) == layouts[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no images; looked for images/\*\.jpg with"):
        find_layout(tmp_path / "empty", layouts)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_layout(tmp_path / "nowhere", layouts)


def test_what_has_no_partner_and_what_does_not_belong(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b.jpg", "c.png", ".DS_Store", "._a.jpg", "1.jpeg", "x.txt")
    pairs, problems = list_images(tmp_path, FLAT)
    assert [pair.name for pair in pairs] == ["a"]
    said = {problem.path.name: (problem.message, problem.error) for problem in problems}
    assert said["b.jpg"] == ("no mask of this name; b.png is missing", True)
    assert said["c.png"] == ("no image of this name; c.jpg is missing", True)
    assert said["1.jpeg"][0].startswith("a stray file")
    assert said["x.txt"][0].startswith("a stray file")
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("images", "masks"), [("*.jpg", "*/*.png"), ("a.jpg", "a.png"), ("**.jpg", "*.png"), ("*", "*")]
)
def test_patterns_that_make_no_sense(images: str, masks: str) -> None:
    with pytest.raises(InputError, match="pattern"):
        Layout(images, masks)
