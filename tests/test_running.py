import os
import threading
import time

import numpy as np
import pytest
import torch
from conftest import box, write_clip
from PIL import Image

from stma.data.images import read_image
from stma.errors import InputError
from stma.evaluation import running
from stma.evaluation.benchmarks import BenchmarkConfig, list_clips
from stma.evaluation.running import run_clip
from stma.inference.augmentation import AugmentConfig, AugmentedSegmenter
from stma.inference.baselines import CopyFirstMask
from stma.inference.segmenter import Segmenter, SegmenterConfig, VideoSegmenter
from stma.model.weights import load_model

CPU = torch.device("cpu")
BOX = box(10, 10, 12, 12)


def clip_of(root, rules=None, name="a"):
    return list_clips(rules or BenchmarkConfig(), root, names=[name]).clips[0]


def masks(folder) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def test_ids_sizes_and_entering_objects_are_kept(tmp_path) -> None:
    """The first mask comes late; 0 in a later one means that nothing is annotated there."""
    write_clip(tmp_path, "a", {1: box(10, 10, 12, 12, 17), 3: box(1, 1, 4, 4, 255)})
    run = run_clip(clip_of(tmp_path), CopyFirstMask(), tmp_path / "out" / "a", CPU)
    results = masks(tmp_path / "out" / "a")
    assert [np.unique(m).tolist() for m in results] == [[0], [0, 17], [0, 17], *[[0, 17, 255]] * 2]
    assert results[0].shape == (40, 56)
    assert run.device == "CPU"
    assert len(run.seconds) == 4  # before the first mask there is nothing to do
    assert run.peak_gigabytes > 0


