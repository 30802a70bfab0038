"""Losses on stages that are matched by attention instead of by their position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.losses.directions import directions
from tutelage.losses.features import attention_map, pool_to

_SMALL = 1e-6


def attended_loss(students: Sequence[Tensor], teachers: Sequence[Tensor], attention: Tensor) -> Tensor:
    """Distances between all attention maps of two networks, weighed by how well the stages match.

    L = sum_t mean_b sum_s a_bts mean_x (v_bsx - v_btx)^2, v the channel mean of the squares at position x,
    scaled to unit length over the positions. The student's map is average-pooled to the teacher's sides (a
    smaller one is enlarged) before it is scaled.

    Args:
        students: S maps `[B, C_s, H_s, W_s]`.
        teachers: T maps `[B, C_t, H_t, W_t]`.
        attention: a `[B, T, S]`, rows adding up to 1.

    Returns:
        Scalar >= 0.

    Source:
        Ji et al. 2021 (Show, Attend and Distill), arXiv 2102.02973, equations 5 and 6; NAVER's
        ``distill/AFD.py``.
    """
    energies = [student.square().mean(dim=1, keepdim=True) for student in students]

    def ours(sides: tuple[int, ...]) -> Tensor:
        pooled = [pool_to(energy, *sides).flatten(1) for energy in energies]
        return directions(torch.stack(pooled, dim=1), dim=2)

    values = {sides: ours(sides) for sides in {tuple(teacher.shape[2:]) for teacher in teachers}}
    distances = [
        (values[tuple(teacher.shape[2:])] - attention_map(teacher).unsqueeze(1)).square().mean(dim=2)
        for teacher in teachers
    ]
    return (attention * torch.stack(distances, dim=1)).sum(dim=(1, 2)).mean()


def cka_loss(students: Tensor, teachers: Tensor, joint: bool = False) -> Tensor:
    """How far two networks' features are from telling the samples of the batch apart alike.

    L = 1/S sum_i (1 - |CKA_i|), CKA_i = h(s_i, t_i) / sqrt((h(s_i, s_i) + 1e-6) (h(t_i, t_i) + 1e-6)), with
    h(a, b) the sum over all entries of K_a K_b: the Gram matrices of the flattened features, each sample
    scaled to unit length, centred in rows and columns.

    Args:
        students: `[B, S, ...]`, a feature for each of S stages.
        teachers: `[B, S, ...]`; everything but B and S may differ.
        joint: Add h up over the stages before dividing and divide once more by S: (1 - |CKA|) / S.

    Returns:
        Scalar in `[0, 1]`, of the joint kind in `[0, 1 / S]`.

    Source:
        Kornblith et al. 2019, arXiv 1905.00414, section 3; PAT ``distillers/off.py`` (``prior_loss``), which
        computes the joint kind. Deviation: samples without features get no gradient, see `directions`.
    """
    ours, theirs = _centred_gram(students), _centred_gram(teachers)
    cross, own, other = (_products(*pair, joint) for pair in ((ours, theirs), (ours, ours), (theirs, theirs)))
    similarity = cross / ((own + _SMALL).sqrt() * (other + _SMALL).sqrt())
    return (1 - similarity.abs()).sum() / students.shape[1]


def _centred_gram(features: Tensor) -> Tensor:
    """`[B, S, ...]` to `[S, B, B]`."""
    samples = directions(features.flatten(2).transpose(0, 1), dim=2)
    gram = samples @ samples.transpose(1, 2)
    centred = gram - gram.mean(dim=1, keepdim=True)
    return centred - centred.mean(dim=2, keepdim=True)


def _products(first: Tensor, second: Tensor, joint: bool) -> Tensor:
    products = (first * second).sum(dim=(1, 2))
    return products.sum() if joint else products
