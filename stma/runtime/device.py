"""Which device to run on, and in which precision."""

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from stma.errors import InputError

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def resolve_device(name: str) -> torch.device:
    """``auto`` takes CUDA if available.

    Raises:
        InputError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    on_cpu = device is not None and device.type == "cpu" and device.index in (None, 0)
    if device is None or not (on_cpu or device.type in ("cuda", "mps")):
        raise InputError(f"device is {name!r}; give auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(f"device is {name!r}, but PyTorch finds no GPU of Apple's here")
        if os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") != "1":
            log.warning(
                "set PYTORCH_ENABLE_MPS_FALLBACK=1 before torch is imported, so that what it "
                "lacks on %s runs on the CPU",
                name,
            )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"device is {name!r}, but PyTorch finds {count} CUDA devices")
    return device


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Move to the device, without waiting for a GPU to finish its work."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def device_name(device: torch.device) -> str:
    """The card's name, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def reset_peak(device: torch.device) -> None:
    """Make :func:`peak_gigabytes` count from here on. On a CPU this needs a Linux that lets a
    process do so; otherwise the peak still counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_gigabytes(device: torch.device) -> float:
    """Peak memory of the device, or of the process on a CPU; NaN if the system (Windows) does not
    say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def check_precision(precision: str) -> None:
    """Raises :class:`InputError` unless it is one of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; choose one of {PRECISIONS}")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context for a precision; see :func:`resolve_precision`."""
    check_precision(precision)
    precision = resolve_precision(device, precision)
    dtype = torch.float16 if uses_fp16(precision) else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


@lru_cache
def resolve_precision(device: torch.device, precision: str) -> str:
    """``auto`` is bf16 on CUDA cards and CPUs that multiply it, and fp32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "bf16" if cpu_multiplies_bf16() else "fp32"
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
    log.warning(
        "precision=auto: %s does not support bf16, so fp32 is used; training in fp16 is faster",
        device_name(device),
    )
    return "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether the cores have AMX or AVX-512 BF16; others would convert every number."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def uses_fp16(precision: str) -> bool:
    """Whether gradients need scaling, since small ones would vanish."""
    return precision == "fp16"


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the tensors' own precision, also on devices without autocast (meta)."""
    # Not is_autocast_available: torch 2.6 cannot compile it.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn a lack of memory, of the device or of the machine, into an :class:`InputError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        lacks = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not lacks and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            "out of memory; the network needs less with smaller frames (--short-side 240; "
            "short_side in a program) and fewer objects"
        ) from error
