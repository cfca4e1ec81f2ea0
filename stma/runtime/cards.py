"""What makers state about their cards."""

# Dense bf16 and fp16 without sparsity, as the makers state it, in FLOP/s. The first name found
# in the card's is used.
PEAKS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,  # only fp16
}
# Memory bandwidth in bytes/s.
BANDWIDTHS = {
    "B200": 8.0e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
    "H200": 4.8e12,
    "A100": 2.0e12,  # with 80 GB; 1.6 with 40 GB
    "L40S": 0.86e12,
    "L4": 0.3e12,
    "RTX 4090": 1.0e12,
    "RTX 3090": 0.94e12,
    "V100": 0.9e12,
}


def peak_rate(card: str, precision: str) -> float | None:
    """FLOP/s of a card; None if unknown, as for fp32, whose rate depends on settings."""
    if precision not in ("bf16", "fp16") or ("V100" in card and precision == "bf16"):
        return None
    return next((rate for name, rate in PEAKS.items() if name in card), None)


def bandwidth(card: str) -> float | None:
    """Bytes/s of a card's memory; None if unknown."""
    return next((rate for name, rate in BANDWIDTHS.items() if name in card), None)
