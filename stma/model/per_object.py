"""Table 1, "w/o temporal memory": as in SimVOS, one pass of the network for each object.

An object's mask is embedded and added to the tokens of the reference frames; the test frame reads
them in every block, and its own tokens, now specific to that object, are decoded. There are no ID
values, and so neither ID association nor object tokens (ours: ``F_o`` is pooled from ID values,
Eq. 5).
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from stma.memory.video import VideoMemory
from stma.model.association import READ_ALL, Association, Reading
from stma.model.backbone import (
    STRIDE,
    Backbone,
    FrameEmbedding,
    map_to_tokens,
    tokens_to_map,
)
from stma.model.decoder import Decoder, soft_aggregate
from stma.model.object_features import NoObjectFeatures
from stma.model.stma import STMA, Segmentation
from stma.model.streams import Prepared, WithoutObjects
from stma.structures import at_least_fp32


class MaskEmbedding(nn.Module):
    """Embeds an object's mask and the sum of the others', patch by patch, as wide as a token.

    It takes the place of the value encoder; the frame itself is in the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(2, dim, kernel_size=STRIDE, stride=STRIDE)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """``masks (B, N, H, W)`` to ``(B, N, C, h, w)``."""
        others = masks.sum(dim=1, keepdim=True) - masks
        pairs = torch.stack([masks, others], dim=2)
        return self.project(pairs.flatten(0, 1)).unflatten(0, masks.shape[:2])


class PerObjectSTMA(STMA):
    """The network that runs each object on its own; its spatial memory holds tokens per object."""

    def __init__(self, backbone: Backbone, decoder: Decoder) -> None:
        super().__init__(
            backbone=backbone,
            value_encoder=MaskEmbedding(backbone.dim),
            object_features=NoObjectFeatures(),
            association=Association(),  # not called
            decoder=decoder,
            streams=WithoutObjects(),
        )

    def encode(self, frame: FrameEmbedding, memory: VideoMemory) -> Tensor:
        """Nothing: without temporal memory, no key is needed."""
        return frame.tokens[:, :0]

    def prepare(  # type: ignore[override]
        self, memory: VideoMemory, grid: tuple[int, int], *, all_slots: bool = False
    ) -> list:
        """Keys and values of the references, for every group of objects that shares them."""
        prepared = []
        for objects in memory.spatial.object_groups():
            references = memory.spatial.references(objects)  # (B, N', R, L, C)
            flat = rearrange(references, "b n r l c -> (b n) r l c")
            empty = memory.spatial.empty_slots(objects) if all_slots else None
            keys = self.streams.prepare_slots(
                self.backbone.last_stage, flat, None, None, empty, self.backbone.rope(grid)
            )
            prepared.append((references.shape[1], keys))
        return prepared

    def segment(
        self, frame: FrameEmbedding, memory: VideoMemory, reading: Reading = READ_ALL
    ) -> Segmentation:
        """One pass for each object, as a batch; then soft aggregation over all."""
        if memory.prepared is None:
            memory.prepared = self.prepare(memory, frame.grid)
        logits = [self._logits(frame, count, keys) for count, keys in memory.prepared]
        together = at_least_fp32(torch.cat(logits, dim=1))
        return Segmentation(frame.tokens[:, :0], soft_aggregate(together, memory.valid_objects))

    def _logits(self, frame: FrameEmbedding, count: int, keys: Prepared) -> Tensor:
        """Logits ``(B, N', H, W)`` of a group of objects."""

        def for_each(x: Tensor) -> Tensor:
            return repeat(x, "b ... -> (b n) ...", n=count)

        fine = None if frame.fine is None else (for_each(frame.fine[0]), for_each(frame.fine[1]))
        copies = FrameEmbedding(for_each(frame.tokens), frame.grid, fine)
        features = self._encode(copies, keys)
        maps = tokens_to_map(features, frame.grid)
        logits = self.decoder(maps[:, None], maps, self.backbone.fine_features(copies, features))
        return rearrange(logits, "(b n) 1 h w -> b n h w", n=count)

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
        """Write a frame into the spatial memory, once for each object, with its mask."""
        embedded = map_to_tokens(self.value_encoder(images, masks))
        embedded = F.pad(embedded, (0, 0, self.backbone.num_prefix, 0))
        memory.write_references(frame.tokens[:, None] + embedded, pinned=pinned)
