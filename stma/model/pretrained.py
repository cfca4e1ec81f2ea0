"""Public pretrained backbones: ConvMAE, MAE, MoCo v3 and DINOv2 checkpoints, in our names.

Each format has a pure function ``convert_*(state) -> state``. What a format is known to hold
besides its backbone (decoders, heads, mask tokens) is dropped; all else that does not fit is an
error.
"""

import argparse
import json
import logging
import math
import pickle
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import ne
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from stma.errors import InputError
from stma.model.backbone import (
    PRETRAINING_GRID,
    STRIDE,
    Backbone,
    Normalization,
    sinusoidal_position_embedding,
)
from stma.model.convvit import ConvViT
from stma.model.timm_backbone import TimmStages, TimmViT, create, facts
from stma.model.vit import ViT
from stma.model.weights import FORMAT, is_pickle

log = logging.getLogger(__name__)

State = dict[str, Tensor]
TIMM = "timm"  # in place of a file: timm's own download

CLASS_TOKEN = "cls_token"
WITHOUT_CLASS_TOKEN = "model.class_token=false is the network without it"
FIRST_BLOCK = "blocks.0.attn.qkv.weight"
PARALLEL = "module."
# MoCo v3's own linear probe and conversion use the base encoder.
MOCO_PREFIXES = ("base_encoder.", "momentum_encoder.")
# The part of ConvMAE's decoder that reads stages 1 and 2: its fine-tuning leaves it out too.
CONVMAE_DROPPED = re.compile(r"decoder_|mask_token$|stage[12]_output_decode\.|head\.|fc_norm\.")
VIT_DROPPED = re.compile(r"decoder_|mask_token$|register_tokens$|reg_token$|head\.|fc_norm\.")
LAYER_SCALE = re.compile(r"(blocks\.\d+\.)(ls[12])\.gamma")
SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
SHOWN = 8  # names in an error
# Everything that the unpickler raises on a damaged file.
DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
)


def convert_convmae(state: Mapping[str, Tensor]) -> State:
    """ConvMAE (Gao et al., 2022), pretrained with or without its decoder, or fine-tuned."""
    return _positions_resized(_without(state, CONVMAE_DROPPED))


def convert_mae(state: Mapping[str, Tensor]) -> State:
    """MAE (He et al., 2022) with or without its decoder, fine-tuned, or any ViT with its names.

    The class token's position is added to it.
    """
    return _positions_resized(_without(state, VIT_DROPPED))


def convert_moco_v3(state: Mapping[str, Tensor]) -> State:
    """MoCo v3 (Chen et al., 2021): the base encoder, or the momentum encoder if there is no other,
    or a bare encoder, as its linear probe and conversion write it."""
    state = _unwrapped(state)
    prefix = _moco_prefix(state)
    names = [name for name in state if name.startswith(prefix)]
    return convert_mae({name.removeprefix(prefix): state[name] for name in names})


def convert_dinov2(state: Mapping[str, Tensor]) -> State:
    """DINOv2 (Oquab et al., 2024): LayerScale is folded into the layers before it, and the patch
    projection resized from 14 to 16 pixels."""
    converted = {name: tensor.float() for name, tensor in convert_mae(state).items()}
    for name in list(converted):
        if match := LAYER_SCALE.fullmatch(name):
            gamma = converted.pop(name)
            layer = match[1] + SCALED[match[2]]
            for part, factor in (("weight", gamma[:, None]), ("bias", gamma)):
                if f"{layer}.{part}" in converted:
                    converted[f"{layer}.{part}"] = converted[f"{layer}.{part}"] * factor
    projection = converted.get("patch_embed.proj.weight")
    if projection is not None:
        # By FlexiViT's pseudo-inverse: a patch enlarged bicubically gives the same token.
        converted["patch_embed.proj.weight"] = resample_patch_embed(projection, [STRIDE, STRIDE])
    return converted


@dataclass(frozen=True)
class Format:
    """A kind of public checkpoint: how to recognise it by its names, and what it is for."""

    name: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[[Mapping[str, Tensor]], State]
    backbone: type[Backbone]


FORMATS = (
    Format("ConvMAE", lambda s: "blocks3.0.attn.qkv.weight" in s, convert_convmae, ConvViT),
    Format("MoCo v3 ViT", lambda s: _is_moco_v3(s), convert_moco_v3, ViT),
    Format("DINOv2 ViT", lambda s: "blocks.0.ls1.gamma" in s, convert_dinov2, ViT),
    Format("MAE ViT", lambda s: _is_mae(s), convert_mae, ViT),
    Format("ViT", lambda s: FIRST_BLOCK in s, convert_mae, ViT),
)


