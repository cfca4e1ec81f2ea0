from pathlib import Path

import pytest
from conftest import TINY, box, write_clip

from stma.errors import InputError
from stma.evaluation import validation
from stma.evaluation.validation import build_validation
from stma.inference.baselines import CopyFirstMask
from stma.model.factory import build_model
from stma.training.config import ValidationConfig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clips; in ``a`` the object is somewhere else in the third frame."""
    here, elsewhere = box(4, 4, 12, 12), box(24, 30, 12, 12)
    write_clip(tmp_path / "set", "a", {0: here, 1: here, 2: elsewhere, 3: here}, frames=4)
    write_clip(tmp_path / "set", "b", dict.fromkeys(range(4), here), frames=4)
    return tmp_path / "set"


def test_the_score_is_the_mean_of_the_clips_that_are_named(root, tmp_path, monkeypatch) -> None:
    """Of a method that repeats the first mask: right in one of the two scored frames of ``a``."""
    monkeypatch.setattr(validation, "Segmenter", lambda model: CopyFirstMask())
    model = build_model(TINY).eval()
    for clips, expected in ((["a"], 50), (["b"], 100), (None, 75)):
        validate = build_validation(ValidationConfig(root=str(root), clips=clips))
        assert validate is not None
        assert validate(model, tmp_path / "work") == expected
        assert sorted(p.name for p in (tmp_path / "work").iterdir()) == (clips or ["a", "b"])
    assert build_validation(ValidationConfig()) is None


def test_a_set_that_cannot_be_scored(tmp_path: Path) -> None:
    write_clip(tmp_path, "a", {0: box(4, 4, 12, 12)}, frames=4)
    with pytest.raises(InputError, match=r"validation: .*: a: fewer than 3 frames, or frames"):
        build_validation(ValidationConfig(root=str(tmp_path)))
    with pytest.raises(InputError, match="nowhere: no such folder"):
        build_validation(ValidationConfig(root=str(tmp_path / "nowhere")))
