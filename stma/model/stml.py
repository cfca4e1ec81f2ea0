"""STML, the spatial-temporal multi-level association block (Eq. 2-4).

Three streams run through every last-stage block, with that block's own weights:

=============================  ==============  =========================  ========
stream                         queries         keys and values            equation
=============================  ==============  =========================  ========
object self-attention          ``F_o``         ``F_o``                    2
reference-object enhancement   ``F_r^i``       ``[F_r^i ; F_o]``          3
test-reference correlation     ``F_t``         ``[F_t ; F_r^1 .. F_r^m]``  4
=============================  ==============  =========================  ========

Information flows objects -> references -> test and never back, so the keys and values of the
references do not depend on the test frame: `encode_references` computes them once per memory
update and `encode_test` reads them. :mod:`stma.model.streams` has the ablations of Table 1.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from stma.model.attention import BlockInHalves
from stma.structures import KeyValue, Rope

ReferenceCache = list[KeyValue]
"""The keys and values of all references for every block, ``(B, heads, R * L, d)``."""


def encode_references(
    blocks: Sequence[BlockInHalves],
    references: Tensor,
    objects: Tensor | None,
    valid_objects: Tensor | None = None,
    rope: Rope | None = None,
) -> tuple[ReferenceCache, Tensor | None]:
    """Run the object and the reference streams and keep what the test stream will read.

    Args:
        references: ``(B, R, L, C)`` tokens of the reference frames as they enter the blocks.
        objects: ``(B, N, C)`` object tokens as they enter the blocks; None leaves them out, and
            references read only themselves (Table 1, "w/o object").
        valid_objects: ``(B, N)`` bool; False hides a padded object from every stream.
        rope: of a frame's tokens; None for a backbone without. Objects have no place.

    Returns:
        The cache, and the object tokens as they enter the last block, ``(B, N, C)``.
    """
    num_references, num_tokens = references.shape[1:3]
    references = rearrange(references, "b r l c -> (b r) l c")
    object_mask = reference_mask = None
    if objects is not None and valid_objects is not None:
        object_mask = rearrange(valid_objects, "b n -> b 1 1 n")
        own_tokens = valid_objects.new_ones(valid_objects.shape[0], num_tokens)
        reference_mask = repeat(
            torch.cat([own_tokens, valid_objects], dim=-1),
            "b s -> (b r) 1 1 s",
            r=num_references,
        )

    ropes: Sequence[Tensor | None] = rope or [None] * len(blocks)
    cache: ReferenceCache = []
    for index, block in enumerate(blocks):
        reference_query, reference_keys = block.project(references, ropes[index])
        cache.append(
            KeyValue(
                *(
                    rearrange(x, "(b r) nh l d -> b nh (r l) d", r=num_references)
                    for x in reference_keys
                )
            )
        )
        if index + 1 == len(blocks):
            break  # nothing would read the last block's output
        if objects is None:
            references = block.update(references, reference_query, reference_keys)
            continue
        # Eq. 3 before Eq. 2: both read the object keys of this block's input.
        object_query, object_keys = block.project(objects)
        shared_objects = KeyValue(
            *(repeat(x, "b nh n d -> (b r) nh n d", r=num_references) for x in object_keys)
        )
        references = block.update(  # Eq. 3
            references,
            reference_query,
            KeyValue.concatenate(reference_keys, shared_objects),
            reference_mask,
        )
        objects = block.update(objects, object_query, object_keys, object_mask)  # Eq. 2
    return cache, objects


def encode_test(
    blocks: Sequence[BlockInHalves],
    tokens: Tensor,
    others: ReferenceCache | None,
    others_mask: Tensor | None = None,
    rope: Rope | None = None,
) -> Tensor:
    """Run the test stream (Eq. 4): ``tokens (B, L, C)`` read themselves and all references.

    Args:
        others: keys and values to read besides the tokens' own; with None (the very first frame)
            they read only themselves.
        others_mask: ``(B, S)`` bool; False hides one of the others.
        rope: of the frame's tokens.
    """
    mask = None
    if others_mask is not None:
        own = others_mask.new_ones(others_mask.shape[0], tokens.shape[1])
        mask = rearrange(torch.cat([own, others_mask], dim=1), "b s -> b 1 1 s")
    ropes: Sequence[Tensor | None] = rope or [None] * len(blocks)
    for index, block in enumerate(blocks):
        query, keys = block.project(tokens, ropes[index])
        if others is not None:
            keys = KeyValue.concatenate(keys, others[index])
        tokens = block.update(tokens, query, keys, mask)
    return tokens
