"""The network as five ONNX files, which run without this package.

=================  =========================================================================
part               inputs -> outputs
=================  =========================================================================
``encode``         an image and the cached references -> ``F_t``, finer features,
                   and the tokens with which the frame becomes a reference
``readout``        ``F_t`` and the memory of objects that entered together -> their readout
``decoder``        readouts, ``F_t`` and finer features -> probabilities
``value_encoder``  an image and its masks -> ID values, and a pooled token for each object
``references``     tokens of references and objects -> what ``encode`` reads, once per update
=================  =========================================================================

The application keeps both memories: ``scripts/segment_onnx.py`` does so in NumPy. All sizes are
dynamic, but the batch is always one video.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stma.errors import InputError
from stma.inference.segmenter import SegmenterConfig
from stma.model.association import Reading, affinity_scores, kernelize
from stma.model.backbone import PRETRAINING_GRID, STRIDE, map_to_tokens, pool_tokens, tokens_to_map
from stma.model.decoder import soft_aggregate
from stma.model.stma import STMA
from stma.model.stml import encode_references, encode_test
from stma.model.timm_backbone import facts
from stma.model.weights import load_model, read_weights
from stma.runtime.outputs import check_path, full_disks_told, replacing
from stma.structures import KeyValue

MANIFEST = "stma.json"
NEEDED = (
    "onnx",
    "onnxscript",
    "onnxruntime",
)  # the extra `export`; the last one is for the example
ANY = torch.export.Dim.AUTO


class Encode(nn.Module):
    """``embed`` and ``encode`` of the network."""

    def __init__(self, model: STMA) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.reference_pooling = model.reference_pooling

    def forward(
        self, image: Tensor, cache_keys: Tensor, cache_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``image (1, 3, H, W)``, normalised and padded, and the cache ``(blocks, heads, S, d)``,
        ``S = 0`` with no references, to ``F_t (1, C, h, w)``, the features at strides 8 and 4,
        and the frame's tokens as a reference ``(1, L', C)``."""
        frame = self.backbone.embed(image)
        pairs = zip(cache_keys, cache_values, strict=True)
        cache = [KeyValue(key[None], value[None]) for key, value in pairs]
        tokens = encode_test(self.backbone.last_stage, frame.tokens, cache)
        features = self.backbone.finish(tokens)
        stride8, stride4 = self.backbone.fine_features(frame, features)
        prefix = self.backbone.num_prefix
        reference = pool_tokens(frame.tokens, frame.grid, self.reference_pooling, prefix)
        return tokens_to_map(features, frame.grid), stride8, stride4, reference


class Readout(nn.Module):
    """The ID association of objects that entered at the same frame."""

    def __init__(self, model: STMA, reading: Reading) -> None:
        super().__init__()
        self.similarity = model.association.similarity
        self.reading = reading

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """``F_t (1, C, h, w)`` reads ``keys (1, M, C)`` and ``values (1, M, N, C)``:
        ``(1, N, h * w, C)``, and the weight that each element received from all queries, ``(1,
        M)``."""
        scores = affinity_scores(map_to_tokens(query), keys, self.similarity)
        if self.reading.kernel is not None:
            kernelize([scores], (query.shape[2], query.shape[3]), self.reading.kernel)
        if self.reading.top_k is not None:
            count = torch.sym_min(self.reading.top_k, scores.shape[2])
            least = scores.topk(count, dim=2).values[..., -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        weights = scores.softmax(dim=2)
        readout = (weights @ values.flatten(2)).unflatten(2, values.shape[2:])
        return readout.transpose(1, 2), weights.sum(dim=1)


class Decode(nn.Module):
    """The decoder, and soft aggregation over all objects."""

    def __init__(self, model: STMA) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self, readout: Tensor, features: Tensor, stride8: Tensor, stride4: Tensor
    ) -> Tensor:
        """``readout (1, N, L, C)`` and the outputs of ``Encode`` to ``(1, N+1, H, W)``."""
        grid = (features.shape[2], features.shape[3])
        logits = self.decoder(tokens_to_map(readout, grid), features, (stride8, stride4))
        return soft_aggregate(logits).softmax(dim=1)


