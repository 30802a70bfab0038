"""Pillow's affine transforms for batches of 8-bit images, each image with a matrix of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

Colour = tuple[int, int, int]


def affine(images: Tensor, matrix: Tensor, cubic: bool, fill: Colour) -> Tensor:
    """Take each pixel from elsewhere: ``Image.transform(size, AFFINE, matrix, resample, fillcolor=fill)``.

    Computed in float64 in Pillow's order of operations, and equal to it to the bit.

    Args:
        images: `[B, 3, H, W]` uint8.
        matrix: `[B, 6]` float64 (a, b, c, d, e, f): the centre (x, y) of a pixel comes from
            (a x + b y + c, d x + e y + f).
        cubic: Bicubic (a = -1), else bilinear.
        fill: What stands where the image does not reach.

    Returns:
        `[B, 3, H, W]` uint8.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = torch.arange(height, device=images.device, dtype=torch.float64)[:, None] + 0.5
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    columns, rows = a * x + b * y + c, d * x + e * y + f
    left, above = (columns - 0.5).floor(), (rows - 0.5).floor()
    across, down = (columns - 0.5 - left)[:, None], (rows - 0.5 - above)[:, None]
    between = cubic_between if cubic else linear_between
    near = (-1, 0, 1, 2) if cubic else (0, 1)
    # Outside, the border goes on.
    places = [(left.long() + step).clamp(0, width - 1) for step in near]
    starts = [(above.long() + step).clamp(0, height - 1) * width for step in near]
    flat = images.flatten(2).double()

    def line(start: Tensor) -> Tensor:
        """One row of pixels at the wanted columns, `[B, 3, H, W]` float64."""
        wanted = [(start + place).flatten(1)[:, None].expand(-1, 3, -1) for place in places]
        return between([flat.gather(2, where).view(images.shape) for where in wanted], across)

    moved = between([line(start) for start in starts], down).clamp(0, 255).to(torch.uint8)
    there = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return torch.where(there[:, None], moved, _colour(fill, images.device))


def cubic_between(values: Sequence[Tensor], share: Tensor) -> Tensor:
    """The value at ``share`` of the way from the second to the third of four neighbours."""
    first, second, third, fourth = values
    cubic = fourth - third + second - first
    square = 2 * (first - second) + third - fourth
    return second + share * (third - first + share * (square + share * cubic))


def linear_between(values: Sequence[Tensor], share: Tensor) -> Tensor:
    """The value at ``share`` of the way from the first to the second of two neighbours."""
    first, second = values
    return first + (second - first) * share


def turning(degrees: Tensor, height: int, width: int) -> Tensor:
    """The matrices of ``Image.rotate``, `[B, 6]`, for angles `[B]` float64, counter-clockwise."""
    angle = -torch.deg2rad(degrees)
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y], dim=1)


def moving(place: int, amount: Tensor) -> Tensor:
    """Matrices `[B, 6]` of the identity but for one entry, `[B]` float64: 1 and 3 shear, 2 and 5 shift."""
    entry = torch.arange(6, device=amount.device)
    identity = (entry % 4 == 0).to(amount.dtype)
    return torch.where(entry == place, amount[:, None], identity)


@cache
def _colour(fill: Colour, device: torch.device) -> Tensor:
    return torch.tensor(fill, dtype=torch.uint8, device=device)[:, None, None]
