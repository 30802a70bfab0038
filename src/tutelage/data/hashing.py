"""Random numbers that follow from a number alone, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniforms(seeds: Tensor, count: int, first: int = 0) -> Tensor:
    """Random numbers that follow from ``seeds``: splitmix64, the upper 24 bits.

    Args:
        seeds: `[B]` int64.
        count: How many for each.
        first: Place of the first one in the endless row of numbers that each seed has.

    Returns:
        `[B, count]` float32 in [0, 1).
    """
    steps = torch.arange(first + 1, first + count + 1, device=seeds.device) * _signed(0x9E3779B97F4A7C15)
    z = seeds[:, None] * _signed(0xD1342543DE82EF95) + steps
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return _shifted(z ^ _shifted(z, 31), 40).float() / 2**24


def normals(seeds: Tensor, count: int, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of the standard normal distribution that follow from ``seeds``, after Box and Muller.

    Args:
        seeds: `[B]` int64.
        count: How many for each, an even number.
        first: As for `uniforms`; each takes one of their places.
        dtype: Of the result, and of the computation.

    Returns:
        `[B, count]`.
    """
    length, turn = uniforms(seeds, count, first).to(dtype).unflatten(1, (2, -1)).unbind(1)
    radius, angle = (-2 * torch.log1p(-length)).sqrt(), 2 * math.pi * turn
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)


def _signed(value: int) -> int:
    """The 64-bit pattern as a signed number, which is what int64 tensors hold."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros (int64 tensors fill with the sign)."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
