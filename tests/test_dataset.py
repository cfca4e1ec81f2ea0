import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import procedural_data
from test_sources import video

from stma.data import images
from stma.data.config import DatasetConfig
from stma.data.dataset import ClipDataset, DataConfig, clip_batches
from stma.data.pictures import save_clip
from stma.data.sampling import BatchNumbers
from stma.errors import InputError
from stma.structures import Clip


def equal(a: Clip, b: Clip) -> bool:
    return (
        a.name == b.name
        and np.array_equal(a.frames, b.frames)
        and np.array_equal(a.masks, b.masks)
        and np.array_equal(a.references, b.references)
    )


@pytest.fixture
def mixed(tmp_path: Path) -> DataConfig:
    """Three clips on disk, each twice in an epoch, and as many procedural ones."""
    for name in "abc":
        save_clip(tmp_path, name, *video(6), ".jpg")
    return DataConfig(
        sources={
            "disk": DatasetConfig(root=str(tmp_path), repeats=2),
            "made": DatasetConfig(kind="procedural", weight=0.5),
        },
        height=32,
        width=48,
        num_frames=3,
        max_gaps=[1, 2],
        max_gap_starts=[0.0, 0.5],
    )


def test_a_clip_is_a_function_of_seed_stage_epoch_and_index(mixed: DataConfig) -> None:
    clips, again = ClipDataset(mixed, 48, seed=7), ClipDataset(mixed, 48, seed=7)
    order = np.random.default_rng(0).permutation(16)
    assert all(equal(clips.sample(n), again.sample(n)) for n in order)
    other = ClipDataset(mixed, 48, seed=8)
    assert not any(equal(clips.sample(n), other.sample(n)) for n in range(16))
    stage = ClipDataset(mixed, 48, seed=7, stage="video")
    assert not any(equal(clips.sample(n), stage.sample(n)) for n in range(16))
    assert [clips.epochs[n] for n in range(48)] != [stage.epochs[n] for n in range(48)]
    assert clips.sample(0).frames.shape == (3, 32, 48, 3)
    draws = [clips.epochs[n] for n in range(clips.epochs.length)]
    assert sum(draw.source == 1 for draw in draws) == len(draws) / 2
    assert sum((draw.source, draw.item) == (0, 0) for draw in draws) == len(draws) / 6


def test_repeats_and_epochs_show_new_clips(mixed: DataConfig) -> None:
    clips = ClipDataset(mixed, 48, seed=0)
    drawn = [clips.sample(n) for n in range(48)]
    assert not any(equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("world_size", [1, 2])
def test_workers_processes_and_restarts_change_nothing(mixed: DataConfig, world_size: int) -> None:
    clips = ClipDataset(mixed, 24, seed=0)
    alone = list(clip_batches(clips, BatchNumbers(0, 6, 4), num_workers=0))
    start = 2
    shared = [
        list(clip_batches(clips, BatchNumbers(start, 6, 4, rank, world_size), num_workers=2))
        for rank in range(world_size)
    ]
    for number in range(6 - start):
        parts = [batches[number] for batches in shared]
        assert alone[start + number].names == [name for part in parts for name in part.names]
        frames = np.concatenate([part.frames.numpy() for part in parts])
        assert np.array_equal(alone[start + number].frames.numpy(), frames)


def test_the_curriculum_follows_the_stage(mixed: DataConfig) -> None:
    clips = ClipDataset(mixed, 120, seed=0)
    gaps: dict[bool, set[int]] = {False: set(), True: set()}
    for number in range(120):
        name = clips.sample(number).name
        if name.startswith("disk"):
            numbers = [int(n) for n in name[name.index("(") + 1 : -1].split(",")]
            gaps[number >= 60] |= {int(abs(gap)) for gap in np.diff(numbers)}
    assert gaps == {False: {1}, True: {1, 2}}


def test_a_limit_shows_the_first_samples_again_and_again(mixed: DataConfig) -> None:
    limited = ClipDataset(dataclasses.replace(mixed, limit=2), 48, seed=7)
    whole = ClipDataset(mixed, 48, seed=7)
    assert all(equal(limited.sample(n), whole.sample(n % 2)) for n in range(6))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_clip_with_a_faulty_file_is_left_out_and_counted(
    mixed: DataConfig, num_workers: int, tmp_path: Path, caplog
) -> None:
    whole = [clip.name for clip in map(ClipDataset(mixed, 240, seed=0).sample, range(240))]
    path = tmp_path / "JPEGImages" / "b" / "00003.jpg"
    path.write_bytes(b"")
    allowed = dataclasses.replace(mixed, max_bad_clips=1)
    clips, numbers = ClipDataset(allowed, 240, seed=0), BatchNumbers(0, 60, 4)
    batches = list(clip_batches(clips, numbers, num_workers))
    assert list(clips.left_out) == ["disk: b"]
    assert caplog.text.count(f"left out: disk: b: {path}") == 1
    # Whoever finds the fault, and when, the clips are the same, and all but those that meet it are
    # as they were.
    names = [name for batch in batches for name in batch.names]
    alone = ClipDataset(allowed, 240, seed=0)
    assert names == [alone.sample(number).name for number in range(240)]
    replaced = [name for name, other in zip(names, whole, strict=True) if name != other]
    assert 0 < len(replaced) == sum("b (" in name and "00003" in name for name in whole)
    assert {name.split(" (")[0] for name in replaced} == {"disk: c"}

    (tmp_path / "JPEGImages" / "c" / "00000.jpg").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"max_bad_clips is 1, and 2 clips .*disk: [bc], disk: [bc]"
    ):
        list(clip_batches(ClipDataset(allowed, 240, seed=0), numbers, num_workers))


