"""Losses on one pair of feature maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two features of one shape.

    L = mean (F_s - F_t)^2 over all elements.

    Args:
        student: F_s, any shape, usually `[B, C, H, W]` after a regressor.
        teacher: F_t, the same shape.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: The shapes differ (broadcasting would compare the wrong elements).

    Source:
        Romero et al. 2015 (FitNets), arXiv 1412.6550, equation 3; RepDistiller ``distiller_zoo/FitNet.py``.
        The mean replaces the paper's half sum of squares.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"hint_loss needs equal shapes, got {tuple(student.shape)} (student) and {tuple(teacher.shape)} "
            "(teacher); put a regressor on the student"
        )
    return F.mse_loss(student, teacher)


def attention_map(features: Tensor, p: int = 2) -> Tensor:
    """Where a network looks: the channel mean of F^p, flattened and scaled to unit length.

    Args:
        features: F `[B, C, H, W]`.
        p: Power, a whole number >= 1. An odd power keeps the sign, as RepDistiller does (the paper
            takes absolute values).

    Returns:
        Map `[B, H * W]`, each row of L2 norm 1 (0 where the map vanishes).

    Source:
        Zagoruyko and Komodakis 2017, arXiv 1612.03928, section 3.1; RepDistiller ``distiller_zoo/AT.py``.
    """
    return F.normalize(features.pow(p).mean(dim=1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor, p: int = 2) -> Tensor:
    """Attention transfer for one layer.

    L = mean (A(F_s) - A(F_t))^2 over batch and positions, A the ``attention_map``. Along each side the larger
    feature map is average-pooled to the smaller beforehand. The loss of several layers is their sum.

    Args:
        student: F_s `[B, C_s, H_s, W_s]`.
        teacher: F_t `[B, C_t, H_t, W_t]`.
        p: Power of the attention map.

    Returns:
        Scalar in `[0, 4 / (H W)]` for the common size H x W.

    Source:
        Zagoruyko and Komodakis 2017, arXiv 1612.03928, equation 2; RepDistiller ``distiller_zoo/AT.py``
        (which takes maps to be square and returns the list of layers).
    """
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    student_map = attention_map(_pool_to(student, height, width), p)
    teacher_map = attention_map(_pool_to(teacher, height, width), p)
    return F.mse_loss(student_map, teacher_map)


def _pool_to(features: Tensor, height: int, width: int) -> Tensor:
    """Average-pool `[B, C, H, W]` to `[B, C, height, width]`.

    Whole ratios go through plain pooling, which gives the same numbers and, unlike adaptive pooling, has a
    deterministic gradient on GPUs.
    """
    rows, columns = features.shape[2:]
    if (rows, columns) == (height, width):
        return features
    if rows % height == 0 and columns % width == 0:
        return F.avg_pool2d(features, (rows // height, columns // width))
    return F.adaptive_avg_pool2d(features, (height, width))
