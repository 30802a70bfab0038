"""Activation boundaries: agree on which neurons are active, not on how much."""

from __future__ import annotations

import torch
from torch import Tensor

_SCALE = 3 / 1000


def boundary_loss(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Transfer of activation boundaries for one layer.

    L = 3/1000 1/B sum of max(0, m - s)^2 where t > 0 and of max(0, s + m)^2 where t <= 0: active neurons are
    pushed above the margin m, the others below -m.

    Args:
        student: s `[B, C, H, W]`, before the activation.
        teacher: t, the same shape, before the activation; only its sign counts.
        margin: m.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: The shapes differ.

    Source:
        Heo et al. 2019, arXiv 1811.03233, section 3; RepDistiller ``distiller_zoo/AB.py`` (also for the
        factor 3/1000).
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"boundary_loss needs equal shapes, got {tuple(student.shape)} (student) and "
            f"{tuple(teacher.shape)} (teacher); put a connector on the student"
        )
    lacking = torch.where(teacher > 0, margin - student, margin + student).relu()
    return _SCALE * lacking.square().sum() / len(student)


def boundary_weights(layers: int) -> list[float]:
    """How much each layer counts: 1 for the last, half as much for each one before it."""
    return [2.0 ** (layer - layers + 1) for layer in range(layers)]
