import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import TINY, box, perturbed, random_frame, write_clip_file

from stma.app.session import DOWNLOADS, Limits, Session
from stma.data.masks import read_mask
from stma.data.pictures import save_picture
from stma.errors import InputError
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.factory import build_model
from stma.model.stma import STMA
from stma.video.reading import open_video

SIZE = (48, 64)
CONFIG = SegmenterConfig(memory_interval=2)


@pytest.fixture(scope="module")
def model() -> STMA:
    torch.manual_seed(0)
    return perturbed(build_model(TINY)).eval()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return write_clip_file(tmp_path / "clip.mp4", [random_frame(rng, *SIZE) for _ in range(30)])


@pytest.fixture
def session(clip: Path, model: STMA, tmp_path: Path) -> Session:
    folder = tmp_path / "sessions"
    folder.mkdir()
    return Session(clip, model, folder, config=CONFIG)


def object_mask(value: int = 1, top: int = 8) -> np.ndarray:
    return box(top, 10, 16, 20, value, size=SIZE)


def expected(clip: Path, model: STMA, masks: dict[int, np.ndarray]) -> list[np.ndarray]:
    segmenter = Segmenter(model, CONFIG)
    return [segmenter.step(f.image, masks.get(f.number)).mask for f in open_video(clip).frames()]


def all_masks(session: Session) -> list[np.ndarray]:
    return [session.mask(number) for number in range(session.num_frames)]


def test_run_gives_what_the_segmenter_gives(session: Session, clip: Path, model: STMA) -> None:
    assert session.num_frames == 30
    assert session.frame(7).shape == (*SIZE, 3)
    assert session.draw(3, object_mask(2))
    assert np.array_equal(session.mask(3), object_mask(2))
    assert session.ids == [2]
    assert list(session.run()) == list(range(30))
    for found, mask in zip(
        all_masks(session), expected(clip, model, {3: object_mask(2)}), strict=True
    ):
        assert np.array_equal(found, mask)


def test_a_drawing_beyond_the_real_end(session: Session) -> None:
    session.num_frames = 40  # says a header that is wrong
    session.draw(3, object_mask())
    session.draw(35, object_mask())
    with pytest.raises(InputError, match="ends after 30 frames; what was drawn on frame 35"):
        list(session.run())
    assert (session.done, session.num_frames, session.drawn_frames) == (30, 30, [3])


def test_a_correction_goes_on_from_there(session: Session, clip: Path, model: STMA) -> None:
    """From a state that was kept, not from the start; the result is that of one long run."""
    session.draw(0, object_mask())
    list(session.run())
    first = all_masks(session)
    corrected = np.maximum(first[20], object_mask(3, top=20))
    assert session.draw(20, corrected)
    assert session.done == 20
    assert not session.mask(21).any()
    again = list(session.run())
    assert again[0] > 15
    assert again[-1] == 29
    found = all_masks(session)
    masks = expected(clip, model, {0: object_mask(), 20: corrected})
    for number in range(30):
        assert np.array_equal(found[number], masks[number]), number
    assert all(np.array_equal(a, b) for a, b in zip(first[:20], found[:20], strict=True))


def test_stop_and_go_on(session: Session, clip: Path, model: STMA) -> None:
    session.draw(0, object_mask())
    for number in session.run():
        if number == 11:
            session.stop()
    assert session.done == 12
    assert list(session.run()) == list(range(12, 30))
    masks = expected(clip, model, {0: object_mask()})
    assert all(np.array_equal(a, b) for a, b in zip(all_masks(session), masks, strict=True))


def test_the_same_mask_is_no_correction(session: Session) -> None:
    assert not session.draw(4, np.zeros(SIZE, np.uint8))
    session.draw(0, object_mask())
    list(session.run())
    assert not session.draw(9, session.mask(9))
    assert session.done == 30
    assert session.drawn_frames == [0]


def test_an_erased_object_is_absent_there(session: Session, clip: Path, model: STMA) -> None:
    session.draw(0, object_mask())
    list(session.run())
    number = next(n for n in range(5, 30) if session.mask(n).any())
    session.draw(number, np.zeros(SIZE, np.uint8))
    list(session.run())
    assert not session.mask(number).any()
    segmenter = Segmenter(model, CONFIG)
    for frame in open_video(clip).frames():
        given = object_mask() if frame.number == 0 else None
        absent = {1} if frame.number == number else set()
        mask = segmenter.step(frame.image, given, absent=absent).mask
        assert np.array_equal(session.mask(frame.number), mask), frame.number
    session.draw(number, object_mask())
    list(session.run())
    assert np.array_equal(session.mask(number), object_mask())