def load_pretrained(backbone: Backbone, path: str | Path) -> None:
    """Load a public checkpoint into a backbone; logs what was kept, dropped, changed and is new.

    Args:
        path: ``timm`` for timm's own download, if the backbone is timm's; ``.safetensors``; or
            ``.pth``, of which only tensors, plain values and
            ``argparse.Namespace`` (MAE's settings) are unpickled.

    Raises:
        InputError: no such file, damaged, none of the formats, or of another architecture or size;
            the message names the file and what it holds. The backbone is unchanged.
    """
    if isinstance(backbone, TimmViT | TimmStages):
        return _load_timm(backbone, path)
    state, kind = _recognise(path)
    expected, own = normalization_of(path), backbone.normalization
    if expected is not None and any(map(ne, chain(*expected), chain(*own))):
        mean, std = (list(values) for values in expected)
        raise InputError(
            f"{path}: expects frames of mean {mean} and standard deviation {std}; set "
            f"model.mean={mean} model.std={std}".replace(", ", ",")
        )
    if not isinstance(backbone, kind.backbone):
        hint = "model=convvit_b" if kind.backbone is ConvViT else "model=vit_b"
        raise InputError(
            f"{path}: a {kind.name} checkpoint, but the model's backbone is a "
            f"{type(backbone).__name__}; set {hint}, or give another file"
        )
    try:
        converted = kind.convert(state)
    except (InputError, RuntimeError) as error:  # shapes that no ViT has
        raise InputError(f"{path}: a {kind.name} checkpoint, but {error}") from error
    if not backbone.num_prefix:
        converted.pop(CLASS_TOKEN, None)
    new = check_fits(
        backbone,
        converted,
        fine_tuned="fc_norm.weight" in state,
        source=f"{path}: a {kind.name} checkpoint",
    )
    damaged = [
        name
        for name, tensor in converted.items()
        if not (tensor.is_floating_point() and tensor.isfinite().all())
    ]
    if damaged:
        raise InputError(
            f"{path}: {_first(damaged)}: not all numbers are finite; the file is damaged"
        )
    backbone.load_state_dict(converted, strict=False)  # what is missing has been checked
    for line in summary(state, converted, new):
        log.info("%s: %s checkpoint: %s", path, kind.name, line)


