"""What each stream carries: the same weights, with one stream cut at inference.

A good score alone does not show that STML works, since the temporal memory can do all the work.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stma.data.images import read_image
from stma.errors import InputError
from stma.evaluation.benchmarks import EvalClip, only_new_objects
from stma.evaluation.scoring import ClipScorer, ObjectScore, Score, summarize
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.memory.video import VideoMemory
from stma.model.per_object import PerObjectSTMA
from stma.model.probing import Cut, Look, Watched, mean_look, mean_shares, with_streams
from stma.model.stma import STMA
from stma.model.streams import Blocks, JointSelfAttention, JointTokens, Prepared, Streams
from stma.runtime.opencv import cv2
from stma.structures import Rope

Change = Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class Probe:
    """The result of running the network in one way.

    Attributes:
        name: what was cut.
        score: J, F and J&F, means over the objects of all clips.
        cosine: mean cosine between ``F_o`` of two objects of one frame; NaN without such pairs.
        look: where the test stream's attention goes; None if not measured.
        object_shares: the share of the references' attention that all objects together receive in
            every block but the last; None if not measured, or if references read no objects.
    """

    name: str
    score: Score
    cosine: float
    look: Look | None = None
    object_shares: Tensor | None = None


class Changed(Cut):
    """The tokens of objects ``(1, N, C)`` or of references ``(1, R, L, C)`` go through a function
    before they enter the blocks."""

    def __init__(self, inner: Streams, objects: Change = None, references: Change = None) -> None:
        super().__init__(inner)
        self._changes = objects or _same, references or _same

    def objects(self, objects: Tensor) -> Tensor:
        return self._changes[0](objects)

    def references(self, references: Tensor) -> Tensor:
        return self._changes[1](references)


def _same(tokens: Tensor) -> Tensor:
    return tokens


def as_first_seen() -> Callable[[Tensor], Tensor]:
    """For :class:`Changed`: every object keeps the token of the frame that first gave it."""
    kept: list[Tensor] = []

    def freeze(objects: Tensor) -> Tensor:
        kept.extend(objects[:, len(kept) :].unbind(dim=1))
        return torch.stack(kept, dim=1)

    return freeze


class ReferencesRemoved(Cut):
    """The test frame reads only itself; nor do the objects reach it, since they do so through the
    references. In joint self-attention it still reads the objects."""

    def prepare(
        self,
        blocks: Blocks,
        references: Tensor | None,
        objects: Tensor | None,
        valid_objects: Tensor | None,
        rope: Rope | None = None,
    ) -> Prepared:
        if references is not None and isinstance(self.inner, JointSelfAttention):
            references = references[:, :0]
        return super().prepare(blocks, references, objects, valid_objects, rope)

    def encode(
        self,
        blocks: Blocks,
        tokens: Tensor,
        prepared: Prepared | None,
        rope: Rope | None = None,
    ) -> Tensor:
        read = prepared if isinstance(prepared, JointTokens) else None
        return self.inner.encode(blocks, tokens, read, rope)


class FrozenTemporal(VideoMemory):
    """A memory whose temporal part stores only the frames that first give an object."""

    def write_values(self, keys: Tensor, values: Tensor, pooled: Tensor, *, pinned: bool) -> None:
        if pinned:
            super().write_values(keys, values, pooled, pinned=pinned)


def probe_streams(
    model: STMA, clips: Sequence[EvalClip], config: SegmenterConfig
) -> Iterator[Probe]:
    """Segment fully annotated clips as trained, then with one stream cut at a time.

    Cuts of what a variant lacks are left out, and so are cuts that need another clip if there is
    only one. Without temporal memory, references carry the masks of objects, so another clip's
    references would bring its objects too; that cut is left out.

    Raises:
        InputError: a clip shows no object.
    """
    for clip in clips:
        if not any(clip.read_mask(path.stem)[0].any() for path in clip.frames):
            raise InputError(f"{clip.name}: no mask shows an object, so nothing can be segmented")
    watched = Watched(model.streams)
    plain = _probe("as trained", model, clips, config, lambda inner, clip: watched)
    look, received = mean_look(watched.looks), mean_shares(watched.object_shares)
    yield Probe(plain.name, plain.score, plain.cosine, look, received)

    def other(clip: EvalClip) -> EvalClip:
        return clips[(list(clips).index(clip) + 1) % len(clips)]

    def foreign_objects(inner: Streams, clip: EvalClip) -> Cut:
        # Swapping objects with one another changes nothing: the streams read them as a set.
        tokens = object_tokens(model, config, other(clip))
        return Changed(inner, objects=lambda objects: tokens)

    def foreign_references(inner: Streams, clip: EvalClip) -> Cut:
        tokens = frame_tokens(model, config, other(clip), like=clip)[:, None]
        return Changed(inner, references=lambda references: tokens.expand_as(references))

    per_object = isinstance(model, PerObjectSTMA)
    cuts: dict[str, Callable[[Streams, EvalClip], Cut]] = {}
    if model.streams.reads_objects:
        cuts["objects zeroed"] = lambda inner, clip: Changed(inner, torch.zeros_like)
        cuts["objects as first seen"] = lambda inner, clip: Changed(inner, as_first_seen())
        if len(clips) > 1:
            cuts["another clip's objects"] = foreign_objects
    if model.streams.reads_references:
        cuts["references removed"] = lambda inner, clip: ReferencesRemoved(inner)
        if len(clips) > 1 and not per_object:
            cuts["another clip's references"] = foreign_references
    for name, cut in cuts.items():
        yield _probe(name, model, clips, config, cut)
    if not per_object:
        yield _probe("temporal memory never updated", model, clips, config, frozen=True)


def frame_tokens(model: STMA, config: SegmenterConfig, clip: EvalClip, like: EvalClip) -> Tensor:
    """A clip's first frame as a reference ``(1, L', C)``, at the size of another clip's frames."""
    height, width = read_image(like.frames[0]).shape[:2]
    frame = cv2.resize(read_image(clip.frames[0]), (width, height), interpolation=cv2.INTER_AREA)
    with torch.inference_mode():
        image, _ = Segmenter(model, config).network_input(frame)
        return model.reference_tokens(model.embed(image))


