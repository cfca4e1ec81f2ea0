"""What each stream carries: the same network with one of them cut at inference.

A good score alone does not show that STML works; the temporal memory can do all of it.
"""

from copy import copy
from dataclasses import dataclass, replace

import torch

from stma.inference.segmenter import SegmenterConfig
from stma.model.stma import STMA
from stma.model.stml import encode_test


def without_objects(model: STMA) -> STMA:
    """The same network, whose object tokens are zero as they enter STML."""
    probe = copy(model)
    features = model.object_features

    class Zeroed(torch.nn.Module):
        pool = features.pool

        def forward(self, pooled: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(features(pooled))

    probe._modules = {**model._modules, "object_features": Zeroed()}
    return probe


def without_references(model: STMA) -> STMA:
    """The same network, whose test frames attend to themselves alone."""

    class Blind(STMA):
        def encode(self, frame, memory):  # type: ignore[no-untyped-def]
            return self.backbone.norm(encode_test(self.backbone.last_stage, frame.tokens, None))

    probe = copy(model)
    probe.__class__ = Blind
    return probe


@dataclass(frozen=True)
class Probe:
    """One way to run a network, and what to call it."""

    name: str
    model: STMA
    config: SegmenterConfig


def probes(model: STMA, config: SegmenterConfig) -> list[Probe]:
    """The network as it is, then with one stream cut at a time."""
    return [
        Probe("as trained", model, config),
        Probe("objects zeroed", without_objects(model), config),
        Probe("references removed", without_references(model), config),
        Probe("memory never updated", model, replace(config, memory_interval=10**9)),
    ]
