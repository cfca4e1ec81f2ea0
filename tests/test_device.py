import logging

import pytest
import torch

from stma.device import resolve_precision


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
    assert caplog.text.count("card does not compute in bf16") == int(not supported)
    resolve_precision.cache_clear()


def test_a_precision_that_is_given_is_taken() -> None:
    assert resolve_precision(torch.device("cuda"), "fp16") == "fp16"
    assert resolve_precision(torch.device("cpu"), "auto") == "fp32"
