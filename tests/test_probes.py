import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY, make_batch, perturbed

from stma.data.masks import read_mask
from stma.data.pictures import save_clip, save_mask
from stma.data.procedural import procedural_clip
from stma.data.scene import SceneConfig
from stma.errors import InputError
from stma.evaluation.benchmarks import scored_clips
from stma.evaluation.probes import (
    Changed,
    ReferencesRemoved,
    as_first_seen,
    pairwise_cosine,
    probe_streams,
)
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.factory import build_model
from stma.model.probing import Watched, with_streams
from stma.model.stma import STMA


@pytest.fixture
def videos(tmp_path):
    config = SceneConfig(min_objects=2, max_objects=2)
    for name, seed in (("a", 0), ("b", 3)):
        rng = np.random.default_rng(seed)
        frames, masks, _ = procedural_clip(config, (32, 48), np.arange(7.0), rng)
        save_clip(tmp_path, name, frames, masks, ".png")
    return scored_clips(tmp_path)


def second_frame(model: STMA) -> torch.Tensor:
    clip = make_batch(num_frames=3, size=32)
    frames = clip.frames[0].permute(0, 2, 3, 1).numpy()
    segmenter = Segmenter(model, SegmenterConfig(memory_interval=1))
    segmenter.step(frames[0], clip.masks[0, 0].numpy())
    segmenter.step(frames[1])
    return segmenter.step(frames[2]).probabilities


def test_cuts_change_the_result_and_leave_the_model_as_it_was(tiny_model: STMA) -> None:
    whole = second_frame(tiny_model)
    streams = tiny_model.streams
    found = {}
    others = torch.randn(1, 2, TINY.dims[2], dtype=torch.float64)
    for name, cut in {
        "zeroed": Changed(streams, torch.zeros_like),
        "foreign": Changed(streams, lambda objects: others),
        "removed": ReferencesRemoved(streams),
    }.items():
        with with_streams(tiny_model, cut):
            found[name] = second_frame(tiny_model)
        assert tiny_model.streams is streams
        assert not torch.allclose(whole, found[name], atol=1e-9)
    with with_streams(tiny_model, Changed(ReferencesRemoved(streams), torch.zeros_like)):
        neither = second_frame(tiny_model)
    # Objects reach the test frame by references alone.
    assert torch.equal(found["removed"], neither)
    assert torch.equal(whole, second_frame(tiny_model))
    with with_streams(tiny_model, Watched(streams)):
        assert torch.equal(whole, second_frame(tiny_model))


def test_objects_as_first_seen_stay_so_and_new_ones_join() -> None:
    frozen = as_first_seen()
    first = frozen(torch.tensor([[[1.0], [2.0]]]))
    later = frozen(torch.tensor([[[9.0], [8.0], [7.0]]]))
    assert first.flatten().tolist() == [1, 2]
    assert later.flatten().tolist() == [1, 2, 7]
    assert frozen(torch.zeros(1, 3, 1)).flatten().tolist() == [1, 2, 7]


@pytest.mark.parametrize(
    ("variant", "cuts", "groups"),
    [
        ("full", 6, ("itself", "reference1", "reference2")),
        ("no_object", 3, ("itself", "reference1", "reference2")),
        ("no_spatial_memory", 4, ("itself", "objects")),
        ("joint", 6, ("objects", "reference1", "reference2", "itself")),
        ("no_temporal_memory", 1, ("itself", "reference1", "reference2")),
    ],
)
def test_every_variant_is_probed_for_what_it_has(videos, variant, cuts, groups) -> None:
    """In a clip where both objects are there from the start, and one where the second enters."""
    first = videos[0].video.masks["00000"]
    mask, _ = read_mask(first)
    save_mask(first, np.where(mask == 2, 0, mask).astype(np.uint8))
    torch.manual_seed(0)
    model = perturbed(build_model(dataclasses.replace(TINY, variant=variant))).eval()
    config = SegmenterConfig(memory_interval=2)
    found = {probe.name: probe for probe in probe_streams(model, videos, config)}
    assert next(iter(found)) == "as trained"
    assert len(found) == 1 + cuts
    assert all(0 <= probe.score.jf <= 100 for probe in found.values())
    trained = found["as trained"]
    assert np.isnan(trained.cosine) == (not model.streams.reads_objects)
    assert trained.look is not None
    assert trained.look.groups == groups
    assert trained.look.shares.shape == (3, len(groups))
    torch.testing.assert_close(trained.look.shares.sum(dim=1), torch.ones(3))
    assert 1 < trained.look.frames <= trained.look.of
    assert (trained.object_shares is not None) == (variant == "full")


def test_a_clip_that_shows_no_object_is_named(videos, tiny_model: STMA) -> None:
    for path in videos[1].video.masks.values():
        save_mask(path, np.zeros((32, 48), np.uint8))
    with pytest.raises(InputError, match="b: no mask shows an object"):
        next(iter(probe_streams(tiny_model, videos, SegmenterConfig())))


def test_in_joint_attention_the_objects_stay_where_references_are_removed() -> None:
    torch.manual_seed(0)
    joint = build_model(dataclasses.replace(TINY, variant="joint")).eval()
    blocks, streams = joint.backbone.last_stage, ReferencesRemoved(joint.streams)
    tokens, references = torch.randn(1, 5, 16), torch.randn(1, 2, 5, 16)
    results = []
    for objects in torch.randn(2, 1, 3, 16):
        prepared = streams.prepare(blocks, references, objects, None)
        results.append(streams.encode(blocks, tokens, prepared))
    assert not torch.allclose(*results)
    again = streams.prepare(blocks, references + 1, objects, None)
    assert torch.equal(results[1], streams.encode(blocks, tokens, again))


def test_cosine_by_hand() -> None:
    tokens = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert pairwise_cosine(tokens) == pytest.approx([0, 0.5**0.5, 0.5**0.5])
    assert pairwise_cosine(tokens[:1]) == []
