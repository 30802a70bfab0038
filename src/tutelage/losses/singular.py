"""Losses on the singular vectors of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

_SPARE = 3
_RESOLUTION = 10.0


def kdsvd_losses(
    students: Sequence[Tensor], teachers: Sequence[Tensor], components: int = 1, fixed_signs: bool = True
) -> Tensor:
    """Distillation by singular value decomposition: how the main directions of consecutive layers relate.

    Each map, seen as positions times channels, gives its first right singular vectors: k of the teacher's, k
    + 3 of the student's. To each of the teacher's goes that one of the student's that is most parallel to it,
    turned to the same side. Both are scaled by the teacher's singular values (these have length 1 together),
    giving v of layer l and w of layer l + 1, each `[C, k]`. With R_ijc = exp(-(w_ic - v_jc)^2 / 8),

        L_l = 1/B sum over the batch and i, j, c of (R_s - R_t)^2.

    A singular vector is determined only up to its sign, and L depends on whether the teacher's v and w point
    to the same side. Linear algebra libraries choose it by chance: the choice differs between devices and
    precisions, and may change with the last bit of the map. With fixed signs each teacher's vector points to
    where the sum of its entries is positive.

    The gradient is that of the decomposition written out (see `singular_vectors`), so it compiles, is finite
    for maps of deficient rank too, and equals the reference's wherever that has one. On GPUs the
    decomposition itself is a library call that waits for the device.

    Args:
        students: Maps `[B, C_l, H_l, W_l]` of L layers.
        teachers: As many maps with the same channels C_l; the sides may differ.
        components: k, at least 1.
        fixed_signs: False leaves the signs to the library, as the reference does.

    Returns:
        One value >= 0 for each pair of consecutive layers, `[L - 1]`; their sum is the loss.

    Raises:
        ValueError: The numbers of layers or channels differ, or there are fewer than two layers.

    Source:
        Lee, Kim and Song 2018, arXiv 1807.06819; RepDistiller ``distiller_zoo/KDSVD.py``. Deviations: the
        signs, and the gradient, which is NaN there where singular values coincide, as those of a map with two
        dead channels do (it sets non-finite values to zero in the forward pass alone).
    """
    if len(students) < 2 or [s.shape[1] for s in students] != [t.shape[1] for t in teachers]:
        raise ValueError(
            "kdsvd_losses needs two layers or more with equal channels on both sides, got "
            f"{[s.shape[1] for s in students]} (student) and {[t.shape[1] for t in teachers]} (teacher)"
        )
    pairs = zip(students, teachers, strict=True)
    directions = [_directions(student, teacher, components, fixed_signs) for student, teacher in pairs]
    return torch.stack(
        [
            (_radial(s, next_s) - _radial(t, next_t)).square().sum() / len(s)
            for (s, t), (next_s, next_t) in pairwise(directions)
        ]
    )


def singular_vectors(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First right singular vectors of maps, with a gradient that is finite where they aren't determined.

    For A = `[H W, C]` with A = U S V^T the change of a singular vector is

        dv_j = sum_i v_i (v_i^T dG v_j) g / (g^2 + r^2) + (the same for the directions outside V, g = s_j^2),

    with G = A^T A and g = s_j^2 - s_i^2. It is exact but for r, the accuracy that rounding leaves to the
    squared singular values (10 eps s_1^2): where two of them can't be told apart the vectors aren't
    determined, and no gradient flows between them. The vectors are computed without gradient; a term of value
    0 carries it. Values that are not finite are left out of the decomposition, which would fail on them, and
    make the result NaN; so do maps so small that their squares vanish (1e-19 in float32).

    Args:
        features: Maps `[B, C, H, W]`.
        count: How many vectors; no more than min(H W, C) are given.

    Returns:
        V `[B, C, count]` with columns of unit length, and the singular values `[B, count]`, falling.
    """
    matrices = features.flatten(2).transpose(1, 2)
    with torch.no_grad():
        _, values, rows = torch.linalg.svd(matrices.nan_to_num(0, 0, 0), full_matrices=False)
        basis = rows.transpose(1, 2)
        vectors, squares = basis[:, :, :count], values.square()
        largest = squares[:, :1].unsqueeze(2)
        gaps = squares[:, None, :count] - squares[:, :, None]
        within, outside = _inverse(gaps, largest), _inverse(squares[:, None, :count], largest)
    images = matrices @ vectors
    products = matrices.transpose(1, 2) @ images
    change = products - products.detach()
    parts = basis.transpose(1, 2) @ change
    turned = vectors + basis @ (within * parts) + outside * (change - basis @ parts)
    return turned, torch.linalg.vector_norm(images, dim=1)


def _inverse(gaps: Tensor, largest: Tensor) -> Tensor:
    """1 / gaps, falling to 0 for those that rounding hides beside the ``largest`` squared singular value."""
    limits = torch.finfo(gaps.dtype)
    scale = largest.clamp(min=limits.tiny)
    relative = gaps / scale
    return relative / (relative.square() + (_RESOLUTION * limits.eps) ** 2) / scale


def _directions(
    student: Tensor, teacher: Tensor, components: int, fixed_signs: bool
) -> tuple[Tensor, Tensor]:
    """The paired singular vectors of one layer, scaled by the teacher's singular values: two `[B, C, k]`."""
    vectors, values = singular_vectors(teacher, components)
    if fixed_signs:
        vectors = torch.where(vectors.sum(dim=1, keepdim=True) < 0, -vectors, vectors)
    candidates, _ = singular_vectors(student, components + _SPARE)
    weights = F.normalize(values, dim=1).unsqueeze(1)
    return _aligned(candidates, vectors) * weights, vectors * weights


def _aligned(candidates: Tensor, vectors: Tensor) -> Tensor:
    """For each of ``vectors`` `[B, C, k]` the most parallel of ``candidates`` `[B, C, n]`, on its side."""
    cosines = (candidates.transpose(1, 2) @ vectors).detach()
    nearest = cosines.abs() == cosines.abs().amax(dim=1, keepdim=True)
    return candidates @ (cosines.sign() * nearest)


def _radial(lower: Tensor, upper: Tensor) -> Tensor:
    """exp(-(w_ic - v_jc)^2 / 8) of v `[B, C_1, k]` and w `[B, C_2, k]`: `[B, C_2, C_1, k]`."""
    return torch.exp(-(upper.unsqueeze(2) - lower.unsqueeze(1)).square() / 8)
