"""train.py, eval.py and the scripts, run as a user would."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, box, gradient, write_clip, write_clip_file
from forking import end, run_program, start_program
from omegaconf import OmegaConf

from stma.data.images import read_image
from stma.data.pictures import save_mask
from stma.evaluation.benchmarks import BenchmarkConfig
from stma.evaluation.eval_config import EvalConfig
from stma.evaluation.evaluation import evaluate
from stma.model.factory import ModelConfig, build_backbone, build_model
from stma.model.weights import save_weights

ROOT = Path(__file__).parent.parent


def python(*command: str) -> subprocess.CompletedProcess:
    """As a user types it; :func:`run` does the same much sooner."""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def run(*command: str) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        return run_program(Path(folder), *command)


def script(monkeypatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with clips and the weights of a training of two steps."""
    folder = tmp_path_factory.mktemp("run")
    clips = run(
        "scripts/make_clips.py", str(folder / "clips"), "--clips=2", "--frames=4", "--workers=1"
    )
    assert clips.returncode == 0, clips.stderr
    training = run(
        "train.py",
        "experiment=demo",
        f"output={folder}/run",
        "stages.demo.iterations=2",
        "device=cpu",
        "stages.demo.data.height=64",
        "stages.demo.data.width=64",
    )
    assert training.returncode == 0, training.stderr
    return folder


@pytest.mark.parametrize("program", ["train", "eval"])
def test_help_explains_the_keys_on_one_screen(program: str) -> None:
    text = OmegaConf.load(ROOT / f"configs/{program}.yaml").hydra.help.template
    lines = text.strip().splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert len([line for line in lines if line.startswith("  ") and f" {program}.py" in line]) == 3
    keys = {"train": ("stage=", "weights=", "dry_run=")}.get(program, ("root=", "benchmark="))
    assert all(any(line.startswith(key) for line in lines) for key in keys)


