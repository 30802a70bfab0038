"""What several processes that train together remember in common: rows, gathered in the order of the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

Counts = tuple[int, ...]
"""Rows of each process, where they differ; one number alone where every process has all of the rows."""


def world() -> int:
    """How many processes train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def gather_rows(rows: Tensor, counts: Counts | None = None) -> Tensor:
    """The rows of all processes, those of rank 0 first; every process has to ask at the same point.

    Without a gradient: what is remembered has none. A compiled step holds it as one node, as long as the
    processes have equally many rows.

    Args:
        rows: `[B, ...]` of this process.
        counts: B of each process; None where they are equal.

    Returns:
        `[sum of counts, ...]`; ``rows`` itself where there is but one process.
    """
    processes = world()
    if processes == 1 or (counts is not None and len(counts) == 1):
        return rows
    own = rows.detach().contiguous()
    if counts is not None:  # a collective needs equal shapes
        own = F.pad(own, [0, 0] * (own.dim() - 1) + [0, max(counts) - len(own)])
    everything = own.new_empty((processes * len(own), *own.shape[1:]))
    dist.all_gather_into_tensor(everything, own)
    if counts is None:
        return everything
    parts = everything.unflatten(0, (processes, -1)).unbind()
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