def object_tokens(model: STMA, config: SegmenterConfig, clip: EvalClip) -> Tensor:
    """``F_o (1, N, C)`` of a clip's first objects."""
    segmenter = Segmenter(model, config)
    for path in clip.frames:
        truth, _ = clip.read_mask(path.stem)
        if truth.any():
            segmenter.step(read_image(path), truth)
            break
    with torch.inference_mode():
        return model.object_features(segmenter.memory.temporal.object_tokens)


def pairwise_cosine(tokens: Tensor) -> list[float]:
    """The cosine of every pair of objects; ``tokens (N, C)``."""
    return [
        F.cosine_similarity(tokens[a], tokens[b], dim=0).item()
        for a, b in combinations(range(tokens.shape[0]), 2)
    ]


def _probe(
    name: str,
    model: STMA,
    clips: Sequence[EvalClip],
    config: SegmenterConfig,
    change: Callable[[Streams, EvalClip], Streams] = lambda inner, clip: inner,
    *,
    frozen: bool = False,
) -> Probe:
    cosines: list[float] = []
    # The output of `object_features` is F_o as it enters the first block: (1, N, C).
    handle = model.object_features.register_forward_hook(
        lambda module, inputs, output: cosines.extend(pairwise_cosine(output[0]))
    )
    scores: list[ObjectScore] = []
    try:
        for clip in clips:
            with with_streams(model, change(model.streams, clip)):
                scores += _score(model, clip, config, frozen=frozen)
    finally:
        handle.remove()
    cosine = float(np.mean(cosines)) if cosines else float("nan")
    return Probe(name, summarize(scores)[-1], cosine)


def _score(
    model: STMA, clip: EvalClip, config: SegmenterConfig, *, frozen: bool
) -> list[ObjectScore]:
    """Segment a clip and score it, without a file in between."""
    segmenter = Segmenter(model, config)
    if frozen:
        segmenter.memory = FrozenTemporal(segmenter.memory.spatial, segmenter.memory.temporal)
    scorer = ClipScorer(clip)
    for index, path in enumerate(clip.frames):
        truth, _ = clip.read_mask(path.stem)
        result = segmenter.step(read_image(path), only_new_objects(truth, segmenter.ids))
        if index in scorer.indices:
            scorer.feed(index, result.mask, truth)
    return scorer.conclude()
