"""Positives from samples of the same class: draw partners, turn them, mix them with the anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.class_table import ClassTable, draw_below
from tutelage.data.views import ROTATIONS


def draw_partners(labels: Tensor, table: ClassTable, count: int, generator: torch.Generator) -> Tensor:
    """Rows of the same class for each anchor, uniform, with replacement; the anchor itself may be one.

    Args:
        labels: `[B]` int64 class of each anchor.
        table: Of the training set.
        count: Partners an anchor.
        generator: On the device of the labels.

    Returns:
        `[B, count]` int64 rows.
    """
    drawn = draw_below(table.sizes[labels], count, generator)
    return table.rows[table.starts[labels].unsqueeze(1) + drawn]


def quarter_turned(images: Tensor, turns: Tensor) -> Tensor:
    """Each image turned counter-clockwise by its own multiple of 90 degrees.

    Args:
        images: `[B, 3, S, S]`, square.
        turns: `[B]` int64 in 0..3.

    Returns:
        `[B, 3, S, S]`.
    """
    once, twice = ((turns // step % 2 == 1)[:, None, None, None] for step in (1, 2))
    images = torch.where(once, images.rot90(1, (2, 3)), images)
    return torch.where(twice, images.rot90(2, (2, 3)), images)


def draw_turns(count: int, generator: torch.Generator) -> Tensor:
    """Quarter turns for ``count`` images, `[count]` int64, uniform."""
    return torch.randint(ROTATIONS, (count,), generator=generator, device=generator.device)


def draw_shares(count: int, floor: float, generator: torch.Generator) -> Tensor:
    """The anchor's share in each of ``count`` mixes: `[count]` float32, uniform in [floor, 1)."""
    return floor + (1 - floor) * torch.rand(count, generator=generator, device=generator.device)


def mixed(anchors: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """share anchor + (1 - share) partner, image by image.

    Args:
        anchors: `[B, 3, H, W]`.
        partners: `[B, 3, H, W]`.
        shares: `[B]` in [0, 1].

    Returns:
        `[B, 3, H, W]` of the images' type.
    """
    return torch.lerp(partners, anchors, shares.to(anchors.dtype)[:, None, None, None])


def beneath(plain: Tensor, mixes: Tensor) -> Tensor:
    """Put the mixes of each sample beneath its plain image.

    Args:
        plain: `[B, 3, H, W]`.
        mixes: `[B n, 3, H, W]`, sample-major.

    Returns:
        `[B (n + 1), 3, H, W]`, sample-major, stored channels_last.
    """
    apart = [images.permute(0, 2, 3, 1) for images in (plain, mixes)]
    together = torch.cat([apart[0].unsqueeze(1), apart[1].unflatten(0, (len(plain), -1))], dim=1)
    return together.flatten(0, 1).permute(0, 3, 1, 2)
