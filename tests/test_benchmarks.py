import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import box, random_frame, write_clip

from stma.compose import benchmark_names, load_config
from stma.data.pictures import save_mask, save_picture
from stma.errors import InputError
from stma.evaluation.benchmarks import (
    BenchmarkConfig,
    EvalClip,
    FrameRange,
    list_clips,
    only_new_objects,
)
from stma.evaluation.eval_config import EvalConfig, parse_eval_config

CONFIGS = Path(__file__).parent.parent / "configs"
BOX = box(10, 10, 12, 12)


def one(rules: BenchmarkConfig, root: Path) -> EvalClip:
    listing = list_clips(rules, root)
    assert not listing.faults
    (clip,) = listing.clips
    return clip


BENCHMARKS = sorted(set(benchmark_names(CONFIGS)) - {"folder"})


@cache
def benchmark(name: str, *overrides: str) -> EvalConfig:
    chosen = [f"benchmark={name}", "method=copy", "datasets=/data", *overrides]
    return parse_eval_config(load_config(CONFIGS, "eval", chosen))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_composes_and_goes_by_its_files_name(name: str) -> None:
    config = benchmark(name)
    assert config.benchmark.name == name
    assert config.root.startswith("/data/")
    assert config.output == f"results/{name}/copy"
    assert config.segmenter.memory_interval == (3 if name.startswith("davis") else 5)


def test_archives_go_where_the_servers_want_them() -> None:
    roots = {name: benchmark(name).benchmark.archive for name in BENCHMARKS}
    without = {"davis2016_val", "davis2017_val", "lvos_val", "lvos_v2_val"}
    assert {name for name, root in roots.items() if root is None} == without
    assert roots["davis2017_test_dev"] == roots["mose_val"] == ""
    assert roots["youtubevos2019_val"] == roots["lvos_test"] == "Annotations"


def test_a_method_sees_an_object_where_it_first_appears_and_never_again() -> None:
    mask = np.array([[0, 1, 2], [3, 3, 0]], np.uint8)
    assert only_new_objects(mask, []).tolist() == mask.tolist()
    assert only_new_objects(mask, [1, 3]).tolist() == [[0, 0, 2], [0, 0, 0]]
    assert only_new_objects(mask, [1, 2, 3]) is None


def test_davis_gives_objects_in_the_first_mask_alone(tmp_path) -> None:
    """Its truth has no others; whatever later masks show is not for the method."""
    late = BOX + box(30, 30, 5, 5, value=2)
    write_clip(tmp_path, "a", {i: BOX if i < 2 else late for i in range(5)})
    davis = one(BenchmarkConfig(objects="first_mask"), tmp_path)
    anywhere = one(BenchmarkConfig(), tmp_path)
    assert davis.read_given("00000")[0].any()
    assert davis.read_given("00002")[0] is None
    assert anywhere.read_given("00002")[0].any()
    assert davis.given_ids() == [1]
    assert anywhere.given_ids() == [1, 2]


def test_void_is_no_object_and_binary_is_one(tmp_path) -> None:
    mask = BOX + box(30, 30, 5, 5, value=255)
    write_clip(tmp_path, "a", dict.fromkeys(range(5), mask))
    assert one(BenchmarkConfig(), tmp_path).given_ids() == [1, 255]
    assert one(BenchmarkConfig(void=255), tmp_path).given_ids() == [1]
    binary = one(BenchmarkConfig(mask_values="binary"), tmp_path)
    assert binary.read_mask("00000")[0].max() == 1
    assert binary.read_mask("00000")[0].sum() == 144 + 25


def meta(path: Path, objects: dict) -> None:
    path.write_text(json.dumps({"videos": {"a": {"objects": objects}}}))


def test_frames_of_the_metadata_are_wanted_and_none_after_is_segmented(tmp_path) -> None:
    """As YouTube-VOS has it: all frames to segment, some to write."""
    write_clip(tmp_path, "a", {0: BOX, 2: box(1, 1, 5, 5, value=4)}, frames=7)
    objects = {"1": {"frames": ["00000", "00002"]}, "4": {"frames": ["00002", "00004"]}}
    meta(tmp_path / "meta.json", objects)
    clip = one(BenchmarkConfig(meta="meta.json"), tmp_path)
    assert clip.output_stems == ["00000", "00002", "00004"]
    assert [path.stem for path in clip.frames] == [f"{i:05d}" for i in range(5)]
    assert clip.given_ids() == [1, 4]
    objects["4"]["frames"].append("00009")
    meta(tmp_path / "meta.json", objects)
    with pytest.raises(InputError, match="1 frames listed in the metadata are missing: 00009"):
        list_clips(BenchmarkConfig(meta="meta.json"), tmp_path)


