"""Vectors scaled to unit length, safe where there is nothing to scale."""

from __future__ import annotations

import torch
from torch import Tensor

_NOTHING = 1e-12


def directions(vectors: Tensor, dim: int) -> Tensor:
    """Vectors along ``dim`` scaled to length 1.

    A vector no longer than 1e-12 has no direction: it becomes 0 and gets no gradient. Dividing by a small
    constant, as ``F.normalize`` does, gives it a gradient that is larger by the constant's inverse.

    Args:
        vectors: Any shape.
        dim: Along which the vectors lie.

    Returns:
        The shape of ``vectors``.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    some = lengths > _NOTHING
    return vectors * (some / torch.where(some, lengths, 1.0))
