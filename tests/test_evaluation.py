import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed
from PIL import Image

from stma.data.procedural import SceneConfig, procedural_clip
from stma.errors import InputError
from stma.inference.evaluation import EvalConfig, evaluate, only_new_objects
from stma.model.factory import build_model
from stma.model.weights import save_weights
from stma.pictures import save_mask, save_picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clips: one with all masks, one whose second object enters late."""
    root = tmp_path / "data"
    for name, seed in (("full", 0), ("late", 2)):
        config = SceneConfig(min_objects=2, max_objects=2)
        rng = np.random.default_rng(seed)
        frames, masks, _ = procedural_clip(config, (40, 56), np.arange(5.0), rng)
        images, annotations = (root / kind / name for kind in ("JPEGImages", "Annotations"))
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for t in range(5):
            save_picture(images / f"{t:05d}.png", frames[t])
            if name == "full":
                save_mask(annotations / f"{t:05d}.png", masks[t])
        if name == "late":
            save_mask(annotations / "00001.png", np.where(masks[1] == 1, 17, 0).astype(np.uint8))
            box = np.zeros((40, 56), np.uint8)
            box[3:9, 4:12] = 5
            save_mask(annotations / "00003.png", box)
    return root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_weights(path, perturbed(build_model(TINY)), TINY, {})
    return path


def config(root: Path, output: Path, **settings) -> EvalConfig:
    return EvalConfig(root=str(root), output=str(output), device="cpu", **settings)


def test_masks_scores_and_pictures_of_every_clip(root, weights, tmp_path) -> None:
    output = tmp_path / "out"
    result = evaluate(config(root, output, weights=str(weights)))
    assert {score.clip for score in result.scores} == {"full"}
    assert result.frames == 10
    assert result.fps > 0
    for name in ("full", "late"):
        written = sorted((output / "masks" / name).iterdir())
        assert [path.name for path in written] == [f"{t:05d}.png" for t in range(5)]
        with Image.open(written[0]) as image:
            assert (image.mode, image.size) == ("P", (56, 40))
        assert (output / "sheets" / f"{name}.png").is_file()
        assert (output / "videos" / f"{name}.mp4").stat().st_size > 0
    late = [np.asarray(Image.open(output / "masks" / "late" / f"{t:05d}.png")) for t in range(5)]
    assert not late[0].any()
    assert set(np.unique(late[1])) == {0, 17}
    assert (late[3][3:9, 4:12] == 5).all()
    assert set(np.unique(late[4])) <= {0, 5, 17}
    summary = json.loads((output / "results.json").read_text())
    assert summary["scores"][-1]["name"] == "mean"
    assert "full" in (output / "results.txt").read_text()


def test_nothing_of_an_earlier_run_stays(root, tmp_path) -> None:
    output = tmp_path / "out"
    evaluate(config(root, output, method="copy", clips=["full"]))
    (output / "masks" / "full" / "00099.png").touch()
    (root / "Annotations" / "full" / "00004.png").unlink()  # no longer to be scored
    evaluate(config(root, output, method="copy", clips=["full"], sheets=False, videos=False))
    assert not (output / "scores.csv").exists()
    assert len(list((output / "masks" / "full").iterdir())) == 5
    assert not (output / "sheets" / "full.png").exists()
    assert json.loads((output / "results.json").read_text())["scores"] is None
    with pytest.raises(InputError, match=r"output: .*cannot be written to"):
        evaluate(config(root, output / "results.txt", method="copy"))


def test_copying_scores_what_the_first_mask_is_worth(root, tmp_path) -> None:
    result = evaluate(
        config(root, tmp_path / "out", method="copy", clips=["full"], sheets=False, videos=False)
    )
    masks = [
        np.asarray(Image.open(root / "Annotations" / "full" / f"{t:05d}.png")) for t in range(5)
    ]
    for score in result.scores:
        i = score.object_id
        ious = [
            ((masks[0] == i) & (masks[t] == i)).sum() / ((masks[0] == i) | (masks[t] == i)).sum()
            for t in (1, 2, 3)
        ]
        assert score.j == pytest.approx(100 * np.mean(ious))


def test_a_method_sees_an_object_where_it_first_appears_and_never_again() -> None:
    mask = np.array([[0, 1, 2], [3, 3, 0]], np.uint8)
    assert only_new_objects(mask, []).tolist() == mask.tolist()
    assert only_new_objects(mask, [1, 3]).tolist() == [[0, 0, 2], [0, 0, 0]]
    assert only_new_objects(mask, [1, 2, 3]) is None


def test_bad_files_are_named(root, tmp_path) -> None:
    late = root / "Annotations" / "late"

    def run() -> None:
        evaluate(config(root, tmp_path / "out", method="copy", clips=["late"]))

    save_mask(late / "00003.png", np.ones((20, 20), np.uint8))
    with pytest.raises(InputError, match=r"late/00003\.png with .*00003\.png: the mask is 20 x 20"):
        run()
    save_mask(late / "00003.png", np.zeros((40, 56), np.uint8))
    with pytest.raises(InputError, match=r"00003\.png: holds no object"):
        run()
    save_picture(late / "00003.png", np.zeros((40, 56, 3), np.uint8))
    with pytest.raises(InputError, match=r"00003\.png: the mask is RGB"):
        run()
    (late / "00003.png").unlink()
    (root / "JPEGImages" / "late" / "00002.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"late/00002\.png: cannot be read"):
        run()


def test_a_fully_annotated_clip_without_any_object(root, tmp_path) -> None:
    for path in (root / "Annotations" / "full").iterdir():
        save_mask(path, np.zeros((40, 56), np.uint8))
    with pytest.raises(InputError, match="full: no mask holds an object"):
        evaluate(config(root, tmp_path / "out", method="copy", clips=["full"]))


def test_settings_that_make_no_sense(root, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"method is 'xmem'.*copy"):
        config(root, tmp_path, method="xmem")
    with pytest.raises(ValueError, match="weights"):
        config(root, tmp_path)
