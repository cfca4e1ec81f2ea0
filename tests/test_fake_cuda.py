"""Every path on fake CUDA tensors, which know their device and shape but hold no numbers: a tensor
left on the CPU is found without a card, and so is whatever would make the host wait for one."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_cuda
import numpy as np
import pytest
import torch
from conftest import TINY, random_frame
from fake_cuda import backward, can_do_without, put_on, without_numbers
from test_segmenter import blob_mask
from test_trainer import config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import stma
from stma.inference import segmenter as segmenter_module
from stma.inference.augmentation import AugmentConfig, AugmentedSegmenter
from stma.inference.segmenter import Segmenter, SegmenterConfig, segment_frame
from stma.inference.state import read_state
from stma.model.factory import ModelConfig, build_model
from stma.model.stma import STMA
from stma.model.streams import VARIANTS
from stma.training import learner as learner_module
from stma.training.dry_run import random_batch
from stma.training.learner import Learner
from stma.training.losses import LossConfig

CUDA = torch.device("cuda", 0)
PACKAGE = str(Path(stma.__file__).parent)
FAKE = fake_cuda.__file__  # takes part in every call


OPTIONS = dataclasses.replace(
    TINY,
    drop_path=0.5,
    enhanced_keys=True,
    reference_pooling=2,
    similarity="l2",
    train_top_k=4,
    train_kernel=0.2,
)

VIT = dataclasses.replace(TINY, backbone="vit", depths=[0, 0, 2], class_token=True)
MODELS = {variant: dataclasses.replace(TINY, variant=variant) for variant in VARIANTS} | {
    "vit": VIT,
    "stem": dataclasses.replace(VIT, depths=[1, 1, 2], conv_stem=True),
}


def on_card(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


class Waits(TorchDispatchMode):
    """Notes where the host would wait for the card: a number that is read, a copy that blocks, an
    index that lies on the CPU. What is read is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self._last_read: Tensor | None = None

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        name = function.overloadpacket.__name__
        if name in ("item", "is_nonzero", "_local_scalar_dense") and on_card(arguments[0]):
            base = arguments[0]._base
            if base is None or base is not self._last_read:  # of a list, all are read at once
                self._note()
            self._last_read = base
            return 0
        result = function(*arguments, **keywords)
        ends: tuple[object, ...] = ()
        if name in ("to", "_to_copy"):
            ends = (arguments[0], result)
        elif name == "copy_":
            ends = arguments[:2]
        elif name in ("index", "index_put", "index_put_"):
            ends = (arguments[0], *(x for x in arguments[1] if x is not None))
        if len({on_card(end) for end in ends}) == 2:
            given = dict(zip((x.name for x in function._schema.arguments), arguments, strict=False))
            if not (given | keywords).get("non_blocking"):
                self._note()
        return result

    def _note(self) -> None:
        """The function of the package that waits."""
        frame = sys._getframe()
        while not (path := frame.f_code.co_filename).startswith(PACKAGE) or path == FAKE:
            frame = frame.f_back
        self.places.append(frame.f_code.co_name)


@pytest.fixture
def waits(monkeypatch) -> Iterator[Waits]:
    monkeypatch.setattr(Tensor, "numpy", lambda self: np.zeros(self.shape, np.uint8))
    with without_numbers(CUDA), Waits() as waits:
        yield waits


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_whatever_waits_is_noted(waits: Waits, mode) -> None:
    card, host = torch.zeros(3, device=CUDA), torch.zeros(3)
    waiting = (
        lambda: card.sum().item(),
        lambda: bool(card[0] > 0),
        card.tolist,
        card.cpu,
        lambda: host.to(CUDA),
        lambda: torch.tensor([1.0, 2.0], device=CUDA),
        lambda: card.copy_(host),
        lambda: host.copy_(card),
        lambda: card[[0, 1]],
        lambda: card.index_put_((torch.tensor([0]),), card[:1]),
    )
    free = (
        lambda: host.to(CUDA, non_blocking=True),
        lambda: host.copy_(card, True),
        lambda: card[torch.zeros(1, dtype=torch.long, device=CUDA)],
        lambda: card.fill_(1.0),
        lambda: torch.full((), 2.0, device=CUDA),
    )
    waits._note = lambda: waits.places.append("here")  # not in the package
    for functions, expected in ((waiting, ["here"]), (free, [])):
        for number, function in enumerate(functions):
            waits.places.clear()
            with mode():
                function()
            assert set(waits.places) == set(expected), number


def lifted(config: ModelConfig) -> STMA:
    """A network whose tensors are on the fake card."""
    with _disable_current_modes(), torch.device("meta"):
        model = build_model(config)
    put_on(model, CUDA)
    model.to = lambda device: model  # type: ignore[method-assign]  # fake parameters cannot be moved
    return model


pytestmark = [
    pytest.mark.skipif(not can_do_without(CUDA), reason="an older torch needs a card for it"),
    # The average is a deep copy, for which Python looks at where the tensors lie.
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]


