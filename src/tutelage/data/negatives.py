"""Rows to contrast a sample with, drawn on the device from an explicit generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.class_table import ClassTable, draw_below
from tutelage.errors import UserError


def draw_negatives(labels: Tensor, table: ClassTable, count: int, generator: torch.Generator) -> Tensor:
    """Rows of other classes for each anchor, uniform over all of them, with replacement.

    The anchor's class is skipped by arithmetic on the sorted rows, so the draw costs one random integer a
    negative and never looks at the rest of the data.

    RepDistiller and PACKD (``dataset/cifar100.py``) draw without replacement where the other classes hold at
    least ``count`` rows. Here a row may come twice: of 16384 out of 49500 about 15 percent repeat an earlier
    one. Every negative has the same distribution either way.

    Args:
        labels: `[B]` int64 class of each anchor.
        table: Of the training set; at least two classes have rows, see `check_negatives`. Where no other
            class has any, rows of the anchor's own come out.
        count: K, negatives an anchor.
        generator: On the device of the labels.

    Returns:
        `[B, K]` int64 rows.
    """
    start, size = table.starts[labels].unsqueeze(1), table.sizes[labels]
    others = table.sizes.sum() - size
    skipped = torch.where(others > 0, size, 0).unsqueeze(1)
    drawn = draw_below(others.clamp(min=1), count, generator)
    return table.rows[torch.where(drawn < start, drawn, drawn + skipped)]


def check_negatives(table: ClassTable) -> None:
    """Refuse data in which some class has no negatives; looks at the host, so call it before training.

    Raises:
        UserError: All rows are of one class.
    """
    if int((table.sizes > 0).sum()) < 2:
        raise UserError(
            "all training images are of one class, so there is nothing to contrast them with; "
            "choose data with at least two classes"
        )


class AliasTable(NamedTuple):
    """Draws from any weights in constant time: cell i gives row i or ``other[i]``.

    Attributes:
        keep: `[N]` float32, the chance of row i in its cell.
        other: `[N]` int64.
    """

    keep: Tensor
    other: Tensor


def alias_table(weights: Tensor | Sequence[float]) -> AliasTable:
    """Split N weights over N equal cells of at most two rows each.

    Walks over the rows on the host: call it once, before training.

    Args:
        weights: `[N]`, not negative and not all zero; only their ratios count.

    Returns:
        Tables on the CPU. For equal weights every row keeps its cell.

    Raises:
        ValueError: A weight is negative or not finite, or they sum to zero.

    Source:
        Walker 1977 and Vose 1991; RepDistiller ``crd/memory.py`` (``AliasMethod``), which leaves weights that
        sum to less than 1 as they are and so draws from other ratios.
    """
    given = torch.as_tensor(weights, dtype=torch.float64).cpu()
    total = given.sum()
    if not (bool((given >= 0).all()) and 0 < float(total) < float("inf")):
        raise ValueError("weights to draw by must be finite, not negative, and not all zero")
    keep: list[float] = (given * (len(given) / total)).tolist()
    other = [0] * len(keep)
    small = [row for row, mass in enumerate(keep) if mass < 1]
    large = [row for row, mass in enumerate(keep) if mass >= 1]
    while small and large:
        needy, donor = small.pop(), large.pop()
        other[needy] = donor
        keep[donor] = (keep[donor] - 1) + keep[needy]
        (small if keep[donor] < 1 else large).append(donor)
    for row in small + large:
        keep[row] = 1.0
    return AliasTable(torch.tensor(keep, dtype=torch.float32), torch.tensor(other))


def draw_rows(table: AliasTable, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Rows drawn independently by the weights of ``table``.

    Args:
        table: On the device.
        shape: Of the result.
        generator: On the same device.

    Returns:
        int64 rows of the given shape.
    """
    device = table.keep.device
    cell = torch.randint(len(table.keep), tuple(shape), generator=generator, device=device)
    chance = torch.rand(tuple(shape), generator=generator, device=device)
    return torch.where(chance < table.keep[cell], cell, table.other[cell])