@pytest.mark.slow
def test_the_wheel_segments_a_video_elsewhere(tmp_path) -> None:
    """Built from the tree's files, installed into an empty folder and run in another one."""
    tree, installed, work = (tmp_path / name for name in ("tree", "installed", "work"))
    tree.mkdir()
    work.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "stma", tree / "stma", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    local = ["--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *local, "--no-build-isolation", "-w", tmp_path, tree], check=True
    )
    (wheel,) = tmp_path.glob("stma-*.whl")
    subprocess.run([*pip, "install", *local, "--target", installed, wheel], check=True)

    write_clip_file(work / "clip.mp4", map(gradient, range(3)))
    save_mask(work / "first.png", box(8, 8, 24, 24, size=(48, 64)))
    command = [installed / "bin" / "stma", "segment", "clip.mp4", "--mask=first.png"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    subprocess.run([*command, "--device=cpu"], cwd=work, env=environment, check=True)
    assert len(list((work / "clip-segmented" / "masks").iterdir())) == 3
    where = "import stma; print(stma.__file__, stma.load_model('small').training)"
    code = [sys.executable, "-c", where]
    told = subprocess.run(code, cwd=work, env=environment, capture_output=True, text=True)
    assert told.stdout == f"{installed / 'stma' / '__init__.py'} False\n", told.stderr


@pytest.mark.slow
def test_from_nothing_to_scores(trained: Path) -> None:
    assert {"weights.safetensors", "config.yaml", "train.log", "run.json", "demo"} <= {
        path.name for path in (trained / "run").iterdir()
    }
    result = python(
        "eval.py",
        f"weights={trained}/run/weights.safetensors",
        f"root={trained}/clips",
        "split=val",
        f"output={trained}/eval",
        "device=cpu",
        "videos=true",
    )
    assert result.returncode == 0, result.stderr
    assert "J&F" in result.stdout
    assert "FPS (8 frames" in result.stdout
    assert "clip-001" in result.stdout
    assert len(list((trained / "eval" / "masks" / "clip-001").iterdir())) == 4
    assert (trained / "eval" / "videos" / "clip-000.mp4").is_file()


@pytest.mark.slow
def test_mistakes_end_with_one_line_and_status_1(trained: Path) -> None:
    for command, message in (
        (["train.py", "+stages.procedural.optimizer.learning_rat=1"], "learning_rat"),
        (["train.py", "accumulate=0"], "error: configuration: accumulate is 0"),
        (["eval.py", "method=copy", f"root={trained}/none"], f"error: {trained}/none: no such"),
        (["eval.py", "benchmark=davis"], "error: benchmark=davis: no benchmark davis; there are"),
        (["train.py", "experiment=demo", "weights=none"], "error: none: no such weights file"),
    ):
        result = run(*command, f"output={trained}/mistake")
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not (trained / "mistake").exists()
    result = run("train.py", "experiment=demo", f"output={trained}/run/config.yaml/below")
    assert result.returncode == 1
    assert "error: output: " in result.stderr


@pytest.mark.slow
def test_evaluating_says_what_failed_by_its_status(trained: Path, tmp_path) -> None:
    shutil.copytree(trained / "clips", tmp_path / "clips")
    broken = next((tmp_path / "clips/JPEGImages/clip-000").iterdir())
    broken.write_bytes(b"")
    result = run("eval.py", "method=copy", f"root={tmp_path}/clips", f"output={tmp_path}/out")
    assert result.returncode == 1
    assert f"- clip-000: {broken}: cannot be read" in result.stdout
    assert "| clip-001 |" in result.stdout
    assert "Traceback" not in result.stderr


def test_checking_an_archive(monkeypatch, capsys, tmp_path) -> None:
    for name in ("a", "b"):
        write_clip(tmp_path / "MOSE/valid", name, {0: box(10, 10, 12, 12)})
    benchmark = ["mose_val", f"datasets={tmp_path}"]
    rules = BenchmarkConfig(name="mose_val", archive="")
    settings = EvalConfig(f"{tmp_path}/MOSE/valid", f"{tmp_path}/out", method="copy", report=False)
    archive = evaluate(replace(settings, benchmark=rules)).archive
    script(monkeypatch, "check_archive.py", str(archive), *benchmark)
    assert "fine, 10 masks of 2 clips" in capsys.readouterr().out
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("notes.txt", "")
    with pytest.raises(SystemExit, match="1 problems"):
        script(monkeypatch, "check_archive.py", str(archive), *benchmark)
    assert "notes.txt: not a mask that is asked for" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no benchmark mose; there are davis2016_val"):
        script(monkeypatch, "check_archive.py", str(archive), "mose")


def test_scoring_masks_of_any_method(monkeypatch, capsys, tmp_path) -> None:
    for folder, width in (("truth", 20), ("results", 10)):
        write_clip(tmp_path / folder, "a", dict.fromkeys(range(4), box(8, 8, 16, width)), frames=4)
    truth, results = (str(tmp_path / f / "Annotations") for f in ("truth", "results"))
    script(monkeypatch, "score.py", truth, results)
    assert "| a    | " in (printed := capsys.readouterr().out)
    assert "| 50.0 |" in printed
    shutil.rmtree(Path(results) / "a")
    with pytest.raises(SystemExit, match="no results for a"):
        script(monkeypatch, "score.py", truth, results)
    with pytest.raises(SystemExit, match="holds no clips, so there is nothing to score"):
        script(monkeypatch, "score.py", results, results)


def rows_of(printed: str) -> list[dict[str, str]]:
    """A table that is printed in Markdown."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def finished_run(folder: Path, model: ModelConfig, **settings: object) -> None:
    """What train.py leaves, as far as the table reads it."""
    folder.mkdir(parents=True)
    stages = settings.setdefault("stages", {"demo": {"iterations": 3}})
    (folder / "config.yaml").write_text(json.dumps({"stages": stages}))
    (folder / "run.json").touch()
    provenance = {"stage": list(stages)[-1], "config": settings}
    torch.manual_seed(settings.get("seed", 0))
    save_weights(folder / "weights.safetensors", build_model(model), model, provenance)


@pytest.fixture
def runs(tmp_path) -> Path:
    """An empty folder for runs, with a clip to evaluate on beside it."""
    write_clip(tmp_path / "clips", "a", dict.fromkeys(range(4), box(8, 8, 16, 16)), frames=4)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def table_of(monkeypatch, capsys, runs: Path, *more: str) -> tuple[list[dict[str, str]], str]:
    root = f"root={runs.parent}/clips"
    script(monkeypatch, "ablation_table.py", str(runs), root, "device=cpu", *more)
    printed = capsys.readouterr().out
    return rows_of(printed), printed


def test_a_table_of_ablations(monkeypatch, capsys, runs) -> None:
    """Two variants, the full one with two seeds, and what is left out."""
    for name, variant, seed in (("a", "full", 0), ("deeper/b", "full", 1), ("c", "joint", 0)):
        finished_run(runs / name, replace(TINY, variant=variant), seed=seed, output=name)
    finished_run(runs / "d", TINY, seed=2)
    (runs / "d" / "weights.safetensors").unlink()
    finished_run(runs / "e", TINY, seed=3)
    (runs / "e" / "weights.safetensors").write_bytes(b"half")
    finished_run(runs / "f", TINY, seed=4, stages={"demo": {}})
    (runs / "f" / "config.yaml").write_text("stages: {demo: {}, debug: {}}")
    (full, joint), printed = table_of(monkeypatch, capsys, runs)
    assert f"left out: {runs}/d (not finished)" in printed
    assert f"left out: {runs}/e/weights.safetensors: not a complete" in printed
    assert f"left out: {runs}/f (not finished: its weights are from stage demo)" in printed
    assert (full["variant"], full["runs"], joint["runs"]) == ("full", "2", "1")
    assert "±" in full["J&F"]
    assert "±" not in joint["J&F"]
    assert (full["J&F, Table 1"], full["FPS, Table 1"]) == ("88.9", "10.7")
    assert (joint["J&F, Table 1"], joint["FPS, Table 1"]) == ("87.8", "9.6")
    assert (full["from"], full["J&F, Table 2"], joint["J&F, Table 2"]) == ("scratch", "83.6", "")
    assert "settings" not in full
    assert (runs / "table.csv").is_file()

    # Again, by other rules, and with other weights: nothing stands in the way.
    masks = (runs / "a" / "table").rglob("*.png")
    times = {path: path.stat().st_mtime_ns for path in masks}
    again, _ = table_of(monkeypatch, capsys, runs)
    assert [row["J&F"] for row in again] == [full["J&F"], joint["J&F"]]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    table_of(monkeypatch, capsys, runs, "segmenter.memory_interval=2")
    finished_run(runs / "g", TINY, seed=9)
    (runs / "g" / "weights.safetensors").replace(runs / "a" / "weights.safetensors")
    table_of(monkeypatch, capsys, runs)
    assert len(list((runs / "a" / "table").iterdir())) == 3  # evaluations


def test_runs_that_differ_in_more_than_the_seed_are_rows_of_their_own(
    monkeypatch, capsys, runs
) -> None:
    """Backbones, pretrained weights (by what is in the file) and any other setting, but not where
    the data lie, nor how a path is spelled."""
    vit = replace(TINY, backbone="vit", depths=[0, 0, 2], class_token=True)
    state = build_backbone(vit).state_dict()
    state = {name: tensor for name, tensor in state.items() if "to_stride" not in name}
    for name in ("mae", "other"):
        torch.save(state, runs / f"{name}.pth")
    stages = {"demo": {"data": {"root": "/here"}}}
    moved = {"demo": {"data": {"root": "/there"}}}
    finished_run(runs / "plain", TINY, ema=0.0, stages=stages)
    finished_run(runs / "moved", TINY, ema=0.0, stages=moved, seed=1)
    finished_run(runs / "average", TINY, ema=0.9, stages=stages)
    finished_run(runs / "longer", TINY, ema=0.0, stages=moved | {"debug": {"batch_size": 7}})
    finished_run(runs / "vit", vit, pretrained=str(runs / "mae.pth"), stages=stages)
    spelled = f"{runs}/../runs/mae.pth"
    finished_run(runs / "spelled", vit, pretrained=spelled, stages=stages, seed=1)
    finished_run(runs / "vit2", vit, pretrained=str(runs / "other.pth"), stages=stages)
    both = {"a": {"repeats": 1}, "b": {"repeats": 1}}
    swapped = {"b": {"repeats": 1}, "a": {"repeats": 1}}
    finished_run(runs / "two", TINY, stages={"demo": {"data": {"sources": both}}}, ema=0.0)
    finished_run(
        runs / "swapped", TINY, stages={"demo": {"data": {"sources": swapped}}}, ema=0.0, seed=1
    )
    rows, _ = table_of(monkeypatch, capsys, runs)
    found = {(row["backbone"], row["from"], row["settings"], row["runs"]) for row in rows}
    sources = "stages.demo.data.sources"
    assert found == {
        ("convvit 16", "scratch", f"ema=0.0 stages=demo {sources}=none", "2"),
        ("convvit 16", "scratch", f"ema=0.9 stages=demo {sources}=none", "1"),
        ("convvit 16", "scratch", f"ema=0.0 stages=debug+demo {sources}=none", "1"),
        ("convvit 16", "scratch", f"ema=0.0 stages=demo {sources}=a+b", "2"),
        ("vit 16", "MAE", f"pretrained={runs}/mae.pth", "2"),
        ("vit 16", "MAE", f"pretrained={runs}/other.pth", "1"),
    }
    assert {row["J&F, Table 2"] for row in rows if row["backbone"] == "vit 16"} == {"88.2"}


def test_a_table_that_cannot_be_made_says_why(monkeypatch, capsys, runs) -> None:
    def refused(message: str, *more: str, folder: Path = runs) -> None:
        with pytest.raises(SystemExit) as error:
            table_of(monkeypatch, capsys, folder, *more)
        assert message in f"{error.value} {capsys.readouterr().err}"

    refused(f"{runs}/nowhere: no finished run", folder=runs / "nowhere")
    refused(f"{runs}: no finished run")
    finished_run(runs / "a", TINY, seed=1)
    finished_run(runs / "copy", TINY, seed=1)
    refused("two runs with the same settings and the same seed, 1")
    shutil.rmtree(runs / "copy")
    refused("there are davis2016_val", "benchmark=nope")
    refused("nothing=1", "nothing=1")
    refused("split: settings of eval.py are KEY=VALUE", "split")
    refused("weights=x: the table itself sets it", "weights=x")
    refused("--ignore wieghts: no run has such a setting", "--ignore=wieghts")
    refused("benchmark=null", "benchmark=null")
    for path in (runs.parent / "clips" / "Annotations" / "a").glob("*[1-9].png"):
        path.unlink()
    refused("no clip has all the masks")


def test_runs_of_one_row_may_start_from_files_of_their_own(monkeypatch, capsys, runs) -> None:
    for seed in (0, 1):
        weights = f"pre-{seed}/weights.safetensors"
        finished_run(runs / str(seed), TINY, seed=seed, weights=weights)
    finished_run(runs / "evaluation", TINY, seed=2)
    (runs / "evaluation" / "config.yaml").write_text("a: 1")
    rows, _ = table_of(monkeypatch, capsys, runs)
    assert [row["from"] for row in rows] == 2 * ["weights.safetensors"]
    (row,), _ = table_of(monkeypatch, capsys, runs, "--ignore", "weights")
    assert (row["from"], row["runs"]) == ("several files", "2")
    assert "J&F, Table 2" not in row


def test_counting(monkeypatch, capsys) -> None:
    variants = ("full", "no_spatial_memory", "joint")
    script(monkeypatch, "count.py", "convvit_t", "--objects=1", "--variants", *variants)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    frame, recomputed = 8, 10  # columns
    assert all(float(line[recomputed]) >= float(line[frame]) for line in lines)
    full, no_spatial_memory, joint = (float(line[frame]) for line in lines)
    assert no_spatial_memory < full < joint
    with pytest.raises(SystemExit, match="no model convvit_x; there are convvit_b"):
        script(monkeypatch, "count.py", "convvit_x")


def test_clips_are_never_mixed_with_older_ones(monkeypatch, tmp_path) -> None:
    size = ["--height=32", "--width=32", "--workers=1"]
    script(monkeypatch, "make_clips.py", str(tmp_path), "--clips=2", "--frames=4", *size)
    again = [str(tmp_path), "--clips=1", "--frames=2", "--seed=9", *size]
    with pytest.raises(SystemExit, match="JPEGImages exists"):
        script(monkeypatch, "make_clips.py", *again)
    script(monkeypatch, "make_clips.py", *again, "--overwrite")
    assert sorted(p.name for p in (tmp_path / "JPEGImages").rglob("*.jpg")) == [
        "00000.jpg",
        "00001.jpg",
    ]
    with pytest.raises(SystemExit, match="height is 8; give 16 or more"):
        script(monkeypatch, "make_clips.py", str(tmp_path / "x"), "--height=8")


@pytest.mark.slow
def test_probing_the_streams(trained: Path, monkeypatch, capsys) -> None:
    weights = str(trained / "run" / "weights.safetensors")
    script(monkeypatch, "probe_streams.py", weights, str(trained / "clips"), "--device=cpu")
    out = capsys.readouterr().out
    assert "references removed" in out
    assert "mean cosine" in out
    (trained / "clips" / "Annotations" / "clip-001" / "00002.png").unlink()
    with pytest.raises(SystemExit, match=r"error: .*clip-001"):
        script(monkeypatch, "probe_streams.py", weights, str(trained / "clips"))


@pytest.fixture
def clips(monkeypatch, tmp_path, capsys) -> Path:
    """Two clips on disk, written by the script."""
    root = tmp_path / "clips"
    small = ["--clips=2", "--frames=6", "--height=64", "--width=80", "scene.max_objects=2"]
    script(monkeypatch, "make_clips.py", str(root), *small, "--workers=1")
    capsys.readouterr()
    return root


def test_written_clips_are_a_function_of_the_seed(monkeypatch, clips: Path, tmp_path) -> None:
    small = ["--clips=2", "--frames=6", "--height=64", "--width=80", "scene.max_objects=2"]
    script(monkeypatch, "make_clips.py", str(tmp_path / "again"), *small, "--workers=1")
    script(monkeypatch, "make_clips.py", str(tmp_path / "other"), *small, "--seed=2", "--workers=1")
    frame = Path("JPEGImages/clip-001/00003.jpg")
    assert (clips / frame).read_bytes() == (tmp_path / "again" / frame).read_bytes()
    assert (clips / frame).read_bytes() != (tmp_path / "other" / frame).read_bytes()
    with pytest.raises(SystemExit, match="max_object"):
        script(monkeypatch, "make_clips.py", str(tmp_path / "x"), "scene.max_object=2")


def test_checking_a_root(monkeypatch, clips: Path, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as done:
        script(monkeypatch, "check_data.py", str(clips))
    assert done.value.code == 0
    assert "2 clips or images" in capsys.readouterr().out
    broken = clips / "JPEGImages" / "clip-000" / "00002.jpg"
    broken.write_bytes(b"")
    with pytest.raises(SystemExit) as done:
        script(monkeypatch, "check_data.py", str(clips), "--workers=1")
    assert done.value.code == 1
    assert f"error: {broken}: cannot be read" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script(monkeypatch, "check_data.py", str(clips), "--dataset=davis2017", "split=val")
    assert "60 were published" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nowhere: no such folder"):
        script(monkeypatch, "check_data.py", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("dataset", ["folder", "procedural"])
def test_showing_clips(monkeypatch, clips: Path, tmp_path, capsys, dataset: str) -> None:
    overrides = ["data.height=48", "data.width=64", "data.num_frames=3"]
    if dataset == "folder":
        overrides.append(f"root={clips}")
    sheet = tmp_path / "sheet.png"
    script(monkeypatch, "show_clips.py", dataset, *overrides, "--clips=2", f"--output={sheet}")
    assert read_image(sheet).shape[0] == 2 * (22 + 160 + 2)


@pytest.mark.slow
def test_training_on_clips_of_ones_own_stops_at_a_fault(clips: Path, tmp_path) -> None:
    data = "stages.folder.data"
    command = [
        "train.py", "model=convvit_t", "stage=folder", f"output={tmp_path}/run", "device=cpu",
        "num_workers=0", "stages.folder.iterations=2", "stages.folder.batch_size=2",
        f"{data}.sources.mine.root={clips}", f"{data}.height=32", f"{data}.width=32",
    ]  # fmt: skip
    result = run(*command)
    assert result.returncode == 0, result.stderr
    assert "an epoch is 2 clips: mine 2" in result.stdout
    for path in (clips / "Annotations" / "clip-001").iterdir():
        path.write_bytes(b"")
    result = run(*command, "resume=false")
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert "cannot be read as a mask" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_told_to_leave_the_program_ends_with_status_75_and_goes_on(tmp_path) -> None:
    command = ["train.py", "experiment=debug", f"output={tmp_path}", "device=cpu", "resume=true"]
    command += ["save_every=1000", "stages.debug.data.height=32", "stages.debug.iterations=100000"]
    process = start_program(*command)
    deadline, log = time.monotonic() + 300, tmp_path / "train.log"
    while time.monotonic() < deadline and not (log.is_file() and "iteration 0" in log.read_text()):
        time.sleep(0.1)
    process.terminate()
    assert end(process, 300) == 75
    assert len(list((tmp_path / "debug" / "checkpoints").glob("*.pt"))) == 1
    assert "asked to stop: saved after iteration" in log.read_text()


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_with_the_runs_that_are_left(tmp_path) -> None:
    """Stopped after the first of two variants; then the first is not trained again."""
    command = ["train.py", "-m", "experiment=debug", "resume=true", "device=cpu"]
    command += [
        f"output={tmp_path}/runs/${{model.variant}}",
        f"hydra.sweep.dir={tmp_path}/multirun",
    ]
    command += ["model.variant=full,joint", "stages.debug.iterations=2", "log_every=1"]
    command += ["stages.debug.data.height=32", "stages.debug.data.width=32"]
    first, second = (tmp_path / "runs" / name / "weights.safetensors" for name in ("full", "joint"))
    process = start_program(*command)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not first.is_file():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert first.is_file()
    assert not second.is_file()
    before = first.stat().st_mtime_ns
    assert run(*command).returncode == 0
    assert first.stat().st_mtime_ns == before
    assert second.is_file()
