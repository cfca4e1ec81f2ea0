import copy
import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from conftest import TINY, perturbed, random_frame
from PIL import Image

from stma.errors import InputError
from stma.inference import segmenter as module
from stma.inference.augmentation import AugmentConfig, AugmentedSegmenter
from stma.inference.segmenter import (
    FrameResult,
    Segmenter,
    SegmenterConfig,
    merge_given,
    network_size,
)
from stma.model.factory import build_model
from stma.model.stma import STMA
from stma.model.streams import VARIANTS
from stma.model.weights import save_weights


def blob_mask(height: int, width: int, ids: list[int]) -> np.ndarray:
    """Objects side by side."""
    mask = np.zeros((height, width), np.uint8)
    for index, columns in enumerate(np.array_split(np.arange(width), len(ids))):
        mask[height // 4 : max(height // 4 + 1, 3 * height // 4), columns] = ids[index]
    return mask


class Recomputing(Segmenter):
    """Encodes all references anew for every frame."""

    def step(self, *arguments, **keywords):
        self.memory.prepared = None
        return super().step(*arguments, **keywords)


def test_cached_references_equal_recomputed_ones(tiny_model: STMA) -> None:
    """Over 20 frames with several memory updates and an object that enters late, off the grid."""
    model = tiny_model.float()
    logits: dict[type, list[torch.Tensor]] = {}
    for kind in (Segmenter, Recomputing):
        rng = np.random.default_rng(0)
        segmenter = kind(model, SegmenterConfig(memory_interval=5))
        records = logits.setdefault(kind, [])
        handle = model.decoder.register_forward_hook(lambda *a, r=records: r.append(a[2]))
        for t in range(20):
            mask = {0: blob_mask(48, 64, [1, 2]), 7: blob_mask(48, 64, [0, 5])}.get(t)
            segmenter.step(random_frame(rng, 48, 64), mask)
        handle.remove()
    assert len(logits[Segmenter]) == 19
    for cached, recomputed in zip(*logits.values(), strict=True):
        assert torch.allclose(cached, recomputed, atol=1e-4)


def test_references_are_encoded_once_per_update(tiny_model: STMA, monkeypatch) -> None:
    import stma.model.streams as module

    calls = []
    encode = module.encode_references
    monkeypatch.setattr(
        module, "encode_references", lambda *a: calls.append(a[1].shape[1]) or encode(*a)
    )
    rng = np.random.default_rng(0)
    segmenter = Segmenter(tiny_model, SegmenterConfig(memory_interval=5))
    for t in range(12):
        segmenter.step(random_frame(rng, 32, 32), blob_mask(32, 32, [1]) if t == 0 else None)
    assert calls == [1, 2, 2]  # after frames 0, 5 and 10


@pytest.mark.parametrize(
    ("height", "width", "num_objects"),
    [(17, 33, 1), (33, 17, 2), (16, 16, 3), (100, 75, 12), (129, 240, 5)],
)
def test_every_size_comes_back(tiny_model: STMA, height: int, width: int, num_objects: int) -> None:
    rng = np.random.default_rng(0)
    segmenter = Segmenter(tiny_model.float(), SegmenterConfig(memory_interval=1))
    ids = list(range(1, num_objects + 1))
    first = blob_mask(height, width, ids)
    result = segmenter.step(random_frame(rng, height, width), first)
    assert np.array_equal(result.mask, first)
    for _ in range(2):
        result = segmenter.step(random_frame(rng, height, width))
        assert result.mask.shape == (height, width)
        assert result.mask.dtype == np.uint8
        assert result.probabilities.shape == (num_objects + 1, height, width)
        assert torch.allclose(result.probabilities.sum(0), torch.ones(height, width), atol=1e-4)
        assert set(np.unique(result.mask)) <= {0, *ids}


def test_ids_are_kept_and_late_objects_join(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    segmenter = Segmenter(tiny_model)
    early = segmenter.step(random_frame(rng, 32, 48))
    assert early.ids == []
    assert not early.mask.any()
    assert (early.probabilities == 1).all()

    first = blob_mask(32, 48, [200, 7])
    assert np.array_equal(segmenter.step(random_frame(rng, 32, 48), first).mask, first)
    late = np.zeros((32, 48), np.int32)
    late[2:6, 2:9] = 255
    result = segmenter.step(random_frame(rng, 32, 48), late)
    assert result.ids == [7, 200, 255]
    assert (result.mask[2:6, 2:9] == 255).all()
    assert (result.mask == 255).sum() == 4 * 7
    assert len(segmenter.memory.spatial) == 2  # off the grid, yet memorised
    result = segmenter.step(random_frame(rng, 32, 48))
    assert result.probabilities.shape[0] == 4


def test_memory_is_updated_on_the_grid_and_never_after_the_last_frame(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    segmenter = Segmenter(tiny_model, SegmenterConfig(memory_interval=3, queue_size=None))
    held = []
    for t in range(7):
        mask = blob_mask(32, 32, [1]) if t == 0 else None
        segmenter.step(random_frame(rng, 32, 32), mask, last=t == 6)
        held.append(len(segmenter.memory.spatial))
    assert held == [1, 1, 1, 2, 2, 2, 2]
    # A new object on a frame called the last is not lost, should the video go on after all.
    segmenter.step(random_frame(rng, 32, 32), blob_mask(32, 32, [2]), last=True)
    assert segmenter.step(random_frame(rng, 32, 32)).probabilities.shape[0] == 3


def test_capacity_bounds_the_memory_of_a_long_video(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    config = SegmenterConfig(memory_interval=1, capacity=10)  # 4 elements to a frame
    segmenter = Segmenter(tiny_model, config)
    for t in range(40):
        segmenter.step(random_frame(rng, 32, 32), blob_mask(32, 32, [1]) if t == 0 else None)
        assert len(segmenter.memory.temporal) <= 10
        assert len(segmenter.memory.spatial) <= 2


def test_two_videos_on_one_network_do_not_meet(tiny_model: STMA) -> None:
    def run(other: Segmenter | None) -> torch.Tensor:
        rng = np.random.default_rng(0)
        segmenter = Segmenter(tiny_model)
        for t in range(4):
            mask = blob_mask(32, 32, [1, 2]) if t == 0 else None
            result = segmenter.step(random_frame(rng, 32, 32), mask)
            if other is not None:
                other.step(np.full((48, 32, 3), t, np.uint8), blob_mask(48, 32, [t + 1]))
        return result.probabilities

    assert torch.equal(run(None), run(Segmenter(tiny_model)))


def test_large_frames_are_scaled_down_for_the_network_alone(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    segmenter = Segmenter(tiny_model, SegmenterConfig(short_side=32))
    first = blob_mask(100, 130, [1, 2])
    result = segmenter.step(random_frame(rng, 100, 130), first)
    assert np.array_equal(result.mask, first)
    assert segmenter.memory.spatial.references().shape[2] == 2 * 3  # 32 x 42, padded to 32 x 48
    assert segmenter.step(random_frame(rng, 100, 130)).mask.shape == (100, 130)


def test_an_object_too_small_for_the_scaled_frame_is_still_memorised(tiny_model: STMA) -> None:
    segmenter = Segmenter(tiny_model, SegmenterConfig(short_side=32))
    mask = np.zeros((256, 256), np.uint8)
    mask[101, 77] = 7  # between the points that nearest-neighbour scaling would take
    seen = []
    tiny_model.value_encoder.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[1])
    )
    segmenter.step(np.zeros((256, 256, 3), np.uint8), mask)
    assert seen[0].sum() > 0


def test_network_size_never_enlarges() -> None:
    assert network_size(720, 1280, 480) == (480, 853)
    assert network_size(1280, 720, 480) == (853, 480)
    assert network_size(100, 200, 480) == (100, 200)
    assert network_size(720, 1280, None) == (720, 1280)


def test_merging_gives_an_object_its_mask_and_its_losses_to_the_background() -> None:
    probabilities = torch.tensor([[0.2, 0.1, 0.5], [0.8, 0.3, 0.2], [0.0, 0.6, 0.3]])[:, None]
    mask = torch.tensor([[0, 9, 0]])
    new = merge_given(probabilities, mask, ids=[4, 5, 9])
    assert torch.allclose(
        new[:, 0], torch.tensor([[0.2, 0, 0.5], [0.8, 0, 0.2], [0, 0, 0.3], [0, 1, 0]])
    )
    corrected = merge_given(probabilities, torch.tensor([[0, 4, 0]]), ids=[4, 5])
    assert torch.allclose(corrected[:, 0], torch.tensor([[1.0, 0, 0.7], [0, 1, 0], [0, 0, 0.3]]))


@pytest.mark.parametrize("size", [None, (30, 40), (6, 9), (30, 8)])
def test_a_mask_takes_the_most_probable_object_and_the_first_of_equals(size) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (11, 12, 16), generator=generator).float()  # many ties
    ids = [7, 3, 200, *range(20, 27)]
    found = module.index_mask(scores, ids, size)
    resized = module._resize(scores, size or (12, 16))
    rows = torch.from_numpy(np.searchsorted(np.sort([0, *ids]), found))
    rows = torch.tensor(np.argsort([0, *ids]))[rows]
    assert torch.allclose(resized.gather(0, rows[None])[0], resized.amax(dim=0))
    if size is None:
        assert torch.equal(rows, scores.argmax(dim=0))


def test_merging_many_objects_leaves_what_it_is_given(monkeypatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(6, 5, 7, generator=generator).softmax(dim=0)
    kept = probabilities.clone()
    mask = torch.zeros(5, 7, dtype=torch.int64)
    mask[1, 2:4], mask[3, 3] = 9, 4
    merged = merge_given(probabilities, mask, [1, 2, 3, 4, 5, 9], {2})
    assert torch.equal(probabilities, kept)
    assert torch.allclose(merged.sum(dim=0), torch.ones(5, 7))
    assert merged[2].max() == 0
    assert torch.equal(merged[6] == 1, mask == 9)
    assert torch.equal(merged[4] == 1, mask == 4)
    assert torch.equal(merged[1], kept[1] * (mask == 0))


FRAME = np.zeros((32, 48, 3), np.uint8)
MASK = np.ones((32, 48), np.uint8)


@pytest.mark.parametrize(
    ("frame", "mask", "message"),
    [
        (FRAME[..., 0], MASK, r"the frame is \(32, 48\)"),
        (FRAME.astype(np.float32), MASK, "float32"),
        (FRAME[:0], None, "empty"),
        (FRAME, np.stack([MASK] * 3, -1), r"\(32, 48, 3\).*RGB"),
        (FRAME.tolist(), MASK, "the frame is a list"),
        (FRAME, MASK.tolist(), "the mask is a list"),
        (FRAME, MASK[:20], "mask is 48 x 20, its frame 48 x 32"),
        (torch.from_numpy(FRAME) / 255, MASK, "float32"),
        (FRAME, Image.fromarray(FRAME), "picture of mode RGB"),
        (FRAME, MASK * 0, "holds no object"),
        (FRAME, MASK.astype(float), "float64"),
        (FRAME, MASK.astype(int) * 256, "IDs from 256 to 256"),
        (FRAME, -MASK.astype(int), "IDs from -1"),
    ],
)
def test_bad_frames_and_masks_are_named_and_lose_nothing(
    tiny_model: STMA, frame: np.ndarray, mask: np.ndarray, message: str
) -> None:
    segmenter = Segmenter(tiny_model)
    with pytest.raises(InputError, match=message):
        segmenter.step(frame, mask)
    assert segmenter.ids == []
    segmenter.step(FRAME, MASK)  # the video goes on


def test_frames_of_a_video_have_one_size(tiny_model: STMA) -> None:
    segmenter = Segmenter(tiny_model)
    segmenter.step(FRAME, MASK)
    with pytest.raises(InputError, match="frame is 48 x 20, those before it are 48 x 32"):
        segmenter.step(FRAME[:20])


def test_a_network_in_training_mode_is_refused(tiny_config) -> None:
    with pytest.raises(ValueError, match=r"model\.eval"):
        Segmenter(build_model(tiny_config))


@pytest.mark.parametrize(
    "settings",
    [
        {"memory_interval": 0},
        {"short_side": 3},
        {"capacity": 0},
        {"queue_size": -1},
        {"top_k": 0},
        {"kernel": 0.0},
        {"precision": "fp8"},
        {"compile": "fast"},
        {"compile": "default", "capacity": None},
        {"compile": "default", "queue_size": None},
    ],
)
def test_settings_that_make_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SegmenterConfig(**settings)


def test_top_k_as_large_as_the_memory_changes_nothing(tiny_model: STMA) -> None:
    def run(top_k: int | None) -> torch.Tensor:
        rng = np.random.default_rng(0)
        segmenter = Segmenter(tiny_model, SegmenterConfig(top_k=top_k))
        segmenter.step(random_frame(rng, 32, 32), blob_mask(32, 32, [1]))
        return segmenter.step(random_frame(rng, 32, 32)).probabilities

    assert torch.allclose(run(None), run(4), atol=1e-12)
    assert not torch.allclose(run(None), run(1), atol=1e-6)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(tiny_model: STMA) -> None:
    def run(model: STMA, precision: str) -> torch.Tensor:
        rng = np.random.default_rng(0)
        segmenter = Segmenter(model, SegmenterConfig(precision=precision))
        for t in range(4):
            mask = blob_mask(48, 64, [1, 2]) if t == 0 else None
            result = segmenter.step(random_frame(rng, 48, 64), mask)
        return result.probabilities.cpu()

    torch.backends.cudnn.allow_tf32 = False  # as on the CPU
    cpu = run(tiny_model.float(), "fp32")
    cuda = tiny_model.cuda()
    assert torch.allclose(run(cuda, "fp32"), cpu, atol=1e-3)
    assert torch.isfinite(run(cuda, "bf16")).all()


@pytest.mark.gpu
def test_cuda_waits_once_a_frame(tiny_model: STMA) -> None:
    """As tests/test_fake_cuda.py counts it without a card."""
    rng = np.random.default_rng(0)
    segmenter = Segmenter(tiny_model.float().cuda(), SegmenterConfig(memory_interval=1, capacity=8))
    for t in range(8):
        mask = {0: blob_mask(32, 32, [1, 2]), 5: blob_mask(32, 32, [0, 5])}.get(t)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            segmenter.step(random_frame(rng, 32, 32), mask)
            torch.cuda.set_sync_debug_mode("default")
        waits = [str(each.message) for each in caught if "synchronizing" in str(each.message)]
        assert len(waits) == 1


@pytest.mark.gpu
def test_a_video_saved_on_cuda_goes_on_there(tiny_model: STMA, tmp_path) -> None:
    model = tiny_model.float().cuda()
    segmenter = Segmenter(model, SegmenterConfig(memory_interval=1))
    rng = np.random.default_rng(0)
    segmenter.step(random_frame(rng, 32, 32), blob_mask(32, 32, [1, 2]))
    segmenter.save(tmp_path / "video")
    frame = random_frame(rng, 32, 32)
    loaded = Segmenter.load(tmp_path / "video", model)
    assert torch.equal(loaded.predict(frame), segmenter.predict(frame))


@pytest.mark.gpu
@pytest.mark.slow
def test_what_cuda_replays_equals_eager(tiny_model: STMA) -> None:
    model = tiny_model.float().cuda()
    modes = (None, "reduce-overhead")
    settings = SegmenterConfig(memory_interval=4, capacity=14, precision="fp32")
    runs = [Segmenter(model, replace(settings, compile=mode)) for mode in modes]
    rng = np.random.default_rng(0)
    for t in range(12):
        frame = random_frame(rng, 32, 32)
        mask = {0: blob_mask(32, 32, [1, 2]), 7: blob_mask(32, 32, [0, 5])}.get(t)
        eager, replayed = (segmenter.predict(frame, mask) for segmenter in runs)
        torch.testing.assert_close(replayed, eager, rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_with_late_objects_and_eviction_stays_close(
    tiny_model: STMA, precision: str
) -> None:
    """On the CPU, so that dtypes are checked where there is no GPU."""

    def run(precision: str) -> torch.Tensor:
        rng = np.random.default_rng(0)
        config = SegmenterConfig(precision=precision, memory_interval=1, capacity=16)
        segmenter = Segmenter(tiny_model.float(), config)
        for t in range(8):
            mask = {0: blob_mask(32, 48, [1, 2]), 3: blob_mask(32, 48, [0, 9])}.get(t)
            result = segmenter.step(random_frame(rng, 32, 48), mask)
        return result.probabilities

    half = run(precision)
    assert half.dtype == torch.float32
    assert torch.allclose(half.sum(0), torch.ones(32, 48), atol=1e-4)
    assert 0 < (half - run("fp32")).abs().mean() < 0.05


def segmented(segmenter: Segmenter, frames: list[np.ndarray]) -> list[torch.Tensor]:
    return [segmenter.step(frame).probabilities for frame in frames]


@pytest.mark.parametrize(
    ("variant", "capacity"), [*((variant, 8) for variant in VARIANTS), ("full", None)]
)
def test_a_saved_video_goes_on_to_the_bit(tmp_path, variant: str, capacity: int | None) -> None:
    """Saved between two memory updates, after evictions, with an object that entered late."""
    torch.manual_seed(0)
    model = perturbed(build_model(replace(TINY, variant=variant))).eval()
    rng = np.random.default_rng(0)
    frames = [random_frame(rng, 33, 47) for _ in range(16)]
    segmenter = Segmenter(model, SegmenterConfig(memory_interval=2, capacity=capacity))
    for t in range(9):
        masks = {1: blob_mask(33, 47, [9, 2]), 3: blob_mask(33, 47, [0, 0, 5])}
        segmenter.step(frames[t], masks.get(t))
    segmenter.save(tmp_path / "video.safetensors")
    loaded = Segmenter.load(tmp_path / "video.safetensors", model)
    assert loaded.ids == [2, 9, 5]
    assert loaded.num_frames == 9
    assert loaded.config == segmenter.config
    on, again = segmented(segmenter, frames[9:]), segmented(loaded, frames[9:])
    assert all(torch.equal(a, b) for a, b in zip(on, again, strict=True))
    with pytest.raises(InputError, match="those before it are 47 x 33"):
        loaded.step(FRAME)


def test_a_video_saved_before_its_first_mask_goes_on(tmp_path, tiny_model: STMA) -> None:
    segmenter = Segmenter(tiny_model)
    segmenter.step(FRAME)
    segmenter.save(tmp_path / "new folder" / "video")
    loaded = Segmenter.load(tmp_path / "new folder" / "video", tiny_model)
    assert loaded.step(FRAME, MASK).ids == [1]
    assert loaded.num_frames == 2


def test_what_is_no_saved_video_of_this_network_is_refused(tmp_path, tiny_model: STMA) -> None:
    path = tmp_path / "video"
    with pytest.raises(InputError, match="video: cannot be read"):
        Segmenter.load(path, tiny_model)
    segmenter = Segmenter(tiny_model)
    segmenter.step(FRAME, MASK)
    segmenter.save(path)
    other = perturbed(build_model(TINY), seed=1).eval()
    with pytest.raises(InputError, match="saved with other weights"):
        Segmenter.load(path, other)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(InputError, match="video: damaged"):
        Segmenter.load(path, tiny_model)
    path.write_bytes(whole)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        Segmenter.load(path, tiny_model)
    save_weights(path, tiny_model, TINY, {})
    with pytest.raises(InputError, match="not a saved video"):
        Segmenter.load(path, tiny_model)


def cost(segmenter: Segmenter) -> tuple[int, ...]:
    """Objects, elements, references, pinned frames, and values that are held of elements."""
    memory = segmenter.memory
    spatial, temporal = memory.spatial, memory.temporal
    pinned = sum(keep for _, keep in spatial.frames)
    values = temporal.values.numel() if len(temporal) else 0
    return len(segmenter.ids), len(temporal), len(spatial), pinned, values


@pytest.mark.parametrize(
    ("variant", "capacity"),
    [("full", None), ("full", 40), ("no_spatial_memory", 40), ("no_temporal_memory", None)],
)
def test_a_removed_object_costs_nothing(variant: str, capacity: int | None) -> None:
    """As much is held as if the object had never been given, whichever it is."""
    torch.manual_seed(0)
    model = perturbed(build_model(replace(TINY, variant=variant))).eval()
    rng = np.random.default_rng(0)
    frames = [random_frame(rng, 32, 48) for _ in range(8)]
    entering = {0: blob_mask(32, 48, [7, 3]), 2: blob_mask(32, 48, [0, 0, 5])}

    def run(given: dict[int, np.ndarray], remove: list[int]) -> Segmenter:
        segmenter = Segmenter(model, SegmenterConfig(memory_interval=2, capacity=capacity))
        for t in range(4):
            segmenter.step(frames[t], given.get(t))
        for object_id in remove:
            segmenter.remove(object_id)
        for t in range(4, 8):
            result = segmenter.step(frames[t])
            assert set(np.unique(result.mask)) <= {0, *segmenter.ids}
            assert result.probabilities.shape[0] == len(segmenter.ids) + 1
            assert torch.isfinite(result.probabilities).all()
        return segmenter

    seven = {0: blob_mask(32, 48, [7, 0])}
    assert cost(run(entering, [7])) == cost(run(seven | {2: entering[2]}, []))
    assert cost(run(entering, [5, 3])) == cost(run(seven, []))
    assert cost(run(entering, [3, 7])) == cost(run({2: entering[2]}, []))


def test_the_objects_that_remain_keep_their_memories(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    segmenter = Segmenter(tiny_model, SegmenterConfig(memory_interval=1))
    for ids in ([4, 6], [0, 0, 9], [0, 0, 0, 2]):
        segmenter.step(random_frame(rng, 32, 48), blob_mask(32, 48, ids))
    held = segmenter.memory.temporal.values.clone()
    segmenter.remove(6)
    assert torch.equal(segmenter.memory.temporal.values, held[:, :, [0, 2, 3]])
    segmenter.remove(9)
    assert torch.equal(segmenter.memory.temporal.values, held[:, :, [0, 3]])
    segmenter.remove(4)  # with it goes all that is older than the last
    assert segmenter.ids == [2]
    assert torch.equal(segmenter.memory.temporal.values, held[:, -6:, [3]])


def test_an_object_may_come_back(tiny_model: STMA) -> None:
    segmenter = Segmenter(tiny_model)
    segmenter.step(FRAME, MASK)
    segmenter.remove(1)
    assert segmenter.ids == []
    assert not segmenter.step(FRAME).mask.any()
    assert segmenter.step(FRAME, MASK).ids == [1]
    for identity in (8, "1"):
        with pytest.raises(
            InputError, match=f"object {identity!r} is not in the video; objects: 1"
        ):
            segmenter.remove(identity)


def test_reset_begins_another_video(tiny_model: STMA) -> None:
    segmenter = Segmenter(tiny_model)
    segmenter.step(FRAME, MASK)
    segmenter.reset()
    other = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    fresh = Segmenter(tiny_model)
    for mask in (np.full((40, 40), 3), None):
        a, b = segmenter.step(other, mask), fresh.step(other, mask)
        assert torch.equal(a.probabilities, b.probabilities)
    assert segmenter.num_frames == 2


def test_single_settings_keep_the_others_that_suit_the_weights(tiny_model: STMA) -> None:
    tiny_model.segmenter_settings = {"short_side": 32, "top_k": 7}
    config = Segmenter(tiny_model, memory_interval=3).config
    assert config == SegmenterConfig(memory_interval=3, short_side=32, top_k=7)
    given = SegmenterConfig(capacity=50)
    assert Segmenter(tiny_model, given, queue_size=2).config == replace(given, queue_size=2)
    with pytest.raises(InputError, match="memory_intervall"):
        Segmenter(tiny_model, memory_intervall=3)
    with pytest.raises(InputError, match="memory_interval is 0"):
        Segmenter(tiny_model, memory_interval=0)


def test_from_a_local_folder(weights, tmp_path) -> None:
    segmenter = Segmenter.from_pretrained(tmp_path, "cpu", memory_interval=2)
    assert segmenter.config.memory_interval == 2
    assert not segmenter.step(FRAME).mask.any()
    with pytest.raises(InputError, match="nowhere"):
        Segmenter.from_pretrained("nowhere")


def test_tensors_and_pictures_are_frames_and_masks_too(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    frame, later = (random_frame(rng, 32, 48) for _ in range(2))
    mask = blob_mask(32, 48, [5])

    def run(convert, convert_mask) -> torch.Tensor:
        segmenter = Segmenter(tiny_model)
        segmenter.step(convert(frame), convert_mask(mask))
        return segmenter.step(convert(later)).probabilities

    expected = run(lambda x: x, lambda x: x)
    assert torch.equal(run(Image.fromarray, Image.fromarray), expected)
    assert torch.equal(run(torch.from_numpy, torch.from_numpy), expected)
    first = lambda x: torch.from_numpy(x).permute(2, 0, 1)  # noqa: E731
    assert torch.equal(run(first, lambda x: torch.from_numpy(x).long()), expected)


def test_two_threads_in_one_video_are_refused(tiny_model: STMA, monkeypatch) -> None:
    segmenter = Segmenter(tiny_model)
    errors = []

    def intrude(*_) -> torch.Tensor:
        with pytest.raises(InputError, match="another thread") as caught:
            segmenter.step(FRAME)
        errors.append(caught)
        return torch.ones(1, 32, 48)

    monkeypatch.setattr(segmenter, "_predict", intrude)
    segmenter.step(FRAME)
    assert len(errors) == 1


def test_a_network_in_half_precision_is_refused(tiny_model: STMA) -> None:
    with pytest.raises(InputError, match=r"model\.float"):
        Segmenter(tiny_model.half())


def test_states_of_the_wrong_kind(tiny_model: STMA, tmp_path) -> None:
    segmenter = Segmenter(tiny_model)
    segmenter.step(FRAME, MASK)
    with pytest.raises(InputError, match="is a folder"):
        segmenter.save(tmp_path)
    segmenter.save(tmp_path / "video")
    with pytest.raises(InputError, match="the model is 'small'"):
        Segmenter.load(tmp_path / "video", "small")


def test_a_correction_far_from_the_prediction_is_a_new_beginning(tiny_model: STMA) -> None:
    """What was known of the object counts no more; other objects keep what is known of them."""
    rng = np.random.default_rng(0)
    model = tiny_model.float()
    frames = [random_frame(rng, 48, 64) for _ in range(8)]
    wrong, right = blob_mask(48, 64, [1, 0, 0]), blob_mask(48, 64, [0, 0, 1])
    corrected, alone = (Segmenter(model, SegmenterConfig(memory_interval=2)) for _ in range(2))
    corrected.step(frames[0], wrong)
    for frame in frames[1:4]:
        corrected.step(frame)
    for segmenter in (corrected, alone):
        segmenter.step(frames[4], right)
    for frame in frames[5:]:
        a, b = (segmenter.step(frame).probabilities for segmenter in (corrected, alone))
        assert torch.equal(a, b)

    both = Segmenter(model, SegmenterConfig(memory_interval=2))
    both.step(frames[0], blob_mask(48, 64, [1, 2, 0]))
    held = both.memory.temporal.values[:, :, 1].clone()
    result = both.step(frames[1], right)
    assert result.ids == [2, 1]
    assert np.array_equal(result.mask == 1, right == 1)
    assert torch.equal(both.memory.temporal.values[:, : held.shape[1], 0], held)


def test_a_correction_near_the_prediction_is_memorised_with_the_rest(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    segmenter = Segmenter(tiny_model.float(), SegmenterConfig(memory_interval=10))
    segmenter.step(random_frame(rng, 48, 64), blob_mask(48, 64, [1, 2]))
    frame = random_frame(rng, 48, 64)
    twin = Segmenter(tiny_model, segmenter.config)
    twin.memory, twin.ids = copy.deepcopy(segmenter.memory), [1, 2]
    predicted = twin.step(frame).mask
    assert segmenter.step(frame, predicted).ids == [1, 2]
    assert len(segmenter.memory.temporal) == 2 * 12


def test_views_that_disagree_about_a_correction_are_averaged_by_object(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    segmenter = AugmentedSegmenter(
        tiny_model.float(), SegmenterConfig(), AugmentConfig(scales=[1.0, 0.5])
    )
    frame = random_frame(rng, 64, 64)
    segmenter.step(frame, blob_mask(64, 64, [1, 2]))
    segmenter.views[1].remove(1)
    segmenter.views[1].step(frame, blob_mask(64, 64, [1, 0]))
    expected = [view.step(frame).probabilities for view in copy.deepcopy(segmenter.views)]
    result = segmenter.step(frame)
    assert result.ids == [1, 2]
    assert torch.allclose(result.probabilities, (expected[0] + expected[1][[0, 2, 1]]) / 2)


@pytest.mark.parametrize(("side", "warned"), [(32, True), (None, False)])
def test_an_object_that_is_tiny_for_the_network_is_named(
    tiny_model: STMA, caplog, side: int | None, warned: bool
) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[20:28, 20:28] = 9
    mask[60:100, 60:100] = 3
    Segmenter(tiny_model, SegmenterConfig(short_side=side)).step(
        np.zeros((128, 128, 3), np.uint8), mask
    )
    assert ("object 9" in caplog.text) == warned
    assert ("--short-side" in caplog.text) == warned
    assert "object 3" not in caplog.text


def test_what_is_no_model_and_no_settings_is_refused(tiny_model: STMA) -> None:
    with pytest.raises(InputError, match=r"the model is 'path'; give the result of load_model"):
        Segmenter("path")
    with pytest.raises(InputError, match=r"the settings are {'capacity': 5}; give a Segmenter"):
        Segmenter(tiny_model, {"capacity": 5})


@pytest.mark.slow
def test_a_compiled_frame_is_one_graph_until_something_new_is_known(monkeypatch) -> None:
    """60 frames, an object that enters late, and two more updates, the first of which brings the
    second reference, and the second evicts; then the first objects are removed, and another update
    follows. A graph for two objects, one for three, one for the one that is left."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    monkeypatch.setattr(module, "BACKEND", counter)
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = perturbed(build_model(TINY)).eval()
    settings = SegmenterConfig(memory_interval=25, capacity=14, kernel=0.3)  # 4 elements to a frame
    runs = [Segmenter(model, replace(settings, compile=mode)) for mode in (None, "default")]
    rng = np.random.default_rng(0)
    graphs = []
    for t in range(80):
        frame = random_frame(rng, 32, 32)
        mask = {0: blob_mask(32, 32, [1, 2]), 35: blob_mask(32, 32, [0, 5])}.get(t)
        eager, compiled_frame = (segmenter.predict(frame, mask) for segmenter in runs)
        torch.testing.assert_close(compiled_frame, eager, rtol=0, atol=1e-5)
        graphs.append(counter.frame_count)
        if t == 60:
            for segmenter, object_id in itertools.product(runs, (1, 2)):
                segmenter.remove(object_id)
    assert [graphs[t] for t in (0, 1, 35, 36, 60, 61, 79)] == [0, 1, 1, 2, 2, 3, 3]
    assert torch._dynamo.config.cache_size_limit == module.MAX_GRAPHS  # beyond, it would fail
    usage = [segmenter.memory.temporal._usage for segmenter in runs]
    torch.testing.assert_close(*usage, rtol=0, atol=1e-3)


def test_an_absent_object_has_no_pixel_and_is_memorised_so(tiny_model: STMA) -> None:
    rng = np.random.default_rng(0)
    model = perturbed(tiny_model.float())
    frames = [random_frame(rng, 48, 64) for _ in range(4)]
    mask = blob_mask(48, 64, [3, 7])
    told, not_told = (Segmenter(model, SegmenterConfig(memory_interval=10)) for _ in range(2))
    for segmenter in (told, not_told):
        segmenter.step(frames[0], mask)
    shown = not_told.step(frames[1]).probabilities
    probabilities = told.step(frames[1], absent={7}).probabilities
    assert torch.allclose(probabilities[1], shown[1])
    assert probabilities[2].max() == 0
    assert torch.allclose(probabilities[0], shown[0] + shown[2])
    assert len(told.memory.temporal) == 2 * len(not_told.memory.temporal)
    later = [segmenter.step(frames[2]).probabilities for segmenter in (told, not_told)]
    assert not torch.equal(*later)

    both = told.step(frames[3], (mask == 3) * np.uint8(3), absent={7})
    assert np.array_equal(both.mask, np.where(mask == 3, 3, 0))


def test_an_absent_object_must_be_known_and_not_in_the_mask(tiny_model: STMA) -> None:
    frame = random_frame(np.random.default_rng(0), 48, 64)
    mask = blob_mask(48, 64, [3, 7])
    segmenter = Segmenter(tiny_model.float())
    with pytest.raises(InputError, match="absent: object 3 is not in the video; objects: none"):
        segmenter.step(frame, mask, absent={3})
    segmenter.step(frame, mask)
    with pytest.raises(InputError, match="absent: object 4 is not in the video; objects: 3, 7"):
        segmenter.step(frame, absent={4})
    with pytest.raises(InputError, match="absent: object 7 is in the mask"):
        segmenter.step(frame, mask, absent={7})
    assert segmenter.num_frames == 1


def test_confidence_is_the_mean_probability_where_an_object_is_the_most_probable() -> None:
    probabilities = torch.tensor([[0.1, 0.3, 0.6], [0.9, 0.5, 0.3], [0.0, 0.2, 0.1]])[:, None]
    result = FrameResult(np.array([[7, 7, 0]], np.uint8), probabilities, [7, 3])
    assert result.confidence == pytest.approx({7: 0.7, 3: 0.2})  # object 3 is nowhere


def test_given_objects_have_a_confidence_of_one(tiny_model: STMA) -> None:
    frame, mask = random_frame(np.random.default_rng(0), 32, 48), np.zeros((32, 48), np.uint8)
    mask[4:20, 4:20] = 5
    segmenter = Segmenter(tiny_model.float())
    assert segmenter.step(frame, mask).confidence == {5: 1.0}
    assert 0 < segmenter.step(frame).confidence[5] < 1
    assert segmenter.step(frame, absent={5}).confidence == {5: 0.0}