def test_a_file_that_cannot_be_read_for_a_moment_is_read_again(
    mixed: DataConfig, monkeypatch
) -> None:
    clips = ClipDataset(mixed, 24, seed=0)
    expected = [clips.sample(number) for number in range(24)]
    failures, opened = [], images.open_image

    def failing(path: Path):
        failures.append(path)
        if len(failures) % 5 == 1:
            raise OSError(116, "Stale file handle")
        return opened(path)

    monkeypatch.setattr(images, "open_image", failing)
    clips.pauses = (0, 0, 0)
    assert all(equal(clips.sample(number), expected[number]) for number in range(24))
    assert failures


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_faulty_file_ends_loading_with_its_own_message(
    mixed: DataConfig, num_workers: int, tmp_path: Path
) -> None:
    path = tmp_path / "Annotations" / "b" / "00003.png"
    path.write_bytes(b"")
    clips = ClipDataset(mixed, 240, seed=0)
    with pytest.raises(InputError) as caught:
        list(clip_batches(clips, BatchNumbers(0, 60, 4), num_workers))
    assert str(caught.value).startswith(f"{path}: cannot be read as a mask")
    assert "Traceback" not in str(caught.value)


def test_what_an_epoch_holds_is_said(mixed: DataConfig, tmp_path: Path) -> None:
    save_clip(tmp_path, "short", *video(2), ".png")
    (tmp_path / "JPEGImages" / "a" / "list.txt").touch()
    lines = ClipDataset(mixed, 10, seed=0).describe().splitlines()
    assert lines[0] == "an epoch is 408 clips: disk 204 (of 3), made 204"
    assert "list.txt: a stray file" in lines[1]
    assert lines[2].startswith("disk: left out 1 of 4 clips")


def test_the_dataset_travels_to_spawned_workers(mixed: DataConfig) -> None:
    clips = ClipDataset(mixed, 10, seed=0)
    assert equal(pickle.loads(pickle.dumps(clips)).sample(3), clips.sample(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 1}, "num_frames is 1"),
        ({"num_references": 0}, "num_references is 0"),
        ({"max_objects": 0}, "max_objects is 0"),
        ({"height": 8}, "height is 8"),
        ({"max_gaps": [5]}, "max_gaps has 1 values and data.max_gap_starts 4"),
        ({"max_gaps": [5, 0, 1, 1]}, "max_gaps is"),
        ({"max_gap_starts": [0.0, 0.5, 0.4, 0.9]}, "max_gap_starts is"),
        ({"max_gap_starts": [0.1, 0.2, 0.4, 0.9]}, "max_gap_starts is"),
        ({"reverse": 2.0}, "reverse is 2"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_sources_that_cannot_be(mixed: DataConfig) -> None:
    with pytest.raises(InputError, match=r"data\.sources is empty"):
        ClipDataset(DataConfig(), 10, seed=0)
    with pytest.raises(InputError, match="max_radius"):
        ClipDataset(procedural_data(16, 16, 3, min_radius=0.01, max_radius=0.02), 10, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "video"}, "kind is 'video'; choose one of"),
        ({"mask_values": "grey"}, "mask_values is 'grey'"),
        ({"repeats": 0}, "repeats is 0"),
        ({"annotation_stride": 0}, "annotation_stride is 0"),
        ({"weight": 1.5}, "weight is 1.5; it is a share"),
        ({"weight": 0.5, "repeats": 2}, "weight and repeats are both given"),
        ({"clear_pixels": -1}, "clear_pixels is -1"),
        ({"kind": "images"}, "layouts is empty"),
    ],
)
def test_blocks_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DatasetConfig(**settings)