class EncodeValues(nn.Module):
    """The value encoder, and the object features of one frame."""

    def __init__(self, model: STMA) -> None:
        super().__init__()
        self.value_encoder = model.value_encoder
        self.object_features = model.object_features

    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """``image (1, 3, H, W)`` and probabilities ``masks (1, N, H, W)`` to values ``(1, h * w,
        N, C)``, as the readout takes them, and pooled tokens ``(1, N, C)``."""
        values = self.value_encoder(image, masks)
        pooled = self.object_features.pool(values, masks)
        return map_to_tokens(values).transpose(1, 2), pooled


class References(nn.Module):
    """The object and the reference streams (Eq. 2 and 3)."""

    def __init__(self, model: STMA) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(model.backbone.last_stage)
        self.object_features = model.object_features

    def forward(self, tokens: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of reference frames ``(1, R, L, C)`` and the maximum of each object's pooled
        tokens ``(1, N, C)`` to the cache: keys and values ``(blocks, heads, R * L, d)``."""
        blocks = list(self.blocks)
        cache, _ = encode_references(blocks, tokens, self.object_features(pooled))  # type: ignore[arg-type]
        return torch.cat([pair.key for pair in cache]), torch.cat([pair.value for pair in cache])


@dataclass(frozen=True)
class Part:
    """One of the files.

    Attributes:
        inputs: examples.
        dynamic: for every input, its dynamic dimensions.
        outputs: their names.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic: tuple[dict[int, Any], ...]
    outputs: list[str]


@dataclass(frozen=True)
class Sizes:
    """Sizes of example inputs: grid ``h, w``, objects, memorised frames, references."""

    height: int = 6
    width: int = 9
    objects: int = 3
    frames: int = 2
    references: int = 2


def parts(model: STMA, settings: SegmenterConfig, sizes: Sizes) -> Iterator[Part]:
    """All parts of a network, in the order of the table above, with random inputs."""
    blocks = model.backbone.last_stage
    heads = blocks[0].attn.num_heads
    dim = model.backbone.dim
    height, width = sizes.height, sizes.width
    tokens = height * width
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    image = random(1, 3, STRIDE * height, STRIDE * width)
    masks = random(1, sizes.objects, STRIDE * height, STRIDE * width).softmax(dim=1)
    shape = (len(blocks), heads, sizes.references * tokens, dim // heads)
    cache = (random(*shape), random(*shape))  # the same tensor twice would become one input
    with torch.no_grad():
        features, stride8, stride4, own = Encode(model)(image, *cache)
        values, pooled = EncodeValues(model)(image, masks)
    yield Part(
        "encode",
        Encode(model),
        (image, *cache),
        ({2: ANY, 3: ANY}, {2: ANY}, {2: ANY}),
        ["features", "stride8", "stride4", "tokens"],
    )
    elements = sizes.frames * tokens
    memory = (random(1, elements, dim), random(1, elements, *values.shape[2:]))
    yield Part(
        "readout",
        Readout(model, settings.reading),
        (features, *memory),
        ({2: ANY, 3: ANY}, {1: ANY}, {1: ANY, 2: ANY}),
        ["readout", "received"],
    )
    yield Part(
        "decoder",
        Decode(model),
        (values.transpose(1, 2), features, stride8, stride4),
        ({1: ANY, 2: ANY}, {2: ANY, 3: ANY}, {2: ANY, 3: ANY}, {2: ANY, 3: ANY}),
        ["probabilities"],
    )
    yield Part(
        "value_encoder",
        EncodeValues(model),
        (image, masks),
        ({2: ANY, 3: ANY}, {1: ANY, 2: ANY, 3: ANY}),
        ["values", "pooled"],
    )
    yield Part(
        "references",
        References(model),
        (own[:, None].repeat(1, sizes.references, 1, 1), pooled),
        ({1: ANY, 2: ANY}, {1: ANY}),
        ["cache_keys", "cache_values"],
    )


def export(weights: str | Path, output: str | Path) -> list[Path]:
    """Write all parts, and ``stma.json`` with what an application must know about them.

    Args:
        weights: see :func:`stma.model.weights.find_weights`.
        output: a folder, created if needed; parts in it are replaced.

    Returns:
        The files.

    Raises:
        InputError: the weights cannot be read, the network's variant cannot be exported, packages
            are missing, or the output cannot be written.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(f"export needs packages that are missing: pip install {' '.join(missing)}")
    config, provenance, _ = read_weights(weights)
    if config.timm is not None and facts(config.timm).rotary:
        raise InputError(
            f"{weights}: the network has the rotary positions of model.timm={config.timm}; only "
            "backbones without can be exported"
        )
    if config.variant != "full":
        raise InputError(
            f"{weights}: the network is the ablation model.variant={config.variant}; only the full "
            "model can be exported"
        )
    model = load_model(weights, "cpu")
    settings = SegmenterConfig(**model.segmenter_settings)
    output = Path(output)
    check_path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output: {output} cannot be made ({error})") from error
    written = []
    with full_disks_told(output), positions_of_any_grid(model):
        for part in parts(model, settings, Sizes()):
            path = output / f"{part.name}.onnx"
            with replacing(path) as partial:
                _write(part, partial)
            written.append(path)
        blocks = model.backbone.last_stage
        manifest = {
            "format": "stma-export-3",
            "parts": [path.name for path in written],
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
            "stride": STRIDE,
            "blocks": len(blocks),
            "heads": blocks[0].attn.num_heads,
            "head_dim": model.backbone.dim // blocks[0].attn.num_heads,
            "enhanced_keys": model.enhanced_keys,
            "segmenter": asdict(settings),
            "model": asdict(config),
            "provenance": provenance,
        }
        with replacing(output / MANIFEST) as partial:
            partial.write_text(json.dumps(manifest, indent=1))
    return [*written, output / MANIFEST]


def _write(part: Part, path: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(part.module.eval(), part.inputs, dynamic_shapes=part.dynamic)
    onnx = torch.onnx.export(program, dynamo=True, output_names=part.outputs, verbose=False)
    assert onnx is not None
    onnx.save(path)


class PositionsOfAnyGrid:
    """Resamples a position embedding within the graph, for any image size: two matrix products,
    since bicubic interpolation is linear and separates rows from columns."""

    def at(
        self, embedding: Tensor, grid: tuple[int, int], old: tuple[int, int] = PRETRAINING_GRID
    ) -> Tensor:
        """See :func:`stma.model.backbone.resample_positions`."""
        table = embedding[:, embedding.shape[1] - old[0] * old[1] :].unflatten(1, old)
        rows, columns = (bicubic(a, b, embedding) for a, b in zip(old, grid, strict=True))
        return torch.einsum("yj,xk,bjkc->byxc", rows, columns, table).flatten(1, 2)


def bicubic(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix ``(new, old)`` of PyTorch's antialiased bicubic interpolation (Keys, a = -0.5)."""
    scale = old / new
    position = torch.arange(old, device=like.device, dtype=like.dtype) + 0.5
    centre = (torch.arange(new, device=like.device, dtype=like.dtype) + 0.5) * scale
    stretch: float = torch.sym_max(scale, 1.0)  # type: ignore[assignment]  # symbolic in export
    x = (position - centre[:, None]).abs() / stretch
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


@contextmanager
def positions_of_any_grid(model: STMA) -> Iterator[None]:
    """A context in which position embeddings are resampled in the graph, not cached per size."""
    kept = model.backbone.positions
    model.backbone.positions = PositionsOfAnyGrid()  # type: ignore[assignment]
    try:
        yield
    finally:
        model.backbone.positions = kept
