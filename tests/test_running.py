import threading

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
from stma.inference.baselines import CopyFirstMask

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
    fails(r"a/00002\.png: the frame is 30 x 30, those before it are 56 x 40")
    frame.write_bytes(whole)
    later = tmp_path / "Annotations/a/00003.png"
    Image.fromarray(np.arange(40 * 56 * 3, dtype=np.uint8).reshape(40, 56, 3)).save(later)
    fails(r"Annotations/a/00003\.png: the mask is RGB")
    Image.fromarray(box(1, 1, 4, 4, 2)[:20]).save(later)
    fails(r"a/00003\.png with .*Annotations/a/00003\.png: the mask is 56 x 20")
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


def test_reading_and_writing_are_in_threads_of_their_own(tmp_path, monkeypatch) -> None:
    write_clip(tmp_path, "a", {0: BOX}, frames=12)
    threads: dict[str, set[int]] = {"read": set(), "write": set(), "step": set()}

    def noted(name, function):
        def call(*arguments, **settings):
            threads[name].add(threading.get_ident())
            return function(*arguments, **settings)

        return call

    monkeypatch.setattr(running, "read_image", noted("read", read_image))
    monkeypatch.setattr(running, "save_mask", noted("write", running.save_mask))
    method = CopyFirstMask()
    monkeypatch.setattr(method, "step", noted("step", method.step))
    run_clip(clip_of(tmp_path), method, tmp_path / "out", CPU)
    assert len(masks(tmp_path / "out")) == 12
    assert threads["step"] == {threading.get_ident()}
    assert not threads["read"] & threads["write"]
    assert not threads["step"] & (threads["read"] | threads["write"])


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
