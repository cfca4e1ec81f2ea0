"""Weights on disk: one safetensors file that is enough to build the model.

Its metadata holds the model's configuration, the segmenter settings that suit it and where the
weights come from. A checkpoint of train.py holds the same, and is read in its place; of pickles
only tensors and plain values are read.
"""

import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stma.errors import InputError
from stma.model.factory import ModelConfig, build_model
from stma.model.stma import STMA
from stma.runtime.config import parse_config
from stma.runtime.device import resolve_device
from stma.runtime.outputs import check_path, replacing

log = logging.getLogger(__name__)

FORMAT = "stma-weights-1"
# Settings of the model that concern training alone: weights made with any of them fit all others.
OF_TRAINING = ("drop_path", "train_top_k", "train_kernel")
RETIRED = {"key_dim": None}  # settings that older files hold; this value of them is no longer said
CHECKPOINT = ".pt"  # suffix
NO_CHECKPOINT = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError),  # of torch.load
    *(LookupError, TypeError, ValueError, AttributeError),  # of what is in it
)
SHIPPED = Path(__file__).parent.parent / "weights"  # in the package, by name


def shipped_weights() -> list[str]:
    """Names of the weights that come with the package (docs/model_card.md)."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def find_weights(weights: str | Path) -> Path:
    """The file that the user means.

    Args:
        weights: a file, or a checkpoint (``.pt``); a folder that train.py wrote to; or the name of
            shipped ones (``small``).

    Raises:
        InputError: there is none; the message says which weights are shipped.
    """
    if not isinstance(weights, str | Path):
        raise InputError(
            f"weights are {weights!r}; give a file, a folder of train.py or a name, as text or Path"
        )
    if str(weights) in shipped_weights():
        return SHIPPED / f"{weights}.safetensors"
    path = Path(weights)
    check_path(path)
    if path.is_dir():
        if not (path / "weights.safetensors").is_file():
            raise InputError(f"{path}: a folder without a weights.safetensors; give a file")
        return path / "weights.safetensors"
    if not path.is_file():
        names = ", ".join(shipped_weights())
        raise InputError(f"{path}: no such weights file (shipped with stma, by name: {names})")
    return path


def save_weights(
    path: str | Path, model: STMA, config: ModelConfig, provenance: Mapping[str, Any]
) -> None:
    """Write atomically: to a file beside it, flushed, then renamed.

    Args: see :func:`pack_weights`.
    """
    write_weights(Path(path), pack_weights(model, config, provenance))


def write_weights(path: Path, content: bytes) -> None:
    """Write what :func:`pack_weights` returned; see :func:`save_weights`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)


