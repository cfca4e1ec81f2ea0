import json
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import TINY, box, perturbed, random_frame, write_clip_file

from stma.app.session import DOWNLOADS, RECORD, Limits, Session
from stma.data.masks import read_mask
from stma.data.pictures import save_mask
from stma.errors import InputError
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.factory import build_model
from stma.model.stma import STMA
from stma.video.reading import open_video

SIZE = (48, 64)
FRAMES = 30
CONFIG = SegmenterConfig(memory_interval=2)


@pytest.fixture(scope="module")
def model() -> STMA:
    torch.manual_seed(0)
    return perturbed(build_model(TINY)).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    frames = [random_frame(rng, *SIZE) for _ in range(FRAMES)]
    return write_clip_file(tmp_path_factory.mktemp("clip") / "clip.mp4", frames)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sessions"
    folder.mkdir()
    return folder


@pytest.fixture
def session(clip: Path, folder: Path) -> Session:
    return Session.create(clip, folder)


def object_mask(value: int = 1, top: int = 8) -> np.ndarray:
    return box(top, 10, 16, 20, value, size=SIZE)


NOTHING = np.zeros(SIZE, np.uint8)


def run(session: Session, model: STMA, until: int | None = None, backward: bool = False) -> list:
    numbers = []
    for number in session.run(model, backward, CONFIG):
        numbers.append(number)
        if number == until:
            session.stop()
    return numbers


def expected(
    clip: Path,
    model: STMA,
    masks: dict[int, np.ndarray],
    absent: dict[int, set[int]] | None = None,
    backward: bool = False,
) -> dict[int, np.ndarray]:
    """By number, from the first mask on."""
    segmenter, first = Segmenter(model, CONFIG), min(masks)
    video = open_video(clip)
    return {
        f.number: segmenter.step(
            f.image, masks.get(f.number), absent=(absent or {}).get(f.number, set())
        ).mask
        for f in (video.frames_backward(first) if backward else video.frames(first))
    }


def check(session: Session, masks: dict[int, np.ndarray]) -> None:
    for number, mask in masks.items():
        assert np.array_equal(session.mask(number), mask), number


def test_run_gives_what_the_segmenter_gives(session: Session, clip: Path, model: STMA) -> None:
    assert session.num_frames == FRAMES
    assert session.draw(3, object_mask(2))
    assert np.array_equal(session.mask(3), object_mask(2))
    assert session.ids == [2]
    assert run(session, model) == list(range(3, FRAMES))
    check(session, expected(clip, model, {3: object_mask(2)}))
    assert (session.begin, session.end) == (3, FRAMES)
    assert run(session, model) == []


def test_backward(session: Session, clip: Path, model: STMA) -> None:
    session.draw(6, object_mask())
    assert run(session, model, until=4, backward=True) == [6, 5, 4]
    assert (session.begin, session.end) == (4, 7)
    assert run(session, model, backward=True) == [3, 2, 1, 0]
    check(session, expected(clip, model, {6: object_mask()}, backward=True))
    assert run(session, model) == list(range(6, FRAMES))
    check(session, expected(clip, model, {6: object_mask()}))
    assert (session.begin, session.end) == (0, FRAMES)
    assert run(session, model, backward=True) == []
    session.draw(2, object_mask(2))  # goes on forward from there
    assert (session.first, session.begin, session.end) == (2, 2, 2)


def test_a_correction_goes_on_from_there(session: Session, clip: Path, model: STMA) -> None:
    """From a state that was kept, not from the start; the result is that of one long run."""
    session.draw(0, object_mask())
    run(session, model)
    first = [session.mask(number) for number in range(FRAMES)]
    corrected = np.maximum(first[20], object_mask(3, top=20))
    assert session.draw(20, corrected)
    assert session.end == 20
    assert np.array_equal(session.mask(21), first[21])  # old, but still there
    assert session.describe()["old"] == [(20, 29)]
    again = run(session, model)
    assert again[0] > 15
    check(session, expected(clip, model, {0: object_mask(), 20: corrected}))
    assert session.describe()["old"] == []


