"""A saved video on disk: one safetensors file; nothing is ever unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stma.errors import InputError
from stma.model.stma import STMA
from stma.runtime.outputs import full_disks_told, replacing

FORMAT = "stma-video-2"
SAMPLED = 64  # values of every parameter that distinguish networks


def write_state(path: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write atomically.

    Args:
        values: anything JSON can hold.

    Raises:
        InputError: the disk is full or cannot be written to.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file")
    text = json.dumps(values)
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "values": text, "digest": _digest(text, kept)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disks_told(path.parent), replacing(path) as partial:
        partial.write_bytes(save(kept, metadata))


def read_state(path: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`write_state` wrote.

    Raises:
        InputError: there is no such file, it is damaged (by a checksum of its content), or holds
            something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            # Cloned, since kernels may round differently if memory is aligned differently.
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not a complete safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not a saved video; give a file that Segmenter.save wrote")
    if metadata["digest"] != _digest(metadata["values"], tensors):
        raise InputError(f"{path}: damaged: its content has changed since it was written")
    return json.loads(metadata["values"]), {n: tensor.to(device) for n, tensor in tensors.items()}


def _digest(values: str, tensors: dict[str, Tensor]) -> str:
    """Of all that a state holds; the tensors are on the CPU."""
    digest = hashlib.sha256(values.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def network_digest(model: STMA) -> str:
    """A digest that is the same for equal weights on any device, and differs for others."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        some = parameter.flatten()[:SAMPLED].float().cpu().numpy().tobytes()
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + some)
    return digest.hexdigest()
