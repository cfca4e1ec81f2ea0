"""Table 1: which tokens read which in each variant, in training and at inference alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, make_batch, perturbed
from torch import Tensor

from stma.errors import InputError
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.memory.video import VideoMemory
from stma.model.attention import TransformerBlock
from stma.model.factory import ModelConfig, build_model
from stma.model.stma import STMA
from stma.model.streams import (
    PER_OBJECT,
    STREAMS,
    VARIANTS,
    FullStreams,
    JointSelfAttention,
    Streams,
    WithoutObjects,
    WithoutReferences,
)
from stma.model.weights import load_model, save_weights
from stma.training.losses import LossConfig, clip_loss

DIM, TOKENS, REFERENCES, OBJECTS = 16, 6, 3, 4
VIT = replace(TINY, backbone="vit", depths=[0, 0, 3], class_token=True)
BASES = {"convvit": TINY, "vit": VIT, "stem": replace(VIT, depths=[1, 1, 3], conv_stem=True)}


@pytest.fixture
def blocks() -> list[TransformerBlock]:
    torch.manual_seed(0)
    return [TransformerBlock(DIM, num_heads=2).double() for _ in range(3)]


def tokens(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, DIM, generator=generator, dtype=torch.float64)


TEST = tokens(2, TOKENS)
REFS = tokens(2, REFERENCES, TOKENS, seed=2)
OBJS = tokens(2, OBJECTS, seed=3)


def changed(x: Tensor) -> Tensor:
    """In one channel: a norm takes away what is added to all of them."""
    x = x.clone()
    x[:, 1, ..., 0] += 1
    return x


def run(streams: Streams, blocks, test=TEST, references=REFS, objects=OBJS, valid=None) -> Tensor:
    prepared = streams.prepare(
        blocks,
        references if streams.reads_references else None,
        objects if streams.reads_objects else None,
        valid,
    )
    return streams.encode(blocks, test, prepared)


def model_of(variant: str, base: ModelConfig = TINY) -> STMA:
    torch.manual_seed(0)
    return perturbed(build_model(replace(base, variant=variant))).eval().double()


@pytest.mark.parametrize("streams", [FullStreams(), WithoutReferences(), JointSelfAttention()])
def test_objects_reach_the_test_frame_in_any_order(streams, blocks) -> None:
    plain = run(streams, blocks)
    assert not torch.allclose(plain, run(streams, blocks, objects=changed(OBJS)))
    torch.testing.assert_close(plain, run(streams, blocks, objects=OBJS.flip(1)))


@pytest.mark.parametrize("streams", [FullStreams(), WithoutObjects(), JointSelfAttention()])
def test_references_reach_the_test_frame_in_any_order(streams, blocks) -> None:
    plain = run(streams, blocks)
    assert not torch.allclose(plain, run(streams, blocks, references=changed(REFS)))
    torch.testing.assert_close(plain, run(streams, blocks, references=REFS.flip(1)))


@pytest.mark.parametrize("streams", [FullStreams(), WithoutReferences(), JointSelfAttention()])
def test_objects_that_a_batch_pads_with_change_nothing(streams, blocks) -> None:
    valid = torch.tensor([[True, True, False, False]] * 2)
    padded = run(streams, blocks, objects=OBJS, valid=valid)
    torch.testing.assert_close(padded, run(streams, blocks, objects=OBJS[:, :2]))
    other = OBJS.clone()
    other[:, 2:] = 100
    torch.testing.assert_close(padded, run(streams, blocks, objects=other, valid=valid))


def test_without_objects_references_read_themselves_alone(blocks) -> None:
    """As one plain transformer does: each reference on its own, then the test frame with them."""
    streams = WithoutObjects()
    references = [REFS[:, i] for i in range(REFERENCES)]
    test = TEST
    for block in blocks:
        projected = [block.project(x) for x in references]
        query, keys = block.project(test)
        everything = [keys, *(keys for _, keys in projected)]
        joined = type(keys)(*(torch.cat(parts, dim=2) for parts in zip(*everything, strict=True)))
        test = block.update(test, query, joined)
        references = [block.update(x, *p) for x, p in zip(references, projected, strict=True)]
    torch.testing.assert_close(run(streams, blocks), test)


def test_without_references_objects_read_one_another_and_never_the_frame(blocks) -> None:
    streams = WithoutReferences()
    prepared = streams.prepare(blocks, None, OBJS, None)
    alone = streams.prepare(blocks, None, OBJS[:, :1], None)
    torch.testing.assert_close(prepared.keys[0].key[:, :, :1], alone.keys[0].key)
    assert not torch.allclose(prepared.keys[1].key[:, :, :1], alone.keys[1].key)


def test_joint_self_attention_is_one_transformer_over_all_tokens(blocks) -> None:
    joint = torch.cat([OBJS, REFS.flatten(1, 2), TEST], dim=1)
    for block in blocks:
        joint = block.update(joint, *block.project(joint))
    torch.testing.assert_close(run(JointSelfAttention(), blocks), joint[:, -TOKENS:])


@pytest.mark.parametrize(
    ("variant", "base", "enhanced"),
    [
        *((variant, "convvit", False) for variant in VARIANTS),
        ("full", "vit", True),
        ("full", "stem", False),
        ("joint", "vit", False),
        ("no_object", "convvit", True),
        (PER_OBJECT, "vit", False),
    ],
)
def test_training_and_inference_run_the_same_network(
    variant: str, base: str, enhanced: bool
) -> None:
    model = model_of(variant, replace(BASES[base], enhanced_keys=enhanced))
    clip = make_batch(num_frames=5, size=50)
    references = torch.zeros_like(clip.references)
    for t in range(2, 5):
        references[:, t, 1] = t - 1  # the first frame and the newest, as at inference
    clip = replace(clip, references=references)
    with torch.no_grad():
        expected = model(clip).logits[0].softmax(dim=1)
    segmenter = Segmenter(model, SegmenterConfig(memory_interval=1, capacity=None))
    frames = clip.frames[0].permute(0, 2, 3, 1).numpy()
    segmenter.step(frames[0], clip.masks[0, 0].numpy())
    for t in range(1, 5):
        result = segmenter.step(frames[t])
        torch.testing.assert_close(result.probabilities, expected[t - 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("variant", "base"),
    [*((variant, "convvit") for variant in VARIANTS), ("full", "vit"), (PER_OBJECT, "stem")],
)
def test_every_parameter_learns(variant: str, base: str) -> None:
    """DistributedDataParallel waits for all of them; the full model has no others."""
    model = model_of(variant, BASES[base]).train()
    clip = make_batch(batch=2, num_frames=4, size=48)
    loss = clip_loss(model(clip), clip, LossConfig(), 0)
    loss.total.backward()
    unused = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.abs().sum() > 0
    ]
    assert unused == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_objects_may_be_given_in_any_order_and_may_enter_late(variant: str) -> None:
    model = model_of(variant)
    clip = make_batch(num_frames=5, size=48)
    frames = clip.frames[0].permute(0, 2, 3, 1).numpy()
    mask = clip.masks[0, 0].numpy()
    table = np.array([0, 9, 200, 3], np.uint8)

    def masks_of(first: np.ndarray, late: np.ndarray) -> list[np.ndarray]:
        segmenter = Segmenter(model, SegmenterConfig(memory_interval=2))
        given = {0: first, 2: late}
        return [segmenter.step(f, given.get(t)).mask for t, f in enumerate(frames)]

    late = np.zeros_like(mask)
    late[30:40, 4:14] = 3
    plain = masks_of(mask, late)
    renamed = masks_of(table[mask], np.where(late, 77, 0).astype(np.uint8))
    assert set(np.unique(renamed[0])) == set(table[np.unique(mask)])
    for a, b in zip(plain[:2], renamed[:2], strict=True):
        assert (table[a] == b).mean() > 0.999


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "full"])
def test_weights_say_which_variant_they_are_of(variant: str, tmp_path) -> None:
    config = replace(TINY, variant=variant)
    save_weights(tmp_path / "w.safetensors", build_model(config), config, {})
    model = load_model(tmp_path / "w.safetensors")
    assert type(model.streams) is type(build_model(config).streams)


def test_the_full_model_has_the_parameters_of_its_variants_or_more() -> None:
    counts = {
        v: sum(p.numel() for p in build_model(replace(TINY, variant=v)).parameters())
        for v in STREAMS
    }
    assert counts["full"] == counts["joint"] == counts["no_spatial_memory"]
    assert counts["no_object"] < counts["full"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_padding_no_attention_carries_a_mask(variant: str) -> None:
    model = model_of(variant).train()
    masks = []
    for block in model.backbone.last_stage:
        block.attn.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[2]))
    clip = replace(make_batch(batch=2, num_frames=3), has_padding=True)
    clip.valid_objects[:] = True
    expected = model(clip).logits
    reads_objects = variant in STREAMS and STREAMS[variant].reads_objects
    assert any(mask is not None for mask in masks) == reads_objects
    masks.clear()
    found = model(replace(clip, has_padding=False)).logits
    assert masks
    assert all(mask is None for mask in masks)
    assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_says_itself_whether_it_gives_object_tokens(variant: str) -> None:
    model = model_of(variant).train()
    given = model(make_batch(num_frames=2)).object_logits is not None
    assert given == (variant in STREAMS and STREAMS[variant].gives_object_tokens)


def test_variants_that_are_none_and_settings_that_contradict_them() -> None:
    with pytest.raises(InputError, match=r"variant is 'without_objects'.*no_spatial_memory"):
        ModelConfig(variant="without_objects")
    for setting in (
        {"similarity": "l2"}, {"value_dim": 4}, {"train_top_k": 4},
        {"train_kernel": 0.2},
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{next(iter(setting))} is .*no temporal memory"):
            ModelConfig(variant=PER_OBJECT, **setting)


def test_without_spatial_memory_no_reference_is_held() -> None:
    model = model_of("no_spatial_memory")
    clip = make_batch(num_frames=3, size=32)
    frames = clip.frames[0].permute(0, 2, 3, 1).numpy()
    segmenter = Segmenter(model, SegmenterConfig(memory_interval=1))
    for t in range(3):
        segmenter.step(frames[t], clip.masks[0, 0].numpy() if t == 0 else None)
    assert len(segmenter.memory.spatial) == 0
    assert len(segmenter.memory.temporal) > 0


def test_without_temporal_memory_no_value_is_held_and_objects_do_not_meet_before_the_end() -> None:
    """Each object's logits are those of a run with it alone; only soft aggregation joins them."""
    model = model_of(PER_OBJECT)
    clip = make_batch(num_frames=3, size=48)
    images = model.normalize(clip.frames[0].double() / 255)
    memories = [VideoMemory() for _ in range(2)]
    masks = torch.zeros(1, 2, 48, 48, dtype=torch.float64)
    masks[:, 0, 4:20, 4:20] = masks[:, 1, 25:40, 20:40] = 1
    with torch.no_grad():
        frames = model.embed(images).frames(3)
        for memory, both in zip(memories, (masks, masks.flip(1)), strict=True):
            model.memorize(images[:1], frames[0], frames[0].tokens, both, memory, pinned=True)
        logits = [model.segment(frames[1], memory).logits for memory in memories]
    torch.testing.assert_close(logits[0][:, 1:], logits[1][:, 1:].flip(1))
    assert len(memories[0].temporal) == 0
    assert memories[0].spatial.references(slice(0, 2)).shape[:3] == (1, 2, 1)
