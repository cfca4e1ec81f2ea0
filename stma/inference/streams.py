"""What each stream carries: the same network, with one stream cut at inference.

A good score alone does not show that STML works, since the temporal memory can do all the work.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stma.data.images import read_image
from stma.inference.benchmarks import EvalClip, only_new_objects
from stma.inference.scoring import ClipScorer, ObjectScore, Score, summarize
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.memory.video import VideoMemory
from stma.model.backbone import FrameEmbedding
from stma.model.stma import STMA
from stma.model.stml import encode_test

NEVER = 10**9


@dataclass(frozen=True)
class Probe:
    """What one way of running the network gives.

    Attributes:
        name: what was cut.
        score: J, F and J&F, means over the objects of all videos.
        cosine: mean cosine between ``F_o`` of two objects of one frame; NaN without such pairs.
    """

    name: str
    score: Score
    cosine: float


def probe_streams(
    model: STMA, clips: Sequence[EvalClip], config: SegmenterConfig
) -> Iterator[Probe]:
    """Segment fully annotated clips as trained, then with one stream cut at a time."""
    frozen = replace(config, memory_interval=NEVER)
    yield _probe("as trained", model, clips, config)
    with objects_zeroed(model):
        yield _probe("objects zeroed", model, clips, config)
    with references_removed(model):
        yield _probe("references removed", model, clips, config)
    with objects_zeroed(model), references_removed(model):
        yield _probe("neither (temporal memory alone)", model, clips, config)
    yield _probe("memory never updated", model, clips, frozen)


@contextmanager
def objects_zeroed(model: STMA) -> Iterator[None]:
    """``F_o`` is zero as it enters STML."""
    handle = model.object_features.register_forward_hook(
        lambda module, inputs, output: torch.zeros_like(output)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def references_removed(model: STMA) -> Iterator[None]:
    """Test frames attend to themselves alone; the objects then reach nothing either."""

    def encode(frame: FrameEmbedding, memory: VideoMemory) -> Tensor:
        tokens = encode_test(model.backbone.last_stage, frame.tokens, None)
        return model.backbone.norm(tokens)

    model.encode = encode  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.encode


def pairwise_cosine(tokens: Tensor) -> list[float]:
    """The cosine of every pair of objects; ``tokens (N, C)``."""
    return [
        F.cosine_similarity(tokens[a], tokens[b], dim=0).item()
        for a, b in combinations(range(tokens.shape[0]), 2)
    ]


def _probe(name: str, model: STMA, clips: Sequence[EvalClip], config: SegmenterConfig) -> Probe:
    cosines: list[float] = []
    # The output of `object_features` is F_o as it enters the first block: (1, N, C).
    handle = model.object_features.register_forward_hook(
        lambda module, inputs, output: cosines.extend(pairwise_cosine(output[0]))
    )
    try:
        scores = [score for clip in clips for score in _score(model, clip, config)]
    finally:
        handle.remove()
    cosine = float(np.mean(cosines)) if cosines else float("nan")
    return Probe(name, summarize(scores)[-1], cosine)


def _score(model: STMA, clip: EvalClip, config: SegmenterConfig) -> list[ObjectScore]:
    """Segment a clip and score it, without a file in between."""
    segmenter = Segmenter(model, config)
    scorer = ClipScorer(clip)
    for index, path in enumerate(clip.frames):
        truth, _ = clip.read_mask(path.stem)
        result = segmenter.step(read_image(path), only_new_objects(truth, segmenter.ids))
        if index in scorer.indices:
            scorer.feed(index, result.mask, truth)
    return scorer.conclude()
