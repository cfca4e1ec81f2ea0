import logging
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stma.errors import InputError
from stma.runtime.device import (
    autocast,
    peak_gigabytes,
    reset_peak,
    resolve_device,
    resolve_precision,
    without_autocast,
)


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_card_computes_in_it(
    monkeypatch, caplog, supported: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    resolve_precision.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert resolve_precision(torch.device("cuda"), "auto") == expected
    assert caplog.text.count("card does not support bf16") == int(not supported)
    resolve_precision.cache_clear()


def test_a_precision_that_is_given_is_taken() -> None:
    assert resolve_precision(torch.device("cuda"), "fp16") == "fp16"


@pytest.mark.parametrize(("multiplies", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_cores_multiply_it(monkeypatch, multiplies, expected) -> None:
    monkeypatch.setattr("stma.runtime.device.cpu_multiplies_bf16", lambda: multiplies)
    resolve_precision.cache_clear()
    assert resolve_precision(torch.device("cpu"), "auto") == expected
    resolve_precision.cache_clear()


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not reset peaks"
)
def test_the_peak_counts_from_where_it_was_reset() -> None:
    cpu = torch.device("cpu")
    np.ones(50_000_000)  # 0.4 GB, and gone
    before = peak_gigabytes(cpu)
    reset_peak(cpu)
    assert peak_gigabytes(cpu) < before - 0.2
    kept = np.ones(50_000_000)
    assert peak_gigabytes(cpu) > before - 0.2
    assert kept[0] == 1


@pytest.mark.parametrize("name", ["cpu:7", "cpu:1", "meta", "gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"device is '{name}'"):
        resolve_device(name)
    assert resolve_device("cpu") == torch.device("cpu")


def test_the_peak_of_other_systems(monkeypatch) -> None:
    """macOS counts in bytes; Windows has no module that says it."""
    cpu = torch.device("cpu")
    linux = peak_gigabytes(cpu)
    monkeypatch.setattr("stma.runtime.device.sys", SimpleNamespace(platform="darwin"))
    assert linux / 1024 <= peak_gigabytes(cpu) < linux / 500
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(peak_gigabytes(cpu))


def test_apples_gpu(monkeypatch, caplog) -> None:
    """As if PyTorch found one; nothing runs on it."""
    with pytest.raises(InputError, match="'mps'"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    assert resolve_device("mps") == torch.device("mps")
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in caplog.text
    caplog.clear()
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    device = resolve_device("mps")
    assert not caplog.text
    assert resolve_precision(device, "auto") == "fp32"
    with autocast(device, "auto"), without_autocast(device):
        pass
