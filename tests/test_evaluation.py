import csv
import html
import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from conftest import box, write_clip
from forking import end, start_program
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stma.compose import load_config
from stma.data.pictures import save_clip, save_mask
from stma.data.procedural import procedural_clip
from stma.data.scene import SceneConfig
from stma.errors import InputError
from stma.evaluation import evaluation
from stma.evaluation.archive import check_archive
from stma.evaluation.benchmarks import BenchmarkConfig, list_clips
from stma.evaluation.eval_config import EvalConfig, parse_eval_config
from stma.evaluation.evaluation import evaluate, own_share
from stma.inference.augmentation import AugmentConfig
from stma.inference.segmenter import SegmenterConfig
from stma.runtime.distributed import Processes
from stma.runtime.resume import TRAINING, Record

BOX = box(10, 10, 12, 12)
CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clips: one with all masks, one whose second object enters late."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    scene = SceneConfig(min_objects=2, max_objects=2)
    frames, masks, _ = procedural_clip(scene, (40, 56), np.arange(5.0), rng)
    save_clip(root, "full", frames, masks, ".png")
    write_clip(root, "late", {1: box(10, 10, 12, 12, 17), 3: box(3, 4, 6, 8, 5)})
    return root


def config(root: Path, output: Path, **settings) -> EvalConfig:
    chosen = {"report": False, "device": "cpu", "method": "copy"} | settings
    return EvalConfig(root=str(root), output=str(output), **chosen)


def masks_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def test_masks_scores_and_pictures_of_every_clip(root, weights, tmp_path) -> None:
    output = tmp_path / "out"
    drawn = {"videos": True, "report": True}
    result = evaluate(config(root, output, method="stma", weights=str(weights), **drawn))
    assert result.ok
    assert {score.clip for score in result.scores} == {"full"}
    assert result.speed.frames == 9  # none before the late clip's first mask
    for name in ("full", "late"):
        written = sorted((output / "masks" / name).iterdir())
        assert [path.name for path in written] == [f"{t:05d}.png" for t in range(5)]
        with Image.open(written[0]) as image:
            assert (image.mode, image.size) == ("P", (56, 40))
        assert (output / "videos" / f"{name}.mp4").stat().st_size > 0
    assert (output / "report.html").is_file()
    summary = json.loads((output / "results.json").read_text())
    assert summary["mean"]["jf"] == result.mean().jf
    assert summary["versions"]["torch"]
    assert "full" in (output / "results.md").read_text()
    with (output / "scores.csv").open(newline="") as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [
            ["full", "1"],
            ["full", "2"],
            ["mean", ""],
        ]


def test_copying_scores_what_the_first_mask_is_worth(root, tmp_path) -> None:
    result = evaluate(config(root, tmp_path / "out", clips=["full"]))
    masks = [np.asarray(Image.open(root / f"Annotations/full/{t:05d}.png")) for t in range(5)]
    for score in result.scores:
        i = score.object_id
        ious = [
            ((masks[0] == i) & (masks[t] == i)).sum() / ((masks[0] == i) | (masks[t] == i)).sum()
            for t in (1, 2, 3)
        ]
        assert score.j.mean == pytest.approx(100 * np.mean(ious))


