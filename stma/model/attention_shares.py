"""Where the test stream looks: the share of its attention that goes to each group of keys."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from stma.model.variants import Blocks, JointTokens, Others, Prepared
from stma.structures import KeyValue


@torch.no_grad()
def attention_shares(
    blocks: Blocks,
    tokens: Tensor,
    prepared: Prepared | None,
    segments: Sequence[int],
) -> Tensor:
    """Run the test stream once more and add up its attention.

    Args:
        tokens: ``(B, L, C)`` of the test frame as they enter the blocks.
        prepared: what it reads beside its own, see :mod:`stma.model.variants`.
        segments: lengths of the groups of what is prepared, in its order (``L`` for each
            reference).

    Returns:
        ``(blocks, 1 + groups)``: the share of the frame's own tokens first; a row adds up to 1.
        Mean over clips, heads and tokens.
    """
    own = tokens.shape[1]
    rows = []
    for index, block in enumerate(blocks):
        if isinstance(prepared, JointTokens):
            # Its own tokens first here, so that the groups have one order everywhere.
            sequence = tokens if index else torch.cat([tokens, prepared.tokens], dim=1)
            query, keys = block.project(sequence)
            others_mask = prepared.mask
        else:
            sequence = tokens
            query, keys = block.project(sequence)
            others_mask = None
            if isinstance(prepared, Others):
                keys = KeyValue.concatenate(keys, prepared.keys[index])
                others_mask = prepared.mask
        mask = None
        if others_mask is not None:
            visible = others_mask.new_ones(others_mask.shape[0], own)
            mask = rearrange(torch.cat([visible, others_mask], dim=1), "b s -> b 1 1 s")
        scores = query[:, :, :own] @ keys.key.transpose(2, 3) / math.sqrt(query.shape[3])
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        received = scores.float().softmax(dim=3).mean(dim=(0, 1, 2))  # (S,)
        rows.append(torch.stack([part.sum() for part in received.split([own, *segments])]))
        tokens = block.update(sequence, query, keys, mask)
    return torch.stack(rows)
