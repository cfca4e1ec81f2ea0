"""Small models and clips that the tests share."""

import os

# Before torch is imported: the test suite is many small tensors, and more threads only hurt.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import struct
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from stma.data.config import DatasetConfig
from stma.data.dataset import ClipDataset, DataConfig
from stma.data.pictures import save_mask, save_picture
from stma.data.scene import SceneConfig
from stma.model.factory import ModelConfig, build_model
from stma.model.stma import STMA
from stma.model.weights import save_weights
from stma.runtime import device as device_module
from stma.structures import ClipBatch

# Equal on all machines: `precision=auto` is fp32 here, whatever the cores multiply.
device_module.cpu_multiplies_bf16 = lambda: False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read is not waited for."""
    monkeypatch.setattr("stma.data.dataset.PAUSES", ())


def pytest_collection_finish() -> None:
    """Modules stay: training collects garbage often, and need not look at them each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _forking() -> None:
    """Here, not above, since pytest captures what processes print only while tests run."""
    if "forking" in sys.modules:
        sys.modules["forking"].start_server()


TINY = ModelConfig(
    dims=[8, 12, 16],
    depths=[1, 1, 3],
    num_heads=2,
    value_widths=[8, 8, 16],
    value_depth=1,
    decoder_widths=[16, 8],
)


def perturbed(model: STMA, seed: int = 0) -> STMA:
    """A fresh model whose parameters of zero and one are perturbed, so that they hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def tiny_config() -> ModelConfig:
    return TINY


@pytest.fixture
def tiny_model() -> STMA:
    """In fp64: the recurrence over frames would amplify fp32's rounding."""
    torch.manual_seed(0)
    return perturbed(build_model(TINY)).eval().double()


def make_batch(
    *, seed: int = 0, batch: int = 1, num_frames: int = 4, size: int = 64, max_objects: int = 3
) -> ClipBatch:
    data = procedural_data(size, size, num_frames, max_objects=max_objects)
    clips = ClipDataset(data, batch, seed)
    return ClipBatch.collate([clips.sample(number) for number in range(batch)])


def procedural_data(height: int, width: int, num_frames: int, **scene) -> DataConfig:
    """Data of procedural clips alone."""
    block = DatasetConfig(kind="procedural", scene=SceneConfig(**scene))
    return DataConfig(
        sources={"procedural": block}, height=height, width=width, num_frames=num_frames
    )


def random_frame(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_clip(root: Path, name: str, masks: dict[int, np.ndarray], frames: int = 5) -> Path:
    """A clip in the DAVIS layout with frames of noise, and masks at some of them."""
    size = next(iter(masks.values())).shape
    images, annotations = (root / kind / name for kind in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(frames):
        save_picture(images / f"{number:05d}.png", random_frame(rng, *size))
    for number, mask in masks.items():
        save_mask(annotations / f"{number:05d}.png", mask)
    return root


def box(
    top: int, left: int, height: int, width: int, value: int = 1, size: tuple[int, int] = (40, 56)
) -> np.ndarray:
    """A mask with one rectangle."""
    mask = np.zeros(size, np.uint8)
    mask[top : top + height, left : left + width] = value
    return mask


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of a tiny network."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_weights(path, perturbed(build_model(TINY)), TINY, {})
    return path


def gradient(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture that shows its number, and which way is up: bright at the left, red at the top."""
    picture = np.full((height, width, 3), 10 * number + 20, np.uint8)
    picture[:, : width // 4] = 255
    picture[: height // 4, :] = (255, 0, 0)
    return picture


def number_of(image: np.ndarray) -> int:
    """The number that a picture of :func:`gradient` shows."""
    height, width = image.shape[:2]
    return round((image[height // 2 :, width // 2 :].mean() - 20) / 10)


def write_clip_file(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    sound: bool = False,
    **options: str,
) -> Path:
    """Encode a clip of 25 frames a second; options are of the container."""
    gop = {"g": "5", "crf": "10"} if codec.startswith("libx26") else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25, options=gop)
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        audio = container.add_stream("aac", rate=8000) if sound else None
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 100)
            container.mux(stream.encode(frame))
            if audio is not None:
                samples = np.sin(np.arange(320) * 0.3, dtype=np.float32)[None]
                tone = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                tone.sample_rate, tone.pts = 8000, 320 * number
                container.mux(audio.encode(tone))
        container.mux(stream.encode())
        if audio is not None:
            container.mux(audio.encode())
    return path


def turned(path: Path, a: int = 0, b: int = 1, c: int = -1, d: int = 0) -> Path:
    """Mark an mp4 file as to be shown turned: the axes to the right and down go to (a, b) and
    (c, d). By default rotated by 90 degrees clockwise."""
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in (a, b, c, d))
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
