"""Losses on the relations between the samples of one batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.losses.directions import directions

_COINCIDENT = 1e-12
_SMALL = 1e-7


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving loss for one layer.

    L = 1/B^2 || G_s - G_t ||_F^2, G the Gram matrix of the flattened features with rows of unit length.

    Args:
        student: Features `[B, ...]`.
        teacher: Features `[B, ...]`; everything but B may differ.

    Returns:
        Scalar in `[0, 4 / B]`.

    Source:
        Tung and Mori 2019, arXiv 1907.09682, equations 1 to 4; RepDistiller ``distiller_zoo/SP.py``.
        Deviation: see `directions`.
    """
    return F.mse_loss(_similarities(student), _similarities(teacher))


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance-wise relational distillation.

    L = 1/B^2 sum_ij huber(d_s,ij / mean d_s, d_t,ij / mean d_t), d the Euclidean distances within the batch
    (0 on the diagonal), the means over all pairs i != j, huber the smooth L1 with its bend at 1.

    Args:
        student: Embeddings `[B, D_s]`.
        teacher: Embeddings `[B, D_t]`.

    Returns:
        Scalar >= 0; 0 for a batch of one.

    Source:
        Park et al. 2019, arXiv 1904.05068, equations 5 to 7; RepDistiller ``distiller_zoo/RKD.py``, which
        averages the positive distances: squared distances are raised to 1e-12, so these are all pairs. A
        batch of one gives NaN there. The batch mean is subtracted first, which changes no distance but keeps
        digits in float32.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Angle-wise relational distillation.

    L = 1/B^3 sum_ijk huber(cos_s,ijk, cos_t,ijk), cos_ijk the cosine of the angle at sample i between samples
    j and k. Memory grows with B^2 (B + D).

    Args:
        student: Embeddings `[B, D_s]`.
        teacher: Embeddings `[B, D_t]`.

    Returns:
        Scalar in `[0, 1.5]`.

    Source:
        Park et al. 2019, arXiv 1904.05068, equations 8 and 9; RepDistiller ``distiller_zoo/RKD.py``.
        Deviation: two samples that coincide pass no gradient, see `directions`.
    """
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def rkd_loss(
    student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Relational distillation: weighted sum of the distance and the angle term.

    Args:
        student: Embeddings `[B, D_s]`.
        teacher: Embeddings `[B, D_t]`.
        distance_weight: Weight of ``rkd_distance_loss``; 25 in the paper and in RepDistiller.
        angle_weight: Weight of ``rkd_angle_loss``; 50 there.

    Returns:
        Scalar >= 0.
    """
    distance = rkd_distance_loss(student, teacher)
    return distance_weight * distance + angle_weight * rkd_angle_loss(student, teacher)


def congruence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Correlation congruence: what the differences of neighbouring samples have in common.

    L = mean over i < B of sum_d delta_id delta_(i+1)d, with delta = |e_s - e_t| and samples counted in the
    batch's order, which a shuffled epoch makes random.

    Args:
        student: Embeddings e_s `[B, D]`.
        teacher: Embeddings e_t `[B, D]`.

    Returns:
        Scalar >= 0; 0 for a batch of one, which has no neighbours (NaN in the references).

    Raises:
        ValueError: The shapes differ.

    Source:
        RepDistiller ``distiller_zoo/CC.py`` and OFAKD ``distillers/correlation.py``. Peng et al. 2019, arXiv
        1904.01802, compare the correlations of all pairs under a Gaussian kernel instead.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"congruence_loss needs equal shapes, got {tuple(student.shape)} (student) and "
            f"{tuple(teacher.shape)} (teacher); embed both in one width"
        )
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: whom each sample of the batch resembles.

    L = 1/B^2 sum_ij p_ij log((p_ij + 1e-7) / (q_ij + 1e-7)), p of the teacher and q of the student: the
    cosine similarities, mapped to [0, 1] and divided by the sum of their row.

    Args:
        student: Features `[B, D_s]`.
        teacher: Features `[B, D_t]`.

    Returns:
        Scalar, about 1/B times the mean KL divergence of the rows; it may fall below 0 by rounding.

    Source:
        Passalis and Tefas 2018, arXiv 1803.10837, with the cosine kernel; RepDistiller
        ``distiller_zoo/PKT.py``.
    """
    p, q = _resemblances(teacher), _resemblances(student)
    return (p * ((p + _SMALL) / (q + _SMALL)).log()).mean()


def _similarities(features: Tensor) -> Tensor:
    """Gram matrix `[B, B]` of flattened features `[B, ...]`, rows of unit length."""
    flat = features.flatten(1)
    return directions(flat @ flat.t(), dim=1)


def _resemblances(features: Tensor) -> Tensor:
    """Cosine similarities `[B, B]` of features `[B, D]`, mapped to [0, 1], rows adding up to 1."""
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    scaled = features / (lengths + _SMALL)
    similarities = (scaled @ scaled.t() + 1) / 2
    return similarities / similarities.sum(dim=1, keepdim=True)


def _relative_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances `[B, B]` as multiples of their mean over all pairs, diagonal 0."""
    count = embeddings.shape[0]
    centred = embeddings - embeddings.mean(dim=0)
    squares = centred.pow(2).sum(dim=1)
    squared = squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * centred @ centred.t()
    diagonal = torch.eye(count, dtype=torch.bool, device=embeddings.device)
    distances = squared.clamp(min=_COINCIDENT).sqrt().masked_fill(diagonal, 0)
    mean = distances.sum() / max(count * (count - 1), 1)
    return distances / mean.clamp(min=_COINCIDENT)


def _angles(embeddings: Tensor) -> Tensor:
    """Cosines `[B, B, B]`: entry (i, j, k) is the angle at sample i between samples j and k."""
    towards = directions(embeddings.unsqueeze(0) - embeddings.unsqueeze(1), dim=2)
    return towards @ towards.transpose(1, 2)