def pack_weights(model: STMA, config: ModelConfig, provenance: Mapping[str, Any]) -> bytes:
    """A copy of the weights, as their file holds them.

    Args:
        model: its ``segmenter_settings`` are written too.
        provenance: anything JSON can hold: the run's configuration, iterations, versions.
    """
    metadata = {
        "format": FORMAT,
        "model": json.dumps(asdict(config)),
        "segmenter": json.dumps(model.segmenter_settings),
        "provenance": json.dumps(dict(provenance)),
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return save(tensors, metadata)


def read_weights(
    path: str | Path, *, raw: bool = False
) -> tuple[ModelConfig, dict[str, Any], dict[str, Tensor]]:
    """The model's configuration, the provenance and the tensors (on the CPU).

    Args:
        raw: of a checkpoint with ``ema``, the weights as trained instead of their average.

    Raises:
        InputError: there is no such file, it is another pickle, damaged or not this project's, or a
            tensor holds NaN or infinity.
    """
    path = find_weights(path)
    metadata, tensors = _read(path, True, raw)
    try:
        settings = json.loads(metadata["model"])
        if isinstance(settings, dict):
            settings = {k: v for k, v in settings.items() if (k, v) not in RETIRED.items()}
        values = OmegaConf.create(settings)
        provenance = json.loads(metadata["provenance"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged metadata ({error!r})") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"{path}: {name} holds NaN or infinity; the training that wrote it went wrong, so "
                "use earlier weights"
            )
    return parse_config(ModelConfig, values, source=f"{path}: model"), provenance, tensors


def read_segmenter_settings(path: str | Path) -> dict[str, Any]:
    """Segmenter settings that suit the weights, by name; empty for none.

    Raises:
        InputError: see :func:`read_weights`.
    """
    path = find_weights(path)
    metadata, _ = _read(path, False)
    try:
        return dict(json.loads(metadata.get("segmenter", "{}")))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged metadata ({error!r})") from error


def _read(
    path: Path, with_tensors: bool, raw: bool = False
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and, if asked for, all tensors."""
    if path.suffix == CHECKPOINT:
        return _read_checkpoint(path, raw)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if with_tensors else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        if is_pickle(path):
            raise InputError(
                f"{path}: a PyTorch pickle, which can run any code when loaded; "
                "give a .safetensors file or a checkpoint (.pt) that train.py wrote (a public "
                "backbone: train.py pretrained=FILE)"
            ) from error
        raise InputError(f"{path}: not a complete safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: a safetensors file without STMA's model configuration; "
            "give one that train.py wrote"
        )
    return metadata, tensors


def _read_checkpoint(path: Path, raw: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """As of the weights that were saved with it, or without the average; see
    :mod:`stma.training.checkpoint`. Tensors stay on disk until they are used."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
        run = json.loads(state["provenance"])
        metadata = {
            "model": json.dumps(state["settings"]["model"]),
            "segmenter": json.dumps(run["config"]["segmenter"]),
            "provenance": json.dumps(run | {"raw": raw}),
        }
        if raw or state["average"] is None:
            return metadata, state["model"]
        average = state["average"].items()  # of an AveragedModel
        return metadata, {k.removeprefix("module."): v for k, v in average if k != "n_averaged"}
    except NO_CHECKPOINT as error:
        reason = str(error).partition("\n")[0][:200]  # torch's own tells how to load it unsafely
        raise InputError(
            f"{path}: not a complete checkpoint of this version's train.py "
            f"({type(error).__name__}: {reason}); a public backbone: train.py pretrained=FILE"
        ) from error


def is_pickle(path: Path) -> bool:
    """A zip of ``torch.save``, or a bare pickle of protocol 2 to 5."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5")


def check_same_architecture(config: ModelConfig, own: ModelConfig, source: str | Path) -> None:
    """Refuse weights of a differently configured model, even if all shapes agree.

    Raises:
        InputError: names the settings that differ.
    """
    theirs, ours = asdict(config), asdict(own)
    differences = [
        f"model.{name}: {theirs[name]} in the file, {ours[name]} here"
        for name in theirs
        if name not in OF_TRAINING and theirs[name] != ours[name]
    ]
    if differences:
        raise InputError(
            f"{source}: weights of another architecture\n  " + "\n  ".join(differences)
        )


def check_fits(model: STMA, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse tensors whose name or shape does not fit; the model may be on meta.

    Raises:
        InputError: names all missing, unexpected and misshapen tensors.
    """
    if problems := _misfits(model, tensors):
        raise InputError(f"{source}: weights of another architecture\n  " + "\n  ".join(problems))


def _misfits(model: STMA, tensors: Mapping[str, Tensor]) -> list[str]:
    own = model.state_dict()
    problems = [f"missing: {name}" for name in own if name not in tensors]
    problems += [f"unexpected: {name}" for name in tensors if name not in own]
    return problems + [
        f"shape of {name}: {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]


def load_state(
    model: STMA, tensors: Mapping[str, Tensor], source: str | Path, *, strict: bool = True
) -> None:
    """Copy tensors into a model; every name and shape must fit.

    Args:
        strict: False loads what fits, and logs the rest.

    Raises:
        InputError: names all missing, unexpected and misshapen tensors. The model is unchanged.
    """
    if strict:
        check_fits(model, tensors, source)
    for problem in _misfits(model, tensors):
        log.warning("%s: %s", source, problem)
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(fitting, strict=False)  # what is missing has been reported


def load_model(
    path: str | Path = "small", device: torch.device | str = "auto", *, raw: bool = False
) -> STMA:
    """Build the network that a weights file describes, ready for inference.

    Args:
        path: a file, a folder of train.py, or a name; see :func:`find_weights`. Half-precision
            weights are converted to fp32.
        device: ``auto`` takes a GPU if there is one, as the commands do.
        raw: see :func:`read_weights`.

    Raises:
        InputError: see :func:`read_weights` and :func:`load_state`; or there is no such device.
    """
    device = resolve_device(str(device))
    config, _, tensors = read_weights(path, raw=raw)
    model = build_model(config)
    load_state(model, tensors, path)
    model.segmenter_settings = read_segmenter_settings(path)
    return model.to(device).eval()