def test_a_second_run_goes_on_with_the_clips_that_are_left(root, tmp_path, monkeypatch) -> None:
    ran: list[str] = []
    run = evaluation.run_clip

    def noted(clip, *arguments):
        ran.append(clip.name)
        if clip.name == "late" and len(ran) < 3:
            raise KeyboardInterrupt
        return run(clip, *arguments)

    monkeypatch.setattr(evaluation, "run_clip", noted)
    settings = config(root, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    first = evaluate(settings)
    again = evaluate(settings)
    assert ran == ["full", "late", "late"]
    assert first.runs == again.runs
    assert len(again.runs) == 2
    save_mask(root / "Annotations/late/00003.png", box(20, 20, 6, 8, 5))  # now other input
    (tmp_path / "out/masks/full/00002.png").unlink()  # now half a result
    evaluate(settings)
    assert ran[3:] == ["full", "late"]


def test_scores_are_never_those_of_an_earlier_run(root, tmp_path) -> None:
    settings = config(root, tmp_path / "out", clips=["full"])
    evaluate(settings)
    for path in (tmp_path / "out").glob("*scores*"):
        path.write_text("stale")
    (root / "Annotations/full/00004.png").unlink()  # no longer to be scored
    result = evaluate(settings)
    assert result.scores == []
    assert not list((tmp_path / "out").glob("*scores*"))
    assert json.loads((tmp_path / "out/results.json").read_text())["mean"] is None


def test_the_result_of_another_run_is_refused_or_removed(root, weights, tmp_path) -> None:
    output = tmp_path / "out"
    evaluate(config(root, output))
    kept = masks_below(output)
    with pytest.raises(
        InputError,
        match=r"holds another run's result \(method: copy there, flow here\).*overwrite=true",
    ):
        evaluate(config(root, output, method="flow"))
    other = config(root, output, benchmark=BenchmarkConfig(void=255))
    with pytest.raises(InputError, match=r"benchmark\.void: None there, 255 here"):
        evaluate(other)
    assert masks_below(output) == kept
    stma = {"method": "stma", "weights": str(weights)}
    evaluate(config(root, output, overwrite=True, **stma))
    evaluate(config(root, output, **stma))
    changed = SegmenterConfig(memory_interval=2)
    with pytest.raises(InputError, match=r"segmenter\.memory_interval: 5 there, 2 here"):
        evaluate(config(root, output, segmenter=changed, **stma))
    (output / "run.json").unlink()
    with pytest.raises(InputError, match=r"no run\.json that says what"):
        evaluate(config(root, output))
    with pytest.raises(InputError, match=r"output: .*cannot be written to"):
        evaluate(config(root, output / "results.md"))


def test_a_clip_that_fails_is_named_and_the_others_are_done(root, tmp_path) -> None:
    write_clip(root, "broken", {0: BOX})
    (root / "JPEGImages/broken/00002.png").write_bytes(b"")
    write_clip(root, "empty", {0: 0 * BOX})
    result = evaluate(config(root, tmp_path / "out"))
    assert not result.ok
    assert set(result.faults) == {"broken", "empty"}
    assert "broken/00002.png: cannot be read" in result.faults["broken"]
    assert "2 clips failed" in result.text()
    assert [score.clip for score in result.scores] == ["full", "full"]
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == {"full", "late"}
    assert "cannot be read" in (tmp_path / "out/eval.log").read_text()
    shutil.copy(root / "JPEGImages/broken/00001.png", root / "JPEGImages/broken/00002.png")
    save_mask(root / "Annotations/empty/00000.png", BOX)
    assert evaluate(config(root, tmp_path / "out")).ok


def test_an_archive_is_made_of_all_clips_and_checked(root, tmp_path) -> None:
    rules = BenchmarkConfig(name="mine", archive="Annotations")
    result = evaluate(config(root, tmp_path / "out", benchmark=rules))
    assert result.archive == tmp_path / "out" / "mine.zip"
    assert result.ok
    assert check_archive(result.archive, list_clips(rules, root).clips) == []
    first = result.archive.read_bytes()
    assert evaluate(config(root, tmp_path / "new", benchmark=rules)).archive.read_bytes() == first
    some = config(root, tmp_path / "out", benchmark=rules, clips=["full"])
    assert evaluate(some).archive is None  # the server wants every clip
    assert not (tmp_path / "out" / "mine.zip").exists()
    (root / "JPEGImages/late/00004.png").write_bytes(b"")
    assert evaluate(config(root, tmp_path / "out", benchmark=rules)).archive is None


def test_measuring_speed_writes_nothing(root, weights, tmp_path) -> None:
    augment = AugmentConfig(flip=True)
    settings = config(root, tmp_path / "out", method="stma", weights=str(weights), augment=augment)
    settings.fps_only = True
    result = evaluate(settings)
    assert result.speed.frames == 9
    assert result.speed.median_ms > 0
    assert result.method == f"ours ({tmp_path.name}/weights, 2 views)"
    assert not (tmp_path / "out").exists()
    assert "only the speed was measured\n\n" in result.text()
    assert "FPS" in result.text()


def test_overwriting_removes_what_is_ours_alone(root, tmp_path) -> None:
    output = tmp_path / "out"
    (output / "videos").mkdir(parents=True)
    (output / "videos" / "holiday.mp4").touch()
    with pytest.raises(InputError, match=r"holds videos, but no run\.json"):
        evaluate(config(root, output, overwrite=True))
    assert (output / "videos" / "holiday.mp4").exists()
    for folder in (root, root.parent):
        with pytest.raises(InputError, match="the data"):
            evaluate(config(root, folder, overwrite=True))
    assert (root / "JPEGImages").is_dir()


def test_a_clip_whose_files_change_meanwhile_is_a_fault(root, tmp_path, monkeypatch) -> None:
    run = evaluation.run_clip

    def touched(clip, *arguments):
        outcome = run(clip, *arguments)
        if clip.name == "full":
            os.utime(clip.frames[0], (1, 1))
        return outcome

    monkeypatch.setattr(evaluation, "run_clip", touched)
    rules = BenchmarkConfig(name="mine", archive="")
    result = evaluate(config(root, tmp_path / "out", benchmark=rules))
    assert "its files have changed since" in result.faults["full"]
    assert result.archive is None


def test_an_unscored_object_of_a_scored_clip_is_told(root, tmp_path) -> None:
    for number in range(5):
        mask = BOX if number == 4 else 0 * BOX
        save_mask(root / f"Annotations/full/{number:05d}.png", mask)
    result = evaluate(config(root, tmp_path / "out", clips=["full"]))
    assert "no object to score" in result.faults["full"]


def test_the_log_says_what_was_evaluated(root, tmp_path) -> None:
    write_clip(root, "empty", {0: 0 * BOX})
    rules = BenchmarkConfig(name="mine", frames="every 5th frame", published=30)
    evaluate(config(root, tmp_path / "out", benchmark=rules))
    text = (tmp_path / "out" / "eval.log").read_text()
    assert "mine, every 5th frame, 2 clips: copying the first mask" in text
    assert "3 clips or images, but 30 were published" in text
    assert "empty: " in text
    assert json.loads((tmp_path / "out/results.json").read_text())["frames"] == "every 5th frame"


def test_damaged_records_are_no_records(root, tmp_path) -> None:
    settings = config(root, tmp_path / "out")
    first = evaluate(settings)
    for name, content in (("full", ""), ("late", '{"kind": "a clip", "identity": {}}')):
        (tmp_path / f"out/clips/{name}.json").write_text(content)
    (tmp_path / "out/masks/full/.DS_Store").touch()
    assert len(evaluate(settings).runs) == len(first.runs) == 2
    (tmp_path / "out/run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        evaluate(settings)
    assert evaluate(config(root, tmp_path / "out", overwrite=True)).ok


@pytest.mark.parametrize("name", ["full.json", "mine.zip", "results.json", "report.html"])
def test_a_full_disk_costs_what_could_not_be_written_and_no_more(
    root, tmp_path, monkeypatch, name
) -> None:
    """Wherever it fills up: a clip's record, the archive, the results, the page."""
    rename = Path.replace

    def full(path: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", full)
    rules = BenchmarkConfig(name="mine", archive="")
    settings = config(root, tmp_path / "out", benchmark=rules, report=True)
    result = evaluate(settings)
    assert not result.ok
    assert "No space left on device" in result.text()
    if name != "full.json":
        assert result.mean() is not None
        assert len(result.runs) == 2
    monkeypatch.undo()
    again = evaluate(settings)
    assert again.ok
    assert again.archive is not None
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_many_processes_give_the_masks_of_one(root, weights, tmp_path) -> None:
    write_clip(root, "broken", {0: BOX})
    (root / "JPEGImages/broken/00002.png").write_bytes(b"")
    settings = {"method": "stma", "weights": str(weights)}
    one = evaluate(config(root, tmp_path / "one", **settings))
    assert one.faults.keys() == {"broken"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["eval.py", f"root={root}", f"output={tmp_path}/two", f"weights={weights}"]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [  # as torchrun does, but at once
        start_program(
            *command,
            "device=cpu",
            "segmenter.precision=fp32",  # as in this process, see conftest.py
            environment=shared | {"RANK": rank, "LOCAL_RANK": rank},
            printed=tmp_path / rank,
        )
        for rank in ("0", "1")
    ]
    assert [end(process, 300) for process in started] == [1, 0]  # of the clip that is broken
    printed = "".join((tmp_path / f"{rank}.out").read_text() for rank in ("0", "1"))
    assert printed.count("1 clip failed") == 1
    assert masks_below(tmp_path / "two/masks") == masks_below(tmp_path / "one/masks")
    assert "2 processes at once" in printed
    assert (tmp_path / "two/report.html").is_file()


def test_shares_are_whole_disjoint_and_even(tmp_path) -> None:
    for name, frames in (("a", 3), ("b", 9), ("c", 4), ("d", 5)):
        write_clip(tmp_path, name, {0: BOX}, frames=frames)
    clips = list_clips(BenchmarkConfig(), tmp_path).clips
    assert own_share(clips, Processes()) == clips
    shares = [own_share(clips, Processes(rank, 2)) for rank in (0, 1)]
    assert [[clip.name for clip in share] for share in shares] == [["b", "a"], ["d", "c"]]
    # 9 + 3 against 5 + 4 frames: each clip went to who had the least.


def test_a_fault_of_the_program_is_logged_whole_and_costs_no_other_clip(
    root, tmp_path, monkeypatch
) -> None:
    def fails(clip, *arguments):
        if clip.name == "full":
            raise RuntimeError("out of memory")
        return run(clip, *arguments)

    run = evaluation.run_clip
    monkeypatch.setattr(evaluation, "run_clip", fails)
    result = evaluate(config(root, tmp_path / "out"))
    assert result.faults == {"full": "RuntimeError: out of memory"}
    assert [run.clip for run in result.runs] == ["late"]
    assert "Traceback" in (tmp_path / "out" / "eval.log").read_text()


def test_settings_that_make_no_sense(root, tmp_path, monkeypatch) -> None:
    for settings, message in (
        ({"method": "xmem"}, r"method is 'xmem'.*copy"),
        ({"threads": 0}, "threads is 0"),
        ({"augment": AugmentConfig(flip=True)}, "augment: the method copy has no views"),
        ({"method": "stma", "weights": "w", "augment": AugmentConfig([9.0])}, "scale is 9"),
        ({"threads": 1_000_000}, "threads is 1000000; give"),
    ):
        with pytest.raises(InputError, match=message):
            config(root, tmp_path, **settings)
    with pytest.raises(InputError, match=r"none\.safetensors: no such weights file"):
        evaluate(config(root, tmp_path / "out", method="stma", weights="none.safetensors"))
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    root, weights, tmp_path
) -> None:
    tensors = load_file(weights)
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    tensors.pop("decoder.head.weight")
    other = tmp_path / "other.safetensors"
    save_file(tensors, other, metadata)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    for path, message in ((other, r"missing: decoder\.head\.weight"), (cut, "not a complete")):
        with pytest.raises(InputError, match=message):
            evaluate(config(root, tmp_path / "out", method="stma", weights=str(path)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["data", "data/JPEGImages", "data/inside", "link/inside", "."])
def test_an_output_among_the_clips_is_refused(root, tmp_path, where: str) -> None:
    (tmp_path / "link").symlink_to(root)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"output: .* the data"):
        evaluate(config(root, tmp_path / where))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_output_of_a_training_is_not_taken(root, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    Record(TRAINING, {}).write(tmp_path / "out" / "run.json")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="out holds a training"):
            evaluate(config(root, tmp_path / "out", overwrite=overwrite))


@pytest.mark.parametrize("key", ["output", "root", "compare"])
def test_an_empty_path_is_not_the_current_folder(root, tmp_path, key: str) -> None:
    with pytest.raises(InputError, match=f"{key} is empty"):
        EvalConfig(**({"root": str(root), "output": str(tmp_path)} | {key: ""}))


NAMES = [
    "two words",
    "ünï-日本",
    "new\nline",
    "quo'te\"s",
    "a=b",
    "[br]",
    "%s{}%d",
    "-dash",
    "<b>",
    "pi|pe",
    "n" * 200,
    "..hidden",
]


def test_clips_of_any_name(tmp_path, capfd, caplog) -> None:
    """Masks, pages and videos; hidden folders are left out."""
    for name in NAMES:
        write_clip(tmp_path / "data", name, dict.fromkeys(range(3), BOX), frames=3)
    output, seen = tmp_path / "out", sorted(set(NAMES) - {"..hidden"})
    drawn = {"videos": True, "report": True}
    result = evaluate(config(tmp_path / "data", output, **drawn))
    assert result.ok
    for folder, suffix in (("masks", ""), ("videos", ".mp4")):
        assert sorted(p.name for p in (output / folder).iterdir()) == [f"{n}{suffix}" for n in seen]
    page = (output / "report.html").read_text()
    assert "<b>&lt;b&gt;</b>" in page
    assert "<b><b>" not in page
    for name in seen:
        assert (
            f'data-name="{html.escape(name).replace("&quot;", "&#34;")}"'.replace("&#x27;", "&#39;")
            in page
        )
    assert "\n| new\\nline  " in result.text()
    assert "new\nline" not in capfd.readouterr().err
    with (output / "scores.csv").open(newline="") as file:
        assert {row[0] for row in csv.reader(file)} == {*seen, "clip", "mean"}


def test_odd_folders_and_files_are_faults_of_their_clip_alone(root, tmp_path) -> None:
    """A name that is not UTF-8, a link to itself, and frames that no one would ever write."""
    odd = os.fsdecode(b"bad\xff")
    for name in (odd, "pipe"):
        write_clip(root, name, dict.fromkeys(range(3), BOX), frames=3)
    frame = root / "JPEGImages" / "pipe" / "00001.png"
    frame.unlink()
    os.mkfifo(frame)
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "loop").symlink_to(root / kind / "loop")
    output = tmp_path / "out"
    result = evaluate(config(root, output, report=True))
    assert set(result.faults) == {odd, "pipe", "loop"}
    assert "the name is not UTF-8" in result.faults[odd]
    assert "not a regular file" in result.faults["pipe"]
    assert "symbolic links" in result.faults["loop"]
    assert sorted(path.name for path in (output / "masks").iterdir()) == ["full", "late"]
    assert "bad\\udcff" in (output / "results.md").read_text(encoding="utf-8")
    assert (output / "report.html").is_file()


def test_an_antialiased_mask_is_told_what_works_here(tmp_path) -> None:
    grey = np.asarray(Image.fromarray(255 * box(8, 8, 20, 24)).resize((80, 60)))
    write_clip(tmp_path / "data", "grey", {0: grey})
    with pytest.raises(InputError, match=r"set benchmark\.mask_values=binary"):
        evaluate(config(tmp_path / "data", tmp_path / "out"))
    overrides = ["method=copy", f"root={tmp_path}/data", "benchmark.mask_values=binary"]
    composed = parse_eval_config(load_config(CONFIGS, "eval", overrides))
    rules = composed.benchmark
    assert evaluate(config(tmp_path / "data", tmp_path / "out", benchmark=rules)).ok
