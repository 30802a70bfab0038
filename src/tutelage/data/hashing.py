"""Random numbers that follow from a number alone, on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def uniforms(seeds: Tensor, count: int) -> Tensor:
    """Random numbers that follow from ``seeds``: splitmix64, the upper 24 bits.

    Args:
        seeds: `[B]` int64.
        count: How many for each.

    Returns:
        `[B, count]` float32 in [0, 1).
    """
    steps = torch.arange(1, count + 1, device=seeds.device) * _signed(0x9E3779B97F4A7C15)
    z = seeds[:, None] * _signed(0xD1342543DE82EF95) + steps
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return _shifted(z ^ _shifted(z, 31), 40).float() / 2**24


def _signed(value: int) -> int:
    """The 64-bit pattern as a signed number, which is what int64 tensors hold."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros (int64 tensors fill with the sign)."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