def test_on_an_old_frame_only_what_changes_is_given(
    session: Session, clip: Path, model: STMA
) -> None:
    session.draw(0, np.maximum(object_mask(1), object_mask(2, top=30)))
    run(session, model)
    session.draw(5, object_mask(1))
    shown = session.mask(9)
    session.draw(9, np.where(object_mask(2, top=4) > 0, 2, np.where(shown == 2, 0, shown)))
    run(session, model)
    given = {
        0: np.maximum(object_mask(1), object_mask(2, top=30)),
        5: object_mask(1),
        9: object_mask(2, top=4),
    }
    check(session, expected(clip, model, given, {5: {2}}))


@pytest.mark.parametrize("stopped", [11, 29])
def test_another_day(session: Session, clip: Path, folder: Path, model: STMA, stopped: int) -> None:
    """A session opened again goes on as if it had never been closed."""
    session.draw(2, object_mask())
    session.rename(1, "the dog")
    run(session, model, until=stopped)
    before = session.describe()
    (own,) = folder.iterdir()
    again = Session(own)
    after = again.describe()
    assert after["objects"] == [{"id": 1, "name": "the dog"}]
    for key in ("given", "begin", "end", "frames", "old", "doubtful"):
        assert after[key] == before[key], key
    run(again, model)
    check(again, expected(clip, model, {2: object_mask()}))


def test_killed_between_two_saves(session: Session, clip: Path, folder: Path, model: STMA) -> None:
    session.draw(0, object_mask())
    run(session, model, until=20)
    (own,) = folder.iterdir()
    record = json.loads((own / RECORD).read_text())
    (own / RECORD).write_text(json.dumps(record | {"end": 9}))
    (own / "masks" / "00005.png").unlink()
    (own / "states" / "4.state").write_bytes(b"")
    again = Session(own)
    assert again.end == 5
    run(again, model)
    check(again, expected(clip, model, {0: object_mask()}))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"source": "x.mp4"}'])
def test_a_damaged_record(session: Session, damage: bytes) -> None:
    (session.folder / RECORD).write_bytes(damage)
    with pytest.raises(InputError, match=r"video\.json: not the record of a video"):
        Session(session.folder)


