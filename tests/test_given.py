import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import box, gradient
from PIL import Image

from stma.data.pictures import save_mask, save_picture
from stma.errors import InputError
from stma.video.given import GivenMask, find_masks
from stma.video.reading import Video, open_video
from stma.video.writing import OUTPUTS

SIZE = (48, 64)
DOG, BALL = box(8, 8, 24, 24, size=SIZE), box(4, 40, 20, 16, 2, size=SIZE)
BOTH = DOG + BALL


@pytest.fixture
def video(tmp_path, monkeypatch) -> Video:
    monkeypatch.chdir(tmp_path)
    Path("frames").mkdir()
    for number in range(4):
        save_picture(Path(f"frames/{number:05d}.jpg"), gradient(number))
    return open_video("frames")


def masks(found: dict[int, GivenMask]) -> dict[int, np.ndarray]:
    for given in found.values():
        assert given.ids == set(np.unique(given.read()[0]).tolist()) - {0}
    return {number: given.read()[0] for number, given in found.items()}


def equal(found: dict[int, GivenMask], expected: dict[int, np.ndarray]) -> bool:
    read = masks(found)
    return list(read) == list(expected) and all(
        np.array_equal(read[number], mask) for number, mask in expected.items()
    )


def black_and_white(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(255) * (mask > 0)).save(path)