def normalization_of(path: str | Path) -> Normalization | None:
    """What timm says of a file, in a config.json beside it or by its name; None if nothing."""
    import timm

    path = Path(path)
    try:
        config = json.loads((path.parent / "config.json").read_text())["pretrained_cfg"]
        return config["mean"], config["std"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    known = timm.get_pretrained_cfg(path.stem) if timm.is_model(path.stem) else None
    return None if known is None else (known.mean, known.std)


def _load_timm(backbone: TimmViT | TimmStages, path: str | Path) -> None:
    """Load a backbone's own part; timm converts and resamples it."""
    options = dict(facts(backbone.name).options)
    if str(path) != TIMM:
        if not Path(path).is_file():
            raise InputError(
                f"{path}: no such weights file; pretrained={TIMM} is timm's own download"
            )
        options["pretrained_cfg_overlay"] = {"file": str(path)}
    own = backbone.vit if isinstance(backbone, TimmViT) else backbone.network
    names = own.state_dict()
    try:
        theirs = create(backbone.name, pretrained=True, **options).state_dict()
        own.load_state_dict({name: x for name, x in theirs.items() if name in names})
    except (*DAMAGED, SafetensorError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise InputError(f"{path}: no weights of timm's {backbone.name} ({reason})") from error
    log.info("%s: %d tensors of timm's %s", path, len(names), backbone.name)


def kind_of(path: str | Path) -> str:
    """The name of a file's format in :data:`FORMATS`.

    Raises:
        InputError: as :func:`load_pretrained`.
    """
    return _recognise(path)[1].name


def _recognise(path: str | Path) -> tuple[State, Format]:
    state = _unwrapped(read_public_checkpoint(path))
    kind = next((kind for kind in FORMATS if kind.recognises(state)), None)
    if kind is None:
        raise InputError(
            f"{path}: none of the known checkpoints ({', '.join(kind.name for kind in FORMATS)}); "
            f"its {len(state)} tensors are {_first(state)}"
        )
    return state, kind


def check_fits(
    backbone: Backbone, converted: Mapping[str, Tensor], *, fine_tuned: bool, source: str
) -> list[str]:
    """The names that a converted checkpoint does not fill: our own parts.

    Args:
        fine_tuned: the final norm may be missing too; its replacement, ``fc_norm``, is for features
            averaged over all tokens.

    Raises:
        InputError: a tensor is missing, unexpected or of another shape.
    """
    own = backbone.state_dict()
    new = [name for name in own if name not in converted]
    problems = [
        f"shape of {name}: {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model"
        for name, tensor in converted.items()
        if name in own and own[name].shape != tensor.shape
    ]
    problems += [
        f"missing: {name}" + (f" ({WITHOUT_CLASS_TOKEN})" if name == CLASS_TOKEN else "")
        for name in new
        if not name.startswith(backbone.added) and not (fine_tuned and name.startswith("norm."))
    ]
    problems += [f"unexpected: {name}" for name in converted if name not in own]
    if problems:
        rest = len(problems) - SHOWN
        shown = problems[:SHOWN] + ([f"and {rest} more"] if rest > 0 else [])
        raise InputError(
            f"{source} whose size or architecture differs from the model's backbone\n  "
            + "\n  ".join(shown)
        )
    return new


def summary(
    state: Mapping[str, Tensor], converted: Mapping[str, Tensor], new: Iterable[str]
) -> list[str]:
    """What became of a checkpoint, in a few lines: counts of tensors by prefix of their names."""
    prefix = _moco_prefix(state)
    sources = {prefix + name for name in converted}
    folded = [name for name in state if LAYER_SCALE.fullmatch(name)]
    dropped = [name for name in state if name not in sources and name not in folded]
    changed = [
        f"{name} {tuple(state[prefix + name].shape)} to {tuple(tensor.shape)}"
        for name, tensor in converted.items()
        if state[prefix + name].shape != tensor.shape
    ]
    lines = [f"kept {len(converted)} of {len(state)} tensors" + (f" ({prefix}*)" if prefix else "")]
    for label, names in (("dropped", dropped), ("folded", folded), ("new", list(new))):
        if names:
            lines.append(f"{label} {len(names)}: {_heads(names)}")
    return lines + [f"resized: {change}" for change in changed]


def read_public_checkpoint(path: str | Path) -> State:
    """The tensors of a file, on the CPU; under the key ``model`` or ``state_dict`` if it has one.

    Raises:
        InputError: there is no such file, it is damaged, holds no tensors, or holds something that
            cannot be unpickled safely.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    loaded = _unpickled(path) if is_pickle(path) else _safetensors(path)
    if isinstance(loaded, Mapping):
        there = f"has {_first(loaded)}"
        inner = (loaded.get(name) for name in ("model", "state_dict"))
        loaded = next((value for value in inner if isinstance(value, Mapping)), loaded)
        if tensors := {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}:
            return tensors
    else:
        there = f"is a {type(loaded).__name__}"
    raise InputError(f"{path}: no tensors by name, nor under 'model' or 'state_dict'; it {there}")


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        # torch's own message tells how to load it unsafely.
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(
                f"{path}: holds {match[1]}, which can run code when loaded; save only its tensors, "
                "as .safetensors"
            ) from error
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{path}: not a complete torch.save file ({reason})") from error


def _safetensors(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                raise InputError(f"{path}: a complete STMA model; give it as weights=")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            f"{path}: neither a torch.save file nor a complete safetensors file ({error})"
        ) from error


def _unwrapped(state: Mapping[str, Tensor]) -> State:
    """Without DataParallel's prefix to every name."""
    if not all(name.startswith(PARALLEL) for name in state):
        return dict(state)
    return {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}


def _without(state: Mapping[str, Tensor], dropped: re.Pattern[str]) -> State:
    return {n: tensor for n, tensor in _unwrapped(state).items() if not dropped.match(n)}


def _positions_resized(state: State) -> State:
    """Resampled bicubically to our grid, ``(1, 14 * 14, C)``; the class token's is added to it."""
    positions = state.get("pos_embed")
    if positions is None:
        return state
    count = positions.shape[1] if positions.ndim == 3 else 0
    prefix = count - math.isqrt(count) ** 2
    if count == 0 or prefix > 1:
        raise InputError(
            f"pos_embed is {tuple(positions.shape)}: no square of positions, with a class token or "
            "without"
        )
    resized = resample_abs_pos_embed(positions, list(PRETRAINING_GRID), num_prefix_tokens=prefix)
    changed = {"pos_embed": resized[:, prefix:]}
    if prefix and CLASS_TOKEN in state:
        changed[CLASS_TOKEN] = state[CLASS_TOKEN] + positions[:, :1]
    return state | changed


def _moco_prefix(state: Mapping[str, Tensor]) -> str:
    return next((prefix for prefix in MOCO_PREFIXES if prefix + FIRST_BLOCK in state), "")


def _is_moco_v3(state: Mapping[str, Tensor]) -> bool:
    return _moco_prefix(state) != "" or (FIRST_BLOCK in state and _encodes(state, row_first=True))


def _is_mae(state: Mapping[str, Tensor]) -> bool:
    return FIRST_BLOCK in state and _encodes(state, row_first=False)


def _encodes(state: Mapping[str, Tensor], *, row_first: bool) -> bool:
    """Whether positions are the sine-cosine embedding with MAE's columns or MoCo v3's rows in the
    first half of the channels: their encoders have the same names."""
    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3 or positions.shape[2] % 4:
        return False
    side = math.isqrt(positions.shape[1])
    if positions.shape[1] - side**2 > 1:
        return False
    expected = sinusoidal_position_embedding((side, side), positions.shape[2])
    if row_first:
        expected = expected.roll(positions.shape[2] // 2, dims=2)
    return torch.allclose(positions[:, -(side**2) :].float(), expected, atol=1e-2)


def _first(names: Iterable[object]) -> str:
    all_names = [str(name) for name in names]
    rest = len(all_names) - SHOWN
    return ", ".join(all_names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _heads(names: list[str]) -> str:
    """Names like ``decoder_blocks.0.norm1.weight``, counted by their first word."""
    words = Counter(name.removeprefix("base_encoder.").partition(".")[0] for name in names)
    return ", ".join(f"{word} {count}" for word, count in words.items())
