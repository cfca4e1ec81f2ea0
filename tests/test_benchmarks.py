import json
import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import box, write_clip

from stma.compose import benchmark_names, load_config
from stma.config import parse_config
from stma.errors import InputError
from stma.inference.benchmarks import BenchmarkConfig, EvalClip, list_clips, only_new_objects
from stma.inference.config import EvalConfig
from stma.pictures import save_mask, save_picture

CONFIGS = Path(__file__).parent.parent / "configs"
BOX = box(10, 10, 12, 12)


def one(rules: BenchmarkConfig, root: Path) -> EvalClip:
    (clip,), faults = list_clips(rules, root)
    assert not faults
    return clip


def benchmark(name: str, *overrides: str) -> EvalConfig:
    chosen = [f"benchmark={name}", "method=copy", "datasets=/data", *overrides]
    return parse_config(EvalConfig, load_config(CONFIGS, "eval", chosen))


@pytest.mark.parametrize("name", set(benchmark_names(CONFIGS)) - {"folder"})
def test_every_benchmark_composes_and_goes_by_its_files_name(name: str) -> None:
    config = benchmark(name)
    assert config.benchmark.name == name
    assert config.root.startswith("/data/")
    assert config.output == f"results/{name}/copy"
    assert config.segmenter.memory_interval == (3 if name.startswith("davis") else 5)
    assert benchmark(name, "root=/mine", "segmenter.memory_interval=7").root == "/mine"


def test_archives_go_where_the_servers_want_them() -> None:
    roots = {
        name: benchmark(name).benchmark.archive
        for name in benchmark_names(CONFIGS)
        if name != "folder"
    }
    assert {name for name, root in roots.items() if root is None} == {
        "davis2016_val",
        "davis2017_val",
        "lvos_val",
    }
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
    with pytest.raises(InputError, match="1 frames are missing that the metadata lists: 00009"):
        list_clips(BenchmarkConfig(meta="meta.json"), tmp_path)


def test_ranges_of_the_metadata(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    meta(tmp_path / "meta.json", {"1": {"frame_range": {"start": "0", "end": "3"}}})
    clip = one(BenchmarkConfig(meta="meta.json"), tmp_path)
    assert clip.ranges == {1: (0, 3)}
    assert len(clip.output_stems) == 5
    for broken in ("{}", "[", '{"videos": {"a": {}}}', '{"videos": 3}'):
        (tmp_path / "meta.json").write_text(broken)
        with pytest.raises(InputError, match=r"meta\.json: not the metadata"):
            list_clips(BenchmarkConfig(meta="meta.json"), tmp_path)
    with pytest.raises(InputError, match=r"other\.json: no such file.*LVOS"):
        list_clips(BenchmarkConfig(meta="other.json"), tmp_path)


def test_a_faulty_clip_is_named_and_the_others_are_there(tmp_path, caplog) -> None:
    for name in ("gap", "good", "no_objects", "rgb", "size", "soft", "unlisted"):
        write_clip(tmp_path, name, {0: BOX})
    annotations = tmp_path / "Annotations"
    (tmp_path / "JPEGImages/gap/00002.png").unlink()
    save_mask(annotations / "no_objects/00000.png", 0 * BOX)
    save_picture(annotations / "rgb/00000.png", np.dstack([BOX] * 3))
    save_mask(annotations / "size/00000.png", BOX[:20])
    soft = np.clip(np.add.outer(np.arange(40), np.arange(56)) * 2, 0, 255).astype(np.uint8)
    save_mask(annotations / "soft/00000.png", soft)
    (annotations / "unlisted/00000.png").unlink()
    (annotations / "unlisted").rmdir()
    with caplog.at_level(logging.WARNING):
        clips, faults = list_clips(BenchmarkConfig(frame_step=1), tmp_path)
    assert [clip.name for clip in clips] == ["good"]
    assert "left out, for want of masks: unlisted" in caplog.text
    for name, message in (
        ("gap", r"JPEGImages/gap/00002.png: the frame is missing"),
        ("no_objects", "no_objects/00000.png: holds no object"),
        ("rgb", "rgb/00000.png: the mask is RGB"),
        ("size", "size/00000.png: 20 x 56 pixels, its frame 40 x 56"),
        ("soft", "antialiased"),
    ):
        assert message in faults[name]
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/val.txt").write_text("good\nunlisted\nnowhere\n")
    clips, faults = list_clips(BenchmarkConfig(), tmp_path, "val")
    assert [clip.name for clip in clips] == ["good"]
    assert "no such folder" in faults["unlisted"]
    assert "no such folder" in faults["nowhere"]
    with pytest.raises(InputError, match=r"no clip can be used; .*00000\.png: holds no object"):
        list_clips(BenchmarkConfig(), tmp_path, None, ["no_objects"])
    with pytest.raises(InputError, match="zebra: not in folder at"):
        list_clips(BenchmarkConfig(), tmp_path, None, ["zebra"])


def test_a_wrong_number_of_clips_is_told(tmp_path, caplog) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    with caplog.at_level(logging.WARNING):
        list_clips(BenchmarkConfig(published="mose:valid"), tmp_path)
    assert "1 clips or images, but mose:valid was published with 311" in caplog.text


def test_a_changed_file_changes_the_fingerprint(tmp_path) -> None:
    write_clip(tmp_path, "a", {0: BOX})
    before = one(BenchmarkConfig(), tmp_path).fingerprint()
    assert one(BenchmarkConfig(), tmp_path).fingerprint() == before
    save_mask(tmp_path / "Annotations/a/00000.png", box(0, 0, 30, 30))
    assert one(BenchmarkConfig(), tmp_path).fingerprint() != before


def test_rules_that_make_no_sense() -> None:
    for settings, message in (
        ({"mask_values": "rgb"}, "mask_values is 'rgb'"),
        ({"objects": "some"}, "objects is 'some'"),
        ({"void": 0}, "void is 0"),
        ({"frame_step": 0}, "frame_step is 0"),
    ):
        with pytest.raises(InputError, match=message):
            BenchmarkConfig(**settings)
