import numpy as np
import pytest
import torch
from conftest import make_batch

from stma.data.procedural import SceneConfig, procedural_clip
from stma.data.video_folder import find_videos
from stma.inference.benchmarks import EvalClip
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.inference.streams import (
    objects_zeroed,
    pairwise_cosine,
    probe_streams,
    references_removed,
)
from stma.model.stma import STMA
from stma.pictures import save_clip


@pytest.fixture
def videos(tmp_path):
    config = SceneConfig(min_objects=2, max_objects=2)
    for name, seed in (("a", 0), ("b", 3)):
        rng = np.random.default_rng(seed)
        frames, masks, _ = procedural_clip(config, (32, 48), np.arange(7.0), rng)
        save_clip(tmp_path, name, frames, masks, ".png")
    return [EvalClip(video) for video in find_videos(tmp_path)]


def second_frame(model: STMA) -> torch.Tensor:
    clip = make_batch(num_frames=3, size=32)
    frames = clip.frames[0].permute(0, 2, 3, 1).numpy()
    segmenter = Segmenter(model, SegmenterConfig(memory_interval=1))
    segmenter.step(frames[0], clip.masks[0, 0].numpy())
    segmenter.step(frames[1])
    return segmenter.step(frames[2]).probabilities


def test_cuts_change_the_result_and_leave_the_model_as_it_was(tiny_model: STMA) -> None:
    whole = second_frame(tiny_model)
    with objects_zeroed(tiny_model):
        no_objects = second_frame(tiny_model)
    with references_removed(tiny_model):
        no_references = second_frame(tiny_model)
        with objects_zeroed(tiny_model):
            neither = second_frame(tiny_model)
    assert not torch.allclose(whole, no_objects, atol=1e-9)
    assert not torch.allclose(whole, no_references, atol=1e-9)
    assert not torch.allclose(no_objects, no_references, atol=1e-9)
    assert torch.equal(no_references, neither)  # objects reach the test frame by references alone
    assert torch.equal(whole, second_frame(tiny_model))


def test_every_probe_gives_scores_and_a_cosine(tiny_model: STMA, videos) -> None:
    found = {probe.name: probe for probe in probe_streams(tiny_model, videos, SegmenterConfig())}
    assert next(iter(found)) == "as trained"
    assert len(found) == 5
    assert all(0 <= probe.score.jf <= 100 for probe in found.values())
    assert -1 <= found["as trained"].cosine < 1
    assert np.isnan(found["references removed"].cosine)  # no object token is made at all


def test_cosine_by_hand() -> None:
    tokens = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert pairwise_cosine(tokens) == pytest.approx([0, 0.5**0.5, 0.5**0.5])
    assert pairwise_cosine(tokens[:1]) == []