def test_a_drawing_that_is_undone_says_nothing(session: Session) -> None:
    """Not that the object is absent from that frame."""
    session.draw(0, object_mask())
    session.draw(3, object_mask())
    session.draw(3, np.zeros(SIZE, np.uint8))
    assert session.drawn_frames == [0]


def test_drawing_ends_a_run(session: Session) -> None:
    session.draw(0, object_mask())
    run = session.run()
    for _ in range(10):
        next(run)
    session.draw(4, object_mask(top=12))
    assert list(run) == []
    assert session.done == 4


def test_an_object_is_taken_away(session: Session) -> None:
    both = np.maximum(object_mask(1), object_mask(2, top=30))
    session.draw(0, both)
    session.draw(8, object_mask(5, top=2))
    list(session.run())
    session.remove(2)
    assert session.ids == [1, 5]
    assert session.done == 30
    assert not any((mask == 2).any() for mask in all_masks(session))
    session.draw(25, object_mask(1, top=20))
    list(session.run())
    assert not any((mask == 2).any() for mask in all_masks(session))
    with pytest.raises(InputError, match=r"object 2 is not in the video; objects: \[1, 5\]"):
        session.remove(2)
    session.draw(10, object_mask(2, top=2))
    list(session.run())
    assert (session.mask(10) == 2).any()


def test_taking_the_last_object_away_starts_over(session: Session) -> None:
    session.draw(0, object_mask())
    list(session.run())
    session.remove(1)
    assert session.done == 0
    assert not session.mask(0).any()
    with pytest.raises(InputError, match="nothing is drawn yet"):
        next(session.run())


def test_masks_of_what_is_done_are_those_of_the_first_frames(model, tmp_path) -> None:
    """img_10 is a later frame than img_2."""
    rng = np.random.default_rng(0)
    for name in ("frames", "sessions"):
        (tmp_path / name).mkdir()
    for number in range(12):
        save_picture(tmp_path / f"frames/img_{number}.png", random_frame(rng, *SIZE))
    session = Session(tmp_path / "frames", model, tmp_path / "sessions", config=CONFIG)
    session.draw(0, object_mask())
    for number in session.run():
        if number == 10:
            session.stop()
    with zipfile.ZipFile(session.write("masks")) as archive:
        assert archive.namelist() == [f"img_{number}.png" for number in range(11)]


def test_downloads(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frame is segmented yet"):
        session.write("masks")
    session.draw(0, object_mask())
    for number in session.run():
        if number == 9:
            session.stop()
    paths = {kind: session.write(kind) for kind in DOWNLOADS}
    with zipfile.ZipFile(paths["masks"]) as archive:
        assert archive.namelist() == [f"{n:05d}.png" for n in range(10)]
        archive.extractall(tmp_path / "masks")
    assert np.array_equal(read_mask(tmp_path / "masks" / "00000.png")[0], object_mask())
    with av.open(str(paths["overlay"])) as video:
        assert len(list(video.decode(video=0))) == 10
    assert all(path.name.startswith("clip_") for path in paths.values())
    assert paths["cutout"].suffix == ".zip"


def test_closing_deletes_everything(session: Session, tmp_path: Path) -> None:
    session.draw(0, object_mask())
    run = session.run()
    for _ in range(8):
        next(run)
    session.close()
    assert list(run) == []
    assert list((tmp_path / "sessions").iterdir()) == []


def test_sessions_do_not_mix(session: Session, clip: Path, model: STMA, tmp_path: Path) -> None:
    other = Session(clip, model, tmp_path / "sessions", config=CONFIG)
    session.draw(0, object_mask(1))
    other.draw(0, object_mask(2, top=20))
    for _ in zip(session.run(), other.run(), strict=True):
        pass
    masks = expected(clip, model, {0: object_mask(2, top=20)})
    assert all(np.array_equal(a, b) for a, b in zip(all_masks(other), masks, strict=True))
    other.close()
    assert session.mask(29).shape == SIZE


def test_limits(clip: Path, model: STMA, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clip.mp4: 30 frames, and the limit is 20; cut it"):
        Session(clip, model, tmp_path, Limits(frames=20))
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(3_000_000)
    with pytest.raises(InputError, match=r"large.mp4: 3 MB, and the limit is 2 MB"):
        Session(large, model, tmp_path, Limits(megabytes=2))


def test_no_video(model: STMA, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    with pytest.raises(InputError, match="cannot be read as a video"):
        Session(text, model, tmp_path)
    assert list(tmp_path.iterdir()) == [text]
    with pytest.raises(InputError, match=r"^notes.mp4: cannot be read as a video"):
        Session(text, model, tmp_path, owned=True)
    assert list(tmp_path.iterdir()) == []