def test_a_picture_for_each_object(video) -> None:
    black_and_white(Path("dog.png"), DOG)
    black_and_white(Path("ball.png"), BALL)
    assert equal(find_masks(video, [":1=dog.png", "0:2=ball.png"]), {0: BOTH})
    assert equal(find_masks(video, ["2:7=ball.png", ":1=dog.png"]), {0: DOG, 2: BALL // 2 * 7})
    with pytest.raises(InputError, match=r"ball\.png: '300' is no number of an object"):
        find_masks(video, [":300=ball.png"])
    save_mask(Path("whole.png"), BOTH)
    with pytest.raises(InputError, match=r"two masks for frame 00000: whole\.png and dog\.png"):
        find_masks(video, ["whole.png", ":1=dog.png"])


def test_a_folder_for_each_frame(video) -> None:
    for path, mask in {"1/1.png": DOG, "1/2.png": BALL, "00003/2.png": BALL}.items():
        black_and_white(Path("given", path), mask)
    assert equal(find_masks(video, ["given"]), {1: BOTH, 3: BALL})
    black_and_white(Path("given/9/1.png"), DOG)
    with pytest.raises(InputError, match=r"given/9/1\.png: the video has no frame 9"):
        find_masks(video, ["given"])


def test_empty_masks_of_a_folder_are_skipped(video, caplog) -> None:
    Path("given").mkdir()
    save_mask(Path("given/0.png"), DOG)
    save_mask(Path("given/2.png"), DOG * 0)
    assert equal(find_masks(video, ["given"]), {0: DOG})
    assert "given/2.png: empty" in caplog.text
    assert "--absent 00002=1" in caplog.text


def test_objects_of_one_number_and_two_colours(video, caplog) -> None:
    """As pictures of one colour on black, which a user may mean for two objects."""
    for name, mask, colour in (("dog", DOG, (255, 0, 0)), ("ball", BALL, (0, 255, 0))):
        save_picture(Path(f"{name}.png"), np.uint8(colour) * (mask > 0)[..., None])
    found = find_masks(video, ["dog.png", "2=dog.png"])
    assert equal(found, {0: DOG, 2: DOG})
    assert caplog.text == ""
    assert equal(find_masks(video, ["dog.png", "2=ball.png"]), {0: DOG, 2: BALL // 2})
    assert "ball.png: object 1 has the number of one of another colour in dog.png" in caplog.text
    assert equal(find_masks(video, ["dog.png", "2:7=ball.png"]), {0: DOG, 2: BALL // 2 * 7})


def test_void_is_no_object(video, caplog) -> None:
    save_mask(Path("void.png"), np.where(BALL > 0, np.uint8(255), DOG))
    assert find_masks(video, ["void.png"])[0].ids == {1, 255}
    assert "void.png: 255 beside small IDs" in caplog.text
    assert "--void 255" in caplog.text
    assert equal(find_masks(video, ["void.png"], void=255), {0: DOG})
    with pytest.raises(InputError, match="--void 300"):
        find_masks(video, ["void.png"], void=300)


def test_black_and_white_is_object_1_at_any_frame(video) -> None:
    Image.fromarray(DOG > 0).save("first.png")  # 1 bit
    black_and_white(Path("later.png"), DOG)
    Image.fromarray(1 - DOG).convert("P").save("inverted.png")
    image = Image.fromarray(1 - DOG)
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save("inverted.png")
    given = ["first.png", "1=later.png", "2=inverted.png"]
    assert equal(find_masks(video, given), {0: DOG, 1: DOG, 2: DOG})


def test_coco_as_ours_writes_it(video) -> None:
    name, make = OUTPUTS["coco"]
    writer = make(Path(name), video)
    for frame in video.frames():
        writer.write(frame, (BOTH, DOG * 0, BALL, DOG)[frame.number])
    writer.close()
    assert {image["file_name"] for image in json.loads(Path(name).read_text())["images"]} == {
        f"0000{number}.jpg" for number in range(4)
    }
    assert equal(find_masks(video, [name]), {0: BOTH, 2: BALL, 3: DOG})


def coco(annotations: list[dict], frames: int = 1) -> str:
    images = [
        {"id": n, "file_name": f"{n:05d}.jpg", "height": 48, "width": 64} for n in range(frames)
    ]
    Path("coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return "coco.json"


def test_coco_of_other_programs(video) -> None:
    """Polygons, uncompressed run lengths, and no track_id."""
    polygon = {"image_id": 0, "segmentation": [[8, 8, 32, 8, 32, 32, 8, 32]]}
    counts = [len(list(run)) for run in _runs(BALL)]
    lengths = {"image_id": 0, "segmentation": {"size": list(SIZE), "counts": counts}}
    assert equal(find_masks(video, [coco([polygon, lengths])]), {0: BOTH})
    with pytest.raises(InputError, match=r"coco\.json: .*track_id"):
        find_masks(video, [coco([polygon, lengths | {"image_id": 1}], 2)])
    with pytest.raises(InputError, match=r"coco\.json: 0 is no number of an object"):
        find_masks(video, [coco([polygon | {"track_id": 0}])])
    for damaged in ({"image_id": 5}, {"image_id": 0}, {"image_id": 0, "segmentation": {}}):
        with pytest.raises(InputError, match=r"coco\.json: damaged"):
            find_masks(video, [coco([damaged])])


def _runs(mask: np.ndarray) -> list[np.ndarray]:
    """Of zeros and ones in turn, down the columns."""
    flat = (mask > 0).ravel(order="F")
    return np.split(flat, np.flatnonzero(np.diff(flat)) + 1)


def labelme(path: str, *shapes: dict) -> str:
    content = {"shapes": list(shapes), "imageHeight": 48, "imageWidth": 64, "imagePath": "x.jpg"}
    Path(path).write_text(json.dumps(content))
    return path


def test_labelme(video, caplog) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.full((24, 24), 255, np.uint8)).save(picture, "png")
    encoded = base64.b64encode(picture.getvalue()).decode()
    ball = {"label": "ball", "shape_type": "rectangle", "points": [[40, 4], [56, 24]]}
    dog = {"label": "dog", "points": [[8, 8], [32, 8], [32, 32], [8, 32]]}
    masked = {"label": "1", "shape_type": "mask", "points": [[8, 8], [31, 31]], "mask": encoded}
    assert equal(find_masks(video, [labelme("a.json", dog, ball)]), {0: BOTH})
    assert "dog is 1, ball is 2" in caplog.text
    assert equal(find_masks(video, ["1=" + labelme("a.json", masked, ball)]), {1: BOTH})
    Path("given").mkdir()
    labelme("given/0.json", ball)
    labelme("given/2.json", dog, ball)
    assert equal(find_masks(video, ["given"]), {0: BALL // 2, 2: DOG * 2 + BALL // 2})
    circle = {"label": "7", "shape_type": "circle", "points": [[32, 24], [32, 34]]}
    (disc,) = masks(find_masks(video, [labelme("a.json", circle)])).values()
    assert abs((disc == 7).sum() - np.pi * 100) < 15
    line = {"label": "7", "shape_type": "line", "points": [[32, 24], [32, 34]]}
    with pytest.raises(InputError, match=r"a\.json: a line has no area"):
        find_masks(video, [labelme("a.json", line)])
    with pytest.raises(InputError, match=r"a\.json: damaged"):
        find_masks(video, [labelme("a.json", {"label": "dog"})])
    Path("a.json").write_text("[1, 2")
    with pytest.raises(InputError, match=r"a\.json: damaged"):
        find_masks(video, ["a.json"])


def test_of_another_size(video) -> None:
    save_mask(Path("small.png"), DOG[:40])
    with pytest.raises(InputError, match=r"small\.png: 64 x 40 pixels, the video 64 x 48"):
        find_masks(video, ["small.png"])
