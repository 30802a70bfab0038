"""Random rectangles in images, drawn from given numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TRIES = 10
"""How many rectangles are drawn in search of one that fits."""


class Window(NamedTuple):
    """A part of each image, in pixels of the image.

    Attributes:
        top: `[B]` float32.
        left: `[B]` float32.
        height: `[B]` float32.
        width: `[B]` float32.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def where(self, chosen: Tensor, other: Window) -> Window:
        """This window where ``chosen`` `[B]`, else the other."""
        return Window(*(torch.where(chosen, a, b) for a, b in zip(self, other, strict=True)))


def first_window(
    draws: Tensor, side: int, scale: tuple[float, float], ratio: tuple[float, float], largest: int
) -> tuple[Window, Tensor]:
    """The first of some random rectangles that fits into a square image.

    Args:
        draws: `[B, TRIES, 4]` in [0, 1): area, shape, row and column.
        side: Of the image, in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width over height; uniform in its logarithm.
        largest: Longest side that fits, in pixels.

    Returns:
        The rectangles (of whole pixels), and `[B]` bool, whether one fitted; else its numbers mean nothing.
    """
    low, high = (math.log(end) for end in ratio)
    area = side**2 * (scale[0] + draws[..., 0] * (scale[1] - scale[0]))
    shape = torch.exp(low + draws[..., 1] * (high - low))
    width, height = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (width > 0) & (width <= largest) & (height > 0) & (height <= largest)
    top = (draws[..., 2] * (side - height + 1)).floor()
    left = (draws[..., 3] * (side - width + 1)).floor()
    first = fits.int().argmax(1, keepdim=True)
    parts = (part.gather(1, first)[:, 0] for part in (top, left, height, width))
    return Window(*parts), fits.any(1)