def test_ranges_of_the_metadata(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    meta(
        tmp_path / "meta.json",
        {"1": {"frame_range": {"start": "0", "end": "3", "frame_nums": "4"}}},
    )
    clip = one(BenchmarkConfig(meta="meta.json"), tmp_path)
    assert clip.ranges == {1: FrameRange(0, 3, 4)}
    assert len(clip.output_stems) == 5
    for broken in ("{}", "[", '{"videos": {"a": {}}}', '{"videos": 3}'):
        (tmp_path / "meta.json").write_text(broken)
        with pytest.raises(InputError, match=r"meta\.json: not the metadata"):
            list_clips(BenchmarkConfig(meta="meta.json"), tmp_path)
    for broken in ({"1": {"frame_range": {"start": None}}}, {"x": {"frame_range": {}}}, {"1": 3}):
        meta(tmp_path / "meta.json", broken)
        with pytest.raises(InputError, match=r"meta\.json: a: objects are not described"):
            list_clips(BenchmarkConfig(meta="meta.json"), tmp_path)
    with pytest.raises(InputError, match=r"other\.json: no such file.*LVOS"):
        list_clips(BenchmarkConfig(meta="other.json"), tmp_path)


def test_a_faulty_clip_is_named_and_the_others_are_there(tmp_path) -> None:
    for name in ("gap", "good", "no_objects", "rgb", "size", "soft", "unlisted"):
        write_clip(tmp_path, name, {0: BOX})
    annotations = tmp_path / "Annotations"
    (tmp_path / "JPEGImages/gap/00002.png").unlink()
    save_mask(annotations / "no_objects/00000.png", 0 * BOX)
    save_picture(annotations / "rgb/00000.png", random_frame(np.random.default_rng(0), 40, 56))
    save_mask(annotations / "size/00000.png", BOX[:20])
    soft = np.clip(np.add.outer(np.arange(40), np.arange(56)) * 2, 0, 255).astype(np.uint8)
    save_mask(annotations / "soft/00000.png", soft)
    (annotations / "unlisted/00000.png").unlink()
    (annotations / "unlisted").rmdir()
    listing = list_clips(BenchmarkConfig(frame_step=1), tmp_path)
    faults = listing.faults
    assert [clip.name for clip in listing.clips] == ["good"]
    assert "1 clips without masks left out: unlisted" in listing.notes[0]
    for name, message in (
        ("gap", r"JPEGImages/gap/00002.png: the frame is missing"),
        ("no_objects", "no_objects/00000.png: holds no object"),
        ("rgb", "rgb/00000.png: the mask is RGB"),
        ("size", "size/00000.png: 56 x 20 pixels, its frame 56 x 40"),
        ("soft", "antialiased"),
    ):
        assert message in faults[name]
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/val.txt").write_text("good\nunlisted\nnowhere\n")
    listing = list_clips(BenchmarkConfig(), tmp_path, "val")
    assert [clip.name for clip in listing.clips] == ["good"]
    assert "no such folder" in listing.faults["unlisted"]
    assert "no such folder" in listing.faults["nowhere"]
    with pytest.raises(InputError, match=r"no clip can be used; .*00000\.png: holds no object"):
        list_clips(BenchmarkConfig(), tmp_path, None, ["no_objects"])
    with pytest.raises(InputError, match="zebra: not in folder at"):
        list_clips(BenchmarkConfig(), tmp_path, None, ["zebra"])


def test_a_wrong_number_of_clips_is_told(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    (note,) = list_clips(BenchmarkConfig(published=30), tmp_path).notes
    assert "1 clips or images, but 30 were published" in note


def test_a_missing_mask_of_a_benchmark_with_scores_is_a_fault(tmp_path) -> None:
    """Otherwise the mean of the other clips would stand beside the paper's."""
    for name in ("a", "b", "c"):
        write_clip(tmp_path, name, dict.fromkeys(range(5), BOX))
    (tmp_path / "Annotations/b/00003.png").unlink()
    for number in range(2, 5):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / kind / f"c/{number:05d}.png").unlink()
    listing = list_clips(BenchmarkConfig(scored=True), tmp_path)
    assert [clip.name for clip in listing.clips] == ["a"]
    assert "1 frames have no mask, the first of them" in listing.faults["b"]
    assert "b/00003.png" in listing.faults["b"]
    assert "c: fewer than 3 frames" in listing.faults["c"]
    assert {clip.name for clip in list_clips(BenchmarkConfig(), tmp_path).clips} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("frames", "counted"),
    [
        (FrameRange(1, 21, 5), [6, 11, 16]),  # `end` is the last of 1, 6, 11, 16, 21
        (FrameRange(1, 26, 5), [6, 11, 16]),  # `end` is the one after
        (FrameRange(6, 11, 2), []),
    ],
)
def test_the_frames_that_lvos_scores(frames: FrameRange, counted: list[int]) -> None:
    """By its evaluator's loop, here written out."""
    assert frames.counted(5) == counted
    scored = [-1] * (frames.frame_nums - 2)
    place = 0
    for number in range(frames.start, frames.end, 5):
        if place == 0 or place == frames.frame_nums - 1:
            place += 1
            continue
        scored[place - 1] = number
        place += 1
    assert scored == counted


def test_ranges_that_do_not_agree_with_their_number_of_frames() -> None:
    with pytest.raises(InputError, match=r"frames 1 to 21 in steps of 5, and frame_nums 9"):
        FrameRange(1, 21, 9).counted(5)


def test_a_changed_file_changes_the_state(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    before = one(BenchmarkConfig(), tmp_path).files_state()
    assert one(BenchmarkConfig(), tmp_path).files_state() == before
    save_mask(tmp_path / "Annotations/a/00000.png", box(0, 0, 30, 30))
    assert one(BenchmarkConfig(), tmp_path).files_state() != before


def test_rules_that_make_no_sense() -> None:
    for settings, message in (
        ({"mask_values": "rgb"}, "mask_values is 'rgb'"),
        ({"objects": "some"}, "objects is 'some'"),
        ({"void": 0}, "void is 0"),
        ({"frame_step": 0}, "frame_step is 0"),
    ):
        with pytest.raises(InputError, match=message):
            BenchmarkConfig(**settings)
