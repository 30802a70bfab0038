"""The rows of a training set by class, on the device, to draw partners and negatives from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_WIDE = 2**62


class ClassTable(NamedTuple):
    """Rows sorted by class: class c has the rows ``rows[starts[c] : starts[c] + sizes[c]]``, ascending.

    Attributes:
        rows: `[N]` int64.
        starts: `[C]` int64.
        sizes: `[C]` int64; classes need not be equally large, and may be empty.
    """

    rows: Tensor
    starts: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, labels: Tensor, num_classes: int) -> ClassTable:
        """The table of ``labels``, on their device.

        Args:
            labels: `[N]` int64 class of each row.
            num_classes: C.
        """
        # bincount would ask the device for the largest label, and a queue's table is made in every step.
        sizes = labels.new_zeros(num_classes).scatter_add_(0, labels, torch.ones_like(labels))
        return cls(labels.argsort(stable=True), sizes.cumsum(0) - sizes, sizes)


def draw_below(bounds: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Integers from 0 up to a bound that differs by row; small ones are favoured by less than bound / 2^62.

    Args:
        bounds: `[B]` int64, at least 1.
        count: Integers a row.
        generator: On the device of the bounds.

    Returns:
        `[B, count]` int64.
    """
    drawn = torch.randint(_WIDE, (len(bounds), count), generator=generator, device=bounds.device)
    return drawn % bounds.unsqueeze(1)