def test_a_video_that_is_gone(clip: Path, folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.mp4"
    moved.write_bytes(clip.read_bytes())
    own = Session.create(moved, folder).folder
    moved.unlink()
    with pytest.raises(InputError, match=r"moved\.mp4: no such file"):
        Session(own)


def test_other_weights_start_over(session: Session, clip: Path, model: STMA) -> None:
    """A state of other weights is of no use, and no problem."""
    session.draw(0, object_mask())
    run(session, model, until=20)
    again = Session(session.folder)
    other = perturbed(build_model(TINY), seed=1).eval()
    assert run(again, other)[0] == 0
    check(again, expected(clip, other, {0: object_mask()}))


def test_the_same_mask_is_no_correction(session: Session, model: STMA) -> None:
    assert not session.draw(4, NOTHING)
    session.draw(0, object_mask())
    run(session, model)
    assert not session.draw(9, session.mask(9))
    assert session.end == FRAMES
    assert session.given_frames == [0]


def test_an_erased_object_is_absent_there(session: Session, clip: Path, model: STMA) -> None:
    session.draw(0, object_mask())
    run(session, model)
    number = next(n for n in range(5, FRAMES) if session.mask(n).any())
    session.draw(number, NOTHING)
    run(session, model)
    assert not session.mask(number).any()
    check(session, expected(clip, model, {0: object_mask()}, {number: {1}}))
    session.draw(number, object_mask())
    run(session, model)
    assert np.array_equal(session.mask(number), object_mask())


def test_a_drawing_that_is_erased_says_nothing(session: Session) -> None:
    """Not that the object is absent from that frame."""
    session.draw(0, object_mask())
    session.draw(3, object_mask())
    session.draw(3, NOTHING)
    assert session.given_frames == [0]


def test_undo(session: Session, model: STMA) -> None:
    assert session.undo() is None
    session.draw(0, object_mask())
    session.draw(4, object_mask(2))
    run(session, model)
    whole = [session.mask(number) for number in range(FRAMES)]
    session.draw(12, object_mask(3))
    assert (session.ids, session.end) == ([1, 2, 3], 12)
    assert session.undo() == 12
    assert (session.ids, session.end) == ([1, 2], FRAMES)  # nothing was segmented meanwhile
    check(session, dict(enumerate(whole)))
    assert session.redo() == 12
    assert (session.ids, session.end) == ([1, 2, 3], 12)
    assert np.array_equal(session.mask(12), object_mask(3))
    assert session.redo() is None


def test_undo_after_a_run(session: Session, clip: Path, model: STMA) -> None:
    """What was computed with the drawing is no longer right."""
    session.draw(0, object_mask())
    run(session, model)
    session.draw(12, object_mask(3))
    run(session, model, until=20)
    session.undo()
    assert session.end == 12
    run(session, model)
    check(session, expected(clip, model, {0: object_mask()}))


def test_undo_of_the_first_drawing(session: Session, model: STMA) -> None:
    session.draw(8, object_mask())
    session.draw(3, object_mask())
    run(session, model)
    session.undo()
    assert (session.first, session.begin, session.end) == (8, 8, 8)
    session.undo()
    assert session.given_frames == []
    with pytest.raises(InputError, match="nothing is drawn yet"):
        run(session, model)


def test_a_new_drawing_ends_redo(session: Session) -> None:
    session.draw(0, object_mask())
    session.undo()
    session.draw(1, object_mask())
    assert session.redo() is None
    assert session.given_frames == [1]


def test_drawing_ends_a_run(session: Session, model: STMA) -> None:
    session.draw(0, object_mask())
    running = session.run(model, config=CONFIG)
    for _ in range(10):
        next(running)
    session.draw(4, object_mask(top=12))
    assert list(running) == []
    assert session.end == 4


def test_two_runs_at_once(session: Session, model: STMA) -> None:
    session.draw(0, object_mask())
    running = session.run(model, config=CONFIG)
    next(running)
    with pytest.raises(InputError, match="being segmented already"):
        run(session, model)
    running.close()
    assert run(session, model)[-1] == FRAMES - 1


def test_an_object_is_removed(session: Session, clip: Path, model: STMA) -> None:
    both = np.maximum(object_mask(1), object_mask(2, top=30))
    session.draw(0, both)
    session.draw(8, object_mask(5, top=2))
    run(session, model)
    whole = [session.mask(number) for number in range(FRAMES)]
    session.remove(2)
    assert (session.ids, session.end) == ([1, 5], FRAMES)
    assert not any((session.mask(n) == 2).any() for n in range(FRAMES))
    with pytest.raises(InputError, match=r"object 2 is not in the video; objects: \[1, 5\]"):
        session.remove(2)
    session.undo()
    check(session, dict(enumerate(whole)))
    session.redo()
    session.draw(25, object_mask(1, top=20))
    run(session, model)
    assert not any((session.mask(n) == 2).any() for n in range(FRAMES))
    session.undo()
    session.undo()
    assert (session.ids, session.end) == ([1, 2, 5], 0)
    run(session, model)
    check(session, dict(enumerate(whole)))


def test_a_removed_id_comes_back_as_a_new_object(session: Session, model: STMA) -> None:
    """As by an import: its old pixels stay away."""
    session.draw(0, np.maximum(object_mask(1), object_mask(2, top=30)))
    run(session, model)
    session.remove(2)
    session.draw(20, object_mask(2, top=2))
    assert session.ids == [1, 2]
    assert not any((session.mask(n) == 2).any() for n in range(20))
    assert session.add_object() == 3


def test_removing_the_last_object_starts_over(session: Session, model: STMA) -> None:
    session.draw(0, object_mask())
    run(session, model)
    session.remove(1)
    assert not session.mask(0).any()
    with pytest.raises(InputError, match="nothing is drawn yet"):
        run(session, model)


def test_objects(session: Session) -> None:
    assert [session.add_object(), session.add_object()] == [1, 2]
    session.rename(2, "  a ball ")
    session.remove(1)
    assert session.describe()["objects"] == [{"id": 2, "name": "a ball"}]
    assert session.add_object() == 3
    with pytest.raises(InputError, match="object 1 is not in the video"):
        session.rename(1, "x")
    session.draw(0, object_mask(255))
    with pytest.raises(InputError, match="255 objects"):
        session.add_object()


@pytest.mark.parametrize("number", [-1, FRAMES])
def test_frames_that_are_not_there(session: Session, number: int) -> None:
    for call in (session.frame, session.mask, lambda n: session.draw(n, object_mask())):
        with pytest.raises(InputError, match=f"no frame {number}; its last is 29"):
            call(number)


def test_a_mask_of_another_size(session: Session) -> None:
    with pytest.raises(InputError, match=r"\(40, 56\).*\(48, 64\)"):
        session.draw(0, box(1, 1, 5, 5))


def test_frames_in_any_order(session: Session, clip: Path) -> None:
    frames = [frame.image for frame in open_video(clip).frames()]
    for number in (0, 1, 2, 29, 3, 28, 15, 16, 20, 19, 29, 0):
        assert np.array_equal(session.frame(number), frames[number]), number


@pytest.mark.parametrize("found_by", ["looking", "running"])
def test_a_truncated_video(session: Session, model: STMA, found_by: str) -> None:
    session.num_frames = 40  # says a header that is wrong
    session.draw(3, object_mask())
    session.draw(35, object_mask())
    if found_by == "running":
        run(session, model)
    else:
        with pytest.raises(InputError, match="no frame 35; its last is 29"):
            session.frame(35)
    assert (session.num_frames, session.given_frames) == (30, [3])
    assert "ends after 30 frames; its header says 40" in session.notice
    assert "frame 35 is dropped" in session.notice


def test_import(session: Session, tmp_path: Path) -> None:
    session.draw(4, object_mask(1))
    save_mask(tmp_path / "first.png", object_mask(2, top=30))
    assert session.give(4, tmp_path / "first.png") == [4]
    assert np.array_equal(session.mask(4), np.maximum(object_mask(1), object_mask(2, top=30)))
    save_mask(tmp_path / "00007.png", object_mask(3))
    assert session.give(4, tmp_path / "00007.png") == [7]
    assert session.ids == [1, 2, 3]
    session.undo()
    assert (session.ids, session.given_frames) == ([1, 2], [4])
    save_mask(tmp_path / "small.png", box(1, 1, 5, 5))
    with pytest.raises(InputError, match=r"small\.png: 56 x 40"):
        session.give(4, tmp_path / "small.png")


def test_downloads(session: Session, model: STMA, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mask yet"):
        session.write("masks")
    session.draw(1, np.maximum(object_mask(1), object_mask(2, top=30)))
    session.draw(20, object_mask(1))
    with zipfile.ZipFile(session.write("masks")) as archive:
        assert archive.namelist() == ["00001.png", "00020.png"]  # drawn, not segmented
    with pytest.raises(InputError, match="draw one, and segment"):
        session.write("overlay")
    run(session, model, until=9)
    session.draw(1, object_mask(1), "again")
    session.undo()
    for kind in DOWNLOADS:
        counts: list[int] = []
        path = session.write(kind, on_frame=counts.append)
        assert path.name.startswith("clip_")
        assert counts[-1] == len(counts) >= 10
        if kind == "masks":
            with zipfile.ZipFile(path) as archive:
                names = [f"{n:05d}.png" for n in [*range(10), 20]]
                assert archive.namelist() == names
                archive.extractall(tmp_path / "masks")
        if kind == "overlay":
            with av.open(str(path)) as video:
                assert len(list(video.decode(video=0))) == 10
    for number in range(10):
        mask, _ = read_mask(tmp_path / "masks" / f"{number:05d}.png")
        assert np.array_equal(mask, session.mask(number))


def test_a_download_of_one_object(session: Session, tmp_path: Path) -> None:
    session.draw(0, np.maximum(object_mask(1), object_mask(2, top=30)))
    with zipfile.ZipFile(session.write("masks", [2])) as archive:
        archive.extractall(tmp_path)
    assert np.array_equal(read_mask(tmp_path / "00000.png")[0], object_mask(2, top=30))


def test_deleting(session: Session, model: STMA, folder: Path, clip: Path) -> None:
    session.draw(0, object_mask())
    running = session.run(model, config=CONFIG)
    for _ in range(8):
        next(running)
    session.delete()
    assert list(running) == []
    assert list(folder.iterdir()) == []
    assert clip.exists()
    for call in (lambda: session.mask(0), lambda: session.write("masks"), session.add_object):
        with pytest.raises(InputError, match="this video was removed"):
            call()


def test_limits(clip: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clip.mp4: 30 frames, and the limit is 20; cut it"):
        Session.create(clip, folder, Limits(frames=20))
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(3_000_000)
    with pytest.raises(InputError, match=r"large.mp4: 3 MB, and the limit is 2 MB"):
        Session.create(large, folder, Limits(megabytes=2))
    assert list(folder.iterdir()) == []


def test_no_video(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    with pytest.raises(InputError, match="cannot be read as a video"):
        Session.create(text, folder)
    assert text.exists()
