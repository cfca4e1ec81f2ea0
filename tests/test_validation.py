from pathlib import Path

import pytest
import torch
from conftest import TINY
from test_sources import video

from stma.data.pictures import save_clip
from stma.errors import InputError
from stma.evaluation.validation import build_validation
from stma.model.factory import build_model
from stma.training.config import ValidationConfig


def test_a_model_is_scored_on_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_clip(tmp_path / "set", name, *video(4), ".jpg")
    validation = build_validation(ValidationConfig(root=str(tmp_path / "set"), clips=["a"]))
    assert validation is not None
    torch.manual_seed(0)
    model = build_model(TINY).eval()
    score = validation(model, tmp_path / "work")
    assert 0 <= score <= 100
    assert score == validation(model, tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["a"]
    assert build_validation(ValidationConfig()) is None


def test_a_set_that_cannot_be_scored(tmp_path: Path) -> None:
    save_clip(tmp_path, "a", *video(4), ".jpg")
    (tmp_path / "Annotations" / "a" / "00002.png").unlink()
    with pytest.raises(InputError, match=r"validation: .* 1 frames have no mask, .*a/00002\.jpg"):
        build_validation(ValidationConfig(root=str(tmp_path)))
    with pytest.raises(InputError, match="nowhere: no such folder"):
        build_validation(ValidationConfig(root=str(tmp_path / "nowhere")))
