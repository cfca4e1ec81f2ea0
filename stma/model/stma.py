"""The network: Eq. 1, one frame at a time, and the unroll of a training clip.

The network holds no state of a video. `embed`, `encode`, `segment` and `memorize` take a
:class:`~stma.memory.video.VideoMemory`; `forward` unrolls the same calls that the segmenter makes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stma.memory.video import VideoMemory
from stma.model.association import READ_ALL, Association, Reading, affinity_scores
from stma.model.backbone import (
    Backbone,
    FrameEmbedding,
    map_to_tokens,
    pad_to_stride,
    pool_tokens,
    tokens_to_map,
)
from stma.model.decoder import Decoder, soft_aggregate
from stma.model.object_features import NoObjectFeatures, ObjectFeatures
from stma.model.streams import FullStreams, Prepared, Streams
from stma.structures import ClipBatch, Prediction, at_least_fp32

# All blocks run the same code, on three streams of several shapes, with and without gradient: about
# 25 graphs. Beyond its limit of 8, dynamo would run the rest eagerly, with a warning.
MAX_GRAPHS = 64


@dataclass(frozen=True)
class Segmentation:
    """The network's output for one frame.

    Attributes:
        features: ``F_t (B, L, C)``, the key under which the frame is memorised.
        logits: ``(B, N+1, H, W)``, background first.
        object_logits: ``(B, N, L)``, how well each token of the frame agrees with each object
            token; None if the variant has none. Only an auxiliary loss reads it (ours).
    """

    features: Tensor
    logits: Tensor
    object_logits: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        """``(B, N+1, H, W)``."""
        return self.logits.softmax(dim=1)


class STMA(nn.Module):
    """Spatial-Temporal Multi-level Association, from built parts.

    Args:
        streams: which tokens read which; the paper's full model by default.
        enhanced_keys: whether the key of a frame that gives objects is recomputed once they are
            known: the frame reads itself and them (ours, off in the paper's model).
        train_reading: how the temporal memory is read in training.
        reference_pooling: a reference keeps the means of squares of so many tokens a side (ours, 1
            in the paper's model).

    Attributes:
        segmenter_settings: segmenter settings that suit the weights, by name (such as
            ``short_side``); they are saved and loaded with the weights.
    """

    mean: Tensor
    std: Tensor
    segmenter_settings: dict[str, Any]

    def __init__(
        self,
        backbone: Backbone,
        value_encoder: nn.Module,
        object_features: ObjectFeatures | NoObjectFeatures,
        association: Association,
        decoder: Decoder,
        streams: Streams | None = None,
        enhanced_keys: bool = False,
        train_reading: Reading = READ_ALL,
        reference_pooling: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.value_encoder = value_encoder
        self.object_features = object_features
        self.association = association
        self.decoder = decoder
        self.streams = streams or FullStreams()
        self.enhanced_keys = enhanced_keys
        self.train_reading = train_reading
        self.reference_pooling = reference_pooling
        self.segmenter_settings = {}
        mean, std = (torch.tensor(values) for values in backbone.normalization)
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    def checkpoint_blocks(self, on: bool = True) -> None:
        """Whether training recomputes the activations of the STML blocks in the backward pass
        instead of keeping them."""
        for block in self.backbone.last_stage:
            block.recompute = on

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile the most expensive parts in place: blocks, value encoder and decoder. The unroll
        of a clip around them stays in Python.

        Args:
            backend: of ``torch.compile``.
        """
        prepare_compiler()
        for block in self.backbone.last_stage:
            block.project = torch.compile(block.project, backend=backend)  # type: ignore[method-assign]
            block.update = torch.compile(block.update, backend=backend)  # type: ignore[method-assign]
        self.value_encoder.compile(backend=backend)
        self.decoder.compile(backend=backend)

    def normalize(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)``, uint8 or float in ``[0, 1]``, as the backbone expects it."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def embed(self, images: Tensor) -> FrameEmbedding:
        """The stages before the last one; they see only the frame itself.

        Args:
            images: ``(B, 3, H, W)`` normalised, H and W multiples of 16.
        """
        return self.backbone.embed(images)

    def reference_tokens(self, frame: FrameEmbedding) -> Tensor:
        """What a frame is as a reference: ``(B, L', C)``."""
        prefix = self.backbone.num_prefix
        return pool_tokens(frame.tokens, frame.grid, self.reference_pooling, prefix)

    def encode(self, frame: FrameEmbedding, memory: VideoMemory) -> Tensor:
        """STML: ``F_t (B, L, C)`` of a frame, given the references and the objects (Eq. 2-4).

        With an empty memory the test stream runs alone, which gives the first frame's key.
        """
        if memory.prepared is None and not memory.is_empty:
            memory.prepared = self.prepare(memory, frame.grid)
        return self._encode(frame, memory.prepared)

    def _encode(self, frame: FrameEmbedding, prepared: Prepared | None) -> Tensor:
        rope = self.backbone.rope(frame.grid)
        tokens = self.streams.encode(self.backbone.last_stage, frame.tokens, prepared, rope)
        return self.backbone.finish(tokens)

    def prepare(
        self, memory: VideoMemory, grid: tuple[int, int], *, all_slots: bool = False
    ) -> Prepared:
        """What all frames until the next memory update will read from references and objects.

        Args:
            grid: of the frames.
            all_slots: as large as with a full queue of references; the empty slots are masked.
        """
        objects = None
        if self.streams.reads_objects:
            objects = self.object_features(memory.temporal.object_tokens, memory.valid_objects)
        return self._prepare(memory, grid, objects, all_slots)

    def _prepare(
        self,
        memory: VideoMemory,
        grid: tuple[int, int],
        objects: Tensor | None,
        all_slots: bool = False,
    ) -> Prepared:
        references = memory.spatial.references() if self.streams.reads_references else None
        empty = memory.spatial.empty_slots() if all_slots else None
        return self.streams.prepare_slots(
            self.backbone.last_stage,
            references,
            objects,
            memory.valid_objects,
            empty,
            self.backbone.rope(grid),
        )

    def _enhance(self, frame: FrameEmbedding, memory: VideoMemory, pooled: Tensor) -> Tensor:
        """``F_t (B, L, C)`` of a frame that is already among the references, given the objects
        known so far and those that it adds, ``pooled (B, N, C)``."""
        objects = None
        if self.streams.reads_objects:
            if memory.temporal.num_objects:
                known = memory.temporal.object_tokens
                pooled = torch.cat(
                    [known.maximum(pooled[:, : known.shape[1]]), pooled[:, known.shape[1] :]], dim=1
                )
            # Not seen by the running mean, which will see the same objects when the next frame
            # reads them.
            objects = self.object_features(pooled, observe=False)
        return self._encode(frame, self._prepare(memory, frame.grid, objects))

    def segment(
        self, frame: FrameEmbedding, memory: VideoMemory, reading: Reading = READ_ALL
    ) -> Segmentation:
        """Eq. 1: ``M_t = decoder(P_mem(STML(F_t, F_r, F_o), memory), F_t^{1/8}, F_t^{1/4})``."""
        features = self.encode(frame, memory)
        readout = self.association(features, memory.temporal, frame.grid, reading)  # (B, N, L, C)
        logits = self.decoder(
            tokens_to_map(readout, frame.grid),
            tokens_to_map(features, frame.grid),
            self.backbone.fine_features(frame, features),
        )
        objects = getattr(memory.prepared, "objects", None)
        object_logits = None
        if self.training and objects is not None:
            # As the masks' logits, never in half precision.
            object_logits = affinity_scores(at_least_fp32(objects), at_least_fp32(features), "dot")
        return Segmentation(
            features, soft_aggregate(at_least_fp32(logits), memory.valid_objects), object_logits
        )

    def memorize(
        self,
        images: Tensor,
        frame: FrameEmbedding,
        features: Tensor,
        masks: Tensor,
        memory: VideoMemory,
        *,
        pinned: bool,
    ) -> None:
        """Write a frame and its masks into both memories.

        Args:
            images: ``(B, 3, H, W)`` normalised, the frame of ``frame``.
            features: its ``F_t (B, L, C)``.
            masks: ``(B, N, H, W)`` probabilities or ground truth; objects not yet in memory enter
                with this frame.
            pinned: whether never to forget the frame, because it first gave an object.
        """
        values = self.value_encoder(images, masks)
        pooled = self.object_features.pool(values, masks)
        if self.streams.reads_references:
            memory.write_references(self.reference_tokens(frame), pinned=pinned)
        if pinned and self.enhanced_keys:
            features = self._enhance(frame, memory, pooled)
        keys = at_least_fp32(features)
        memory.write_values(keys, map_to_tokens(values), pooled, pinned=pinned)

    def forward(self, clip: ClipBatch) -> Prediction:
        """Segment frames ``1..T-1`` of a batch of clips of any size, given the masks of frame 0."""
        num_frames = clip.frames.shape[1]
        num_objects = clip.valid_objects.shape[1]
        height, width = clip.frames.shape[-2:]
        images = pad_to_stride(self.normalize(clip.frames.flatten(0, 1)))
        frames = self.embed(images).frames(num_frames)
        images_by_frame = images.unflatten(0, (-1, num_frames)).unbind(1)
        first_masks = F.one_hot(clip.masks[:, 0].long(), num_objects + 1)[..., 1:].permute(
            0, 3, 1, 2
        )

        reading = self.train_reading if self.training else READ_ALL
        # Without a mask, attention takes its fastest implementation.
        memory = VideoMemory(valid_objects=clip.valid_objects if clip.has_padding else None)
        features = self.encode(frames[0], memory)
        masks = pad_to_stride(first_masks.to(images.dtype))
        logits = []
        object_logits = []
        for t in range(1, num_frames):
            self.memorize(
                images_by_frame[t - 1], frames[t - 1], features, masks, memory, pinned=t == 1
            )
            # With one frame in memory there is one reference, not the same frame twice.
            if self.streams.reads_references:
                memory.select_references(clip.references[:, t, : min(t, clip.references.shape[2])])
            segmentation = self.segment(frames[t], memory, reading)
            features = segmentation.features
            logits.append(segmentation.logits[..., :height, :width])
            if segmentation.object_logits is not None:
                object_logits.append(segmentation.object_logits.unflatten(2, frames[t].grid))
            masks = pad_to_stride(logits[-1].softmax(dim=1)[:, 1:])
        return Prediction(
            torch.stack(logits, dim=1), torch.stack(object_logits, dim=1) if object_logits else None
        )


def prepare_compiler(max_graphs: int = MAX_GRAPHS) -> None:
    """Allow as many graphs as a network needs; before anything is compiled."""
    from torch._dynamo import config  # slow to import, and few need it

    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        name = limit if hasattr(config, limit) else limit.replace("recompile", "cache_size")
        setattr(config, name, max(max_graphs, getattr(config, name)))
    # DDP would split graphs at its buckets' ends, which torch 2.6 cannot do when activations are
    # recomputed. The compiled parts are smaller than buckets anyway.
    config.optimize_ddp = False
