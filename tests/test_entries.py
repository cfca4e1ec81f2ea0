"""train.py, eval.py and the scripts, run as a user would."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def script(monkeypatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with clips and the weights of a training of two steps."""
    folder = tmp_path_factory.mktemp("run")
    clips = run("scripts/make_clips.py", str(folder / "clips"), "--clips=2", "--frames=4")
    assert clips.returncode == 0, clips.stderr
    training = run(
        "train.py",
        "experiment=demo",
        f"output={folder}/run",
        "iterations=2",
        "max_minutes=null",
        "device=cpu",
        "data.height=64",
        "data.width=64",
    )
    assert training.returncode == 0, training.stderr
    return folder


@pytest.mark.slow
def test_from_nothing_to_scores(trained: Path) -> None:
    assert {"weights.safetensors", "config.yaml", "train.log", "tensorboard"} <= {
        path.name for path in (trained / "run").iterdir()
    }
    result = run(
        "eval.py",
        f"weights={trained}/run/weights.safetensors",
        f"root={trained}/clips",
        "split=val",
        f"output={trained}/eval",
        "device=cpu",
    )
    assert result.returncode == 0, result.stderr
    assert "J&F" in result.stdout
    assert "clip-001" in result.stdout
    assert len(list((trained / "eval" / "masks" / "clip-001").iterdir())) == 4
    assert (trained / "eval" / "videos" / "clip-000.mp4").is_file()


@pytest.mark.slow
def test_mistakes_end_with_one_line_and_status_1(trained: Path) -> None:
    for command, message in (
        (["train.py", "+optimizer.learning_rat=1"], "learning_rat"),
        (["train.py", "batch_size=0"], "error: configuration: batch_size is 0"),
        (["eval.py", "method=copy", f"root={trained}/none"], f"error: {trained}/none: no such"),
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


def test_counting(monkeypatch, capsys) -> None:
    script(monkeypatch, "count.py", "convvit_t", "--objects", "1", "3")
    lines = capsys.readouterr().out.splitlines()
    one, three = (line.split() for line in lines[-2:])
    assert one[::2][:2] == ["convvit_t", "1"]
    assert float(three[7]) > float(one[7])  # a frame with three objects costs more
    with pytest.raises(SystemExit, match="there are convvit_b, convvit_s, convvit_t, vit_b"):
        script(monkeypatch, "count.py", "convvit_x")


def test_clips_are_never_mixed_with_older_ones(monkeypatch, tmp_path) -> None:
    size = ["--height=32", "--width=32"]
    script(monkeypatch, "make_clips.py", str(tmp_path), "--clips=2", "--frames=4", *size)
    again = [str(tmp_path), "--clips=1", "--frames=2", "--seed=9", *size]
    with pytest.raises(SystemExit, match="JPEGImages exists"):
        script(monkeypatch, "make_clips.py", *again)
    script(monkeypatch, "make_clips.py", *again, "--overwrite")
    assert sorted(p.name for p in (tmp_path / "JPEGImages").rglob("*.jpg")) == [
        "00000.jpg",
        "00001.jpg",
    ]
    with pytest.raises(SystemExit, match="16 pixels"):
        script(monkeypatch, "make_clips.py", str(tmp_path / "x"), "--height=8")


def test_counted_parts_by_hand() -> None:
    """ConvViT-T's last stage at 32 x 32: 4 tokens and 8 of references."""
    module = runpy.run_path(str(ROOT / "scripts" / "count.py"))
    from stma.model.factory import ModelConfig

    config = ModelConfig(dims=[8, 8, 16], depths=[1, 1, 2], num_heads=2, decoder_widths=[8, 8])
    _, parts = module["count"](config, 32, 32, objects=1, memory_frames=3)
    dim, tokens, keys = 16, 4, 4 + 8
    block = 2 * tokens * (3 * dim * dim + dim * dim + 2 * 4 * dim * dim + 2 * keys * dim)
    assert parts["test stream"] == pytest.approx(2 * block / 1e9)
    assert parts["readout"] == pytest.approx(2 * tokens * 12 * (dim + dim) / 1e9)


def test_trying_a_model(monkeypatch, capsys) -> None:
    small = ["--size=64", "--frames=3", "--height=64", "--width=80", "--device=cpu"]
    script(monkeypatch, "try_model.py", "convvit_t", *small)
    out = capsys.readouterr().out
    assert "gradients finite" in out
    assert "inference: 64 x 80" in out


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