def test_the_palette_of_the_first_mask_is_kept(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    image = Image.fromarray(BOX)
    image.putpalette([0, 0, 0, 9, 99, 199])
    image.save(tmp_path / "Annotations/a/00000.png")
    run_clip(clip_of(tmp_path), CopyFirstMask(), tmp_path / "out", CPU)
    with Image.open(tmp_path / "out/00004.png") as result:
        assert result.mode == "P"
        assert result.getpalette()[3:6] == [9, 99, 199]


def test_nothing_but_what_is_wanted_is_written(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    meta = '{"videos": {"a": {"objects": {"1": {"frames": ["00001", "00003"]}}}}}'
    (tmp_path / "meta.json").write_text(meta)
    frames = []
    clip = clip_of(tmp_path, BenchmarkConfig(meta="meta.json"))
    run_clip(clip, CopyFirstMask(), tmp_path / "out", CPU, lambda: frames.append(1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00001.png", "00003.png"]
    assert len(frames) == 4  # none after the last one wanted
    run_clip(clip, CopyFirstMask(), None, CPU)
    assert {path.name for path in tmp_path.iterdir()} == {
        "JPEGImages",
        "Annotations",
        "meta.json",
        "out",
    }


def test_a_faulty_file_is_named_and_leaves_nothing(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX, 3: box(1, 1, 4, 4, 2)})
    frame = tmp_path / "JPEGImages/a/00002.png"
    whole = frame.read_bytes()
    clip = clip_of(tmp_path)

    def fails(message: str) -> None:
        with pytest.raises(InputError, match=message):
            run_clip(clip, CopyFirstMask(), tmp_path / "out", CPU)
        assert {path.name for path in tmp_path.iterdir()} == {"JPEGImages", "Annotations"}

    frame.write_bytes(whole[: len(whole) // 2])
    fails(r"a/00002\.png: cannot be read as an image")
    Image.new("RGB", (30, 30)).save(frame)
    fails(r"a/00002\.png: the frame is 30 x 30, those before it are 40 x 56")
    frame.write_bytes(whole)
    later = tmp_path / "Annotations/a/00003.png"
    Image.new("RGB", (56, 40)).save(later)
    fails(r"Annotations/a/00003\.png: the mask is RGB")
    Image.fromarray(box(1, 1, 4, 4, 2)[:20]).save(later)
    fails(r"a/00003\.png with .*Annotations/a/00003\.png: the mask is 20 x 56")
    later.unlink()
    frame.unlink()
    fails(r"a/00002\.png: cannot be read")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    write_clip(tmp_path, "a", {0: BOX})

    def full(path, *arguments) -> None:
        if path.stem == "00002":
            raise OSError(28, "No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(running, "save_mask", full)
    with pytest.raises(InputError, match=r"out: the masks cannot be written .*No space left"):
        run_clip(clip_of(tmp_path), CopyFirstMask(), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"JPEGImages", "Annotations"}


def test_reading_the_method_and_writing_overlap(tmp_path, monkeypatch) -> None:
    """Each takes 30 ms a frame: one after another they would take three times as long."""
    write_clip(tmp_path, "a", {0: BOX}, frames=12)
    threads = set()

    def slowly(function):
        def slow(*arguments, **settings):
            threads.add(threading.get_ident())
            time.sleep(0.03)
            return function(*arguments, **settings)

        return slow

    monkeypatch.setattr(running, "read_image", slowly(read_image))
    monkeypatch.setattr(running, "save_mask", slowly(running.save_mask))
    method = CopyFirstMask()
    monkeypatch.setattr(method, "step", slowly(method.step))
    run = run_clip(clip_of(tmp_path), method, tmp_path / "out", CPU)
    assert len(threads) >= 3
    assert len(masks(tmp_path / "out")) == 12
    assert all(seconds >= 0.03 for seconds in run.seconds)


def test_masks_of_an_interrupted_run_are_not_taken_for_whole_ones(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    for leftover in (".out.partial", "out"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "00099.png").touch()
    run_clip(clip_of(tmp_path), CopyFirstMask(), tmp_path / "out", CPU)
    assert len(masks(tmp_path / "out")) == 5
    assert not (tmp_path / ".out.partial").exists()


def test_a_later_mask_without_objects_gives_none(tmp_path) -> None:
    """0 means "not annotated" there."""
    write_clip(tmp_path, "a", {0: BOX, 2: 0 * BOX, 3: box(1, 1, 4, 4, 2)})
    run_clip(clip_of(tmp_path), CopyFirstMask(), tmp_path / "out", CPU)
    assert np.unique(masks(tmp_path / "out")[4]).tolist() == [0, 1, 2]


def test_a_clip_whose_masks_are_all_empty(tmp_path) -> None:
    write_clip(tmp_path, "a", dict.fromkeys(range(5), 0 * BOX))
    with pytest.raises(InputError, match="no mask holds an object"):
        run_clip(clip_of(tmp_path), CopyFirstMask(), tmp_path / "out", CPU)


class Ended(BaseException):
    """As a signal ends a program: nothing is cleaned up for it."""


def ended_after(segmenter: VideoSegmenter, frames: int) -> VideoSegmenter:
    step, left = segmenter.step, iter(range(frames))

    def steps(*arguments, **more):
        if next(left, None) is None:
            raise Ended
        return step(*arguments, **more)

    segmenter.step = steps
    return segmenter


@pytest.fixture
def long_clip(tmp_path, monkeypatch):
    """Saved after every frame; a second object enters late."""
    monkeypatch.setattr(running, "SAVE_SECONDS", 0.0)
    write_clip(tmp_path, "a", {1: BOX, 5: box(1, 1, 6, 8, 3)}, frames=8)
    return clip_of(tmp_path)


@pytest.mark.parametrize(
    ("frames", "augment"),
    [(1, None), (4, None), (6, None), (6, AugmentConfig(scales=[1.0, 0.75], flip=True))],
)
def test_a_clip_that_was_ended_in_the_middle_goes_on_from_there(
    long_clip, tmp_path, weights, caplog, frames: int, augment: AugmentConfig | None
) -> None:
    model = load_model(weights)

    def segmenter() -> VideoSegmenter:
        config = SegmenterConfig(memory_interval=2)
        return AugmentedSegmenter(model, config, augment) if augment else Segmenter(model, config)

    whole = run_clip(long_clip, segmenter(), tmp_path / "whole", CPU)
    with pytest.raises(Ended):
        run_clip(long_clip, ended_after(segmenter(), frames), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()
    shown: list[int] = []
    with caplog.at_level("INFO"):
        run = run_clip(long_clip, segmenter(), tmp_path / "out", CPU, lambda: shown.append(1))
    assert f"a: resumes after frame {frames} of 8" in caplog.text
    assert len(run.seconds) == len(whole.seconds) == 7
    assert len(shown) == 8
    assert len(list((tmp_path / "out").iterdir())) == 8
    for one, other in zip(masks(tmp_path / "out"), masks(tmp_path / "whole"), strict=True):
        assert np.array_equal(one, other)
    assert not list(tmp_path.glob(".*partial"))


def test_what_is_left_of_other_files_or_settings_or_damaged_is_not_gone_on_with(
    long_clip, tmp_path, weights, caplog
) -> None:
    model, out, left = load_model(weights), tmp_path / "out", tmp_path / ".out.partial"

    def leave(segmenter: VideoSegmenter | None = None) -> None:
        with pytest.raises(Ended):
            run_clip(long_clip, ended_after(segmenter or Segmenter(model), 4), out, CPU)
        assert len(list(left.glob("state-*"))) == (2 if segmenter else 1)

    def starts_over(segmenter: VideoSegmenter | None = None) -> None:
        with caplog.at_level("INFO"):
            run_clip(clip_of(tmp_path), segmenter or Segmenter(model), out, CPU)
        assert "resumes" not in caplog.text

    def views(*scales: float) -> AugmentedSegmenter:
        return AugmentedSegmenter(model, SegmenterConfig(), AugmentConfig(scales=list(scales)))

    leave()
    starts_over(Segmenter(model, SegmenterConfig(memory_interval=1)))
    leave(views(1.0, 0.75))
    starts_over()  # one of the two views: the masks so far are means of both
    leave(views(1.0, 0.75))
    starts_over(views(1.0, 0.5))
    leave()
    os.utime(long_clip.frames[6], (1, 1))
    starts_over()
    leave()
    (left / "progress.json").write_text("{")
    starts_over()
    leave()
    next(left.glob("state-*")).write_bytes(b"half")
    starts_over()
