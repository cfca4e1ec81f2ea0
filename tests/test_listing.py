from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sources import video

from stma.compose import load_dataset_config
from stma.data.config import DatasetConfig
from stma.data.listing import list_dataset
from stma.data.pictures import save_clip
from stma.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"

# Each publisher's tree, and the flat one of STCN and XMem: two images with masks.
TREES = {
    "ecssd": ["images/0001.jpg ground_truth_mask/0001.png", "0001.jpg 0001.png"],
    "fss1000": [
        "abacus/1.jpg abacus/1.png",
        "fewshot_data/abacus/1.jpg fewshot_data/abacus/1.png",
        "fewshot_data/fewshot_data/abacus/1.jpg fewshot_data/fewshot_data/abacus/1.png",
    ],
    "hrsod": [
        "HRSOD_train/3.jpg HRSOD_train_mask/3.png HRSOD_test/3.jpg HRSOD_test_mask/3.png",
        "3.jpg 3.png",
    ],
    "big": [
        "val/2007_x_im.jpg val/2007_x_gt.png test/y_im.jpg test/y_gt.png",
        "y_im.jpg y_gt.png",
        "y.jpg y.png",
    ],
    "duts_tr": ["DUTS-TR-Image/n01.jpg DUTS-TR-Mask/n01.png", "n01.jpg n01.png"],
    "duts_te": ["DUTS-TE-Image/sun.jpg DUTS-TE-Mask/sun.png", "sun.jpg sun.png"],
}


composed = cache(partial(load_dataset_config, CONFIGS))


def block_of(dataset: str, root: Path) -> DatasetConfig:
    return replace(composed(dataset), root=str(root), published=None, exclude=[])


@pytest.mark.parametrize(
    ("dataset", "tree"), [(name, tree) for name, trees in TREES.items() for tree in trees]
)
def test_still_images_in_every_layout(tmp_path: Path, dataset: str, tree: str) -> None:
    frames, masks = video(1)
    for file in tree.split():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        picture = frames[0] if file.endswith("jpg") else 255 * np.minimum(masks[0], 1)
        Image.fromarray(picture).save(tmp_path / file)
    images, problems = list_dataset(block_of(dataset, tmp_path))
    assert problems == []
    files = [path for image in images for path in (image.frame(0), image.mask(0))]
    assert sorted(tmp_path / file for file in tree.split()) == sorted(files)


@pytest.mark.parametrize(
    ("dataset", "below", "clips"),
    [
        ("bl30k", "", ["abc00001", "kea03423"]),
        ("youtubevos2018", "", ["003234408d"]),
        ("youtubevos2019", "", ["003234408d"]),
        ("lvos", "", ["7K7WVzGG"]),
        ("mose", "", ["001ca3cb"]),
        ("davis2017", "480p", ["bear"]),
        ("davis2016", "480p", ["bear"]),
    ],
)
def test_videos_of_every_set(tmp_path: Path, dataset: str, below: str, clips: list[str]) -> None:
    for name in clips:
        save_clip(tmp_path, name, *video(3), ".jpg")
    if below:
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / kind).rename(tmp_path / "moved")
            (tmp_path / kind).mkdir()
            (tmp_path / "moved").rename(tmp_path / kind / below)
    block = block_of(dataset, tmp_path)
    if block.split is not None:
        path = tmp_path / "ImageSets" / f"{block.split}.txt"
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{name}\n" for name in clips))
    videos, problems = list_dataset(block)
    assert problems == []
    assert [found.name for found in videos] == clips


def test_a_split_that_names_a_missing_clip(tmp_path: Path) -> None:
    save_clip(tmp_path, "bear", *video(3), ".jpg")
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("bear\nghost\n")
    block = block_of("davis2017", tmp_path)
    _, (problem,) = list_dataset(block)
    assert str(problem).startswith(f"{tmp_path}/ImageSets/2017/train.txt: names the clip ghost")


def test_what_is_excluded_may_be_a_pattern(tmp_path: Path) -> None:
    for name in ("a7", "a17", "a8", "b[7]"):
        save_clip(tmp_path, name, *video(1), ".png")

    def names(*exclude: str) -> list[str]:
        block = DatasetConfig(root=str(tmp_path), exclude=list(exclude))
        return [clip.name for clip in list_dataset(block)[0]]

    assert names("*7") == ["a8", "b[7]"]
    assert names("b[7]", "a8") == ["a17", "a7"]  # its own name, though it reads as a pattern
    with pytest.raises(InputError, match=r"exclude names c\*"):
        names("a*", "c*")