def learner_on_card(monkeypatch, tmp_path: Path, **settings) -> Learner:
    monkeypatch.setattr(learner_module, "build_model", lifted)
    monkeypatch.setattr(Tensor, "backward", backward)  # the engine needs a context of CUDA's
    whole = config(tmp_path, **settings)
    return Learner(whole, whole.stages["only"], CUDA)


def places_of_a_step(learner: Learner, waits: Waits, iteration: int = 0) -> list[str]:
    """Where it waits, the copy of its clips included."""
    waits.places.clear()
    clips = random_batch(learner.stage, 1, CUDA)
    learner.step([clips], iteration, progress=0.5, notes=lambda: [0.0, 0.5])
    return list(waits.places)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_stays_on_the_card_and_waits_once(
    waits: Waits, monkeypatch, tmp_path, name: str
) -> None:
    learner = learner_on_card(monkeypatch, tmp_path, model=MODELS[name], precision="bf16")
    assert places_of_a_step(learner, waits) == ["step"]


def test_so_it_does_in_fp16_with_all_options(waits: Waits, monkeypatch, tmp_path) -> None:
    """Of the network; recomputed blocks, an average, an auxiliary loss, bootstrapping."""
    loss = LossConfig(objects=0.1, bootstrap_start=0, bootstrap_end=1)
    learner = learner_on_card(
        monkeypatch,
        tmp_path,
        model=OPTIONS,
        precision="fp16",
        ema=0.9,
        checkpoint_blocks=True,
        loss=loss,
    )
    assert learner.scaler.is_enabled()
    for iteration in (1, 2):  # the first one is copied to the average
        assert places_of_a_step(learner, waits, iteration) == ["step"]


def segmenter_steps(segmenter, rng: np.random.Generator, waits: Waits) -> list[list[str]]:
    """Where each of some frames waits: the first one, others with updates of the memories, one
    with another object, and those that evict."""
    found = []
    for t in range(5):
        mask = {0: blob_mask(48, 70, [1, 9]), 3: blob_mask(48, 70, [0, 5])}.get(t)
        waits.places.clear()
        segmenter.step(random_frame(rng, 48, 70), mask)
        found.append(list(waits.places))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_frames_stay_on_the_card_and_wait_once(waits: Waits, name: str) -> None:
    settings = SegmenterConfig(
        memory_interval=1, capacity=12, precision="bf16", short_side=32, max_pinned=1
    )
    segmenter = Segmenter(lifted(MODELS[name]).eval(), settings)
    rng = np.random.default_rng(0)
    assert segmenter_steps(segmenter, rng, waits) == [["index_mask"]] * 5
    waits.places.clear()
    segmenter.step(random_frame(rng, 48, 70), absent={9})
    assert waits.places == ["index_mask"]
    waits.places.clear()
    segmenter.remove(9)  # another one came with it
    segmenter.remove(5)  # came alone
    segmenter.step(random_frame(rng, 48, 70))
    assert waits.places == ["index_mask"]


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp16", "top_k": 4, "kernel": 0.2, "capacity": None},
        {"compile": "default"},
    ],
)
def test_so_they_do_with_other_settings(waits: Waits, monkeypatch, settings: dict) -> None:
    """And with all options of the network. What would be compiled runs as it is."""
    monkeypatch.setattr(segmenter_module, "compiled_frame", lambda *_: segment_frame)
    config = SegmenterConfig(**{"precision": "bf16", "memory_interval": 2} | settings)
    segmenter = Segmenter(lifted(OPTIONS).eval(), config)
    assert segmenter_steps(segmenter, np.random.default_rng(0), waits) == [["index_mask"]] * 5


@pytest.fixture
def saved_video(tmp_path, monkeypatch) -> None:
    """One on the CPU; its file cannot be read without numbers, so it is read here."""
    monkeypatch.setattr(
        segmenter_module, "network_digest", lambda _: "of a network without numbers"
    )
    settings = SegmenterConfig(precision="bf16", memory_interval=1)
    segmenter = Segmenter(build_model(TINY).eval(), settings)
    segmenter.step(random_frame(np.random.default_rng(0), 48, 70), blob_mask(48, 70, [1, 9]))
    segmenter.save(tmp_path / "video")
    values, tensors = read_state(tmp_path / "video", torch.device("cpu"))

    def moved(_: Path, device: torch.device) -> tuple[dict, dict]:
        return values, {name: tensor.to(device) for name, tensor in tensors.items()}

    monkeypatch.setattr(segmenter_module, "read_state", moved)


def test_a_saved_video_goes_on_on_the_card(saved_video: None, waits: Waits) -> None:
    segmenter = Segmenter.load("video", lifted(TINY).eval())
    rng = np.random.default_rng(0)
    corrected, *rest = segmenter_steps(segmenter, rng, waits)
    assert corrected == ["index_mask"] * 2  # an object that it knew was given again
    assert rest == [["index_mask"]] * 4


def test_augmented_views_wait_once_together(waits: Waits) -> None:
    views = AugmentedSegmenter(
        lifted(TINY).eval(), SegmenterConfig(precision="bf16"), AugmentConfig(flip=True)
    )
    found = segmenter_steps(views, np.random.default_rng(0), waits)
    assert found == [["index_mask"]] * 5
