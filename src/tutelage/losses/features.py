"""Losses on one pair of feature maps; those of several layers are added up."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tutelage.losses.directions import directions

_LEVELS = (4, 2, 1)


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
        Map `[B, H * W]`, each row of L2 norm 1 (0 where the map vanishes, see `directions`).

    Source:
        Zagoruyko and Komodakis 2017, arXiv 1612.03928, section 3.1; RepDistiller ``distiller_zoo/AT.py``.
    """
    return directions(features.pow(p).mean(dim=1).flatten(1), dim=1)


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
    student, teacher = pooled_alike(student, teacher)
    return F.mse_loss(attention_map(student, p), attention_map(teacher, p))


def vid_loss(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Variational information distillation for one layer: how unlikely the teacher's map is.

    L = mean over all elements of 1/2 ((F_t - mu)^2 / v + log v), v one variance a channel. It is the negative
    log-likelihood of a normal distribution without its constant.

    Args:
        mean: mu `[B, C, H, W]`, predicted from the student's map.
        teacher: F_t `[B, C, H, W]`.
        variance: v `[C]`, positive.

    Returns:
        Scalar, negative where variances below 1 suffice.

    Source:
        Ahn et al. 2019, arXiv 1904.05835; RepDistiller ``distiller_zoo/VID.py``.
    """
    spread = variance.view(1, -1, 1, 1)
    return 0.5 * ((mean - teacher).square() / spread + spread.log()).mean()


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Neuron selectivity transfer for one layer: the distance of two sets of channel patterns.

    L = mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over all pairs of channels and the batch, with
    k(a, b) = <a, b>^2 and each channel's map scaled to unit length: a squared maximum mean discrepancy. Along
    each side the larger map is average-pooled to the smaller beforehand.

    Args:
        student: F_s `[B, C_s, H_s, W_s]`.
        teacher: F_t `[B, C_t, H_t, W_t]`.

    Returns:
        Scalar in `[0, 2]`.

    Source:
        Huang and Wang 2017, arXiv 1707.01219, with the polynomial kernel of degree 2 and constant 0;
        RepDistiller ``distiller_zoo/NST.py`` (which keeps the gradient of the first term back). Deviation:
        channels that vanish get no gradient, see `directions`.
    """
    students, teachers = (directions(maps.flatten(2), dim=2) for maps in pooled_alike(student, teacher))
    own = _mean_kernel(teachers, teachers) + _mean_kernel(students, students)
    return own - 2 * _mean_kernel(students, teachers)


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss of one pair of maps.

    L = (MSE + sum_l w_l MSE_l) / (1 + sum_l w_l), MSE_l the mean squared difference of the maps
    average-pooled to l x l, for those l of 4, 2 and 1 below the map's side; w_l = 1/2 for the first of them,
    then 1/4, 1/8.

    Args:
        student: F_s `[B, C, H, W]`.
        teacher: F_t, the same shape.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: The shapes differ.

    Source:
        Chen et al. 2021, arXiv 2104.09044; mdistiller ``mdistiller/distillers/ReviewKD.py``
        (which looks at the height alone).
    """
    total, weight, weights = hint_loss(student, teacher), 1.0, 1.0
    for level in _LEVELS:
        if level < min(student.shape[2:]):
            weight /= 2
            weights += weight
            pooled = [pool_to(features, level, level) for features in (student, teacher)]
            total = total + weight * hint_loss(*pooled)
    return total / weights


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool `[B, C_s, H_s, W_s]` and `[B, C_t, H_t, W_t]` to the smaller of their sides."""
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return pool_to(student, height, width), pool_to(teacher, height, width)


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    """Mean of <a, b>^2 over the channels a of `[B, C_1, P]` and b of `[B, C_2, P]` and the batch."""
    return (first @ second.transpose(1, 2)).square().mean()


def pool_to(features: Tensor, height: int, width: int) -> Tensor:
    """Average-pool `[B, C, H, W]` to `[B, C, height, width]`; a smaller map is enlarged by repeating.

    Whole ratios go through plain pooling, which gives the same numbers and, unlike adaptive pooling, has a
    deterministic gradient on GPUs.
    """
    rows, columns = features.shape[2:]
    if (rows, columns) == (height, width):
        return features
    if rows % height == 0 and columns % width == 0:
        return F.avg_pool2d(features, (rows // height, columns // width))
    return F.adaptive_avg_pool2d(features, (height, width))
