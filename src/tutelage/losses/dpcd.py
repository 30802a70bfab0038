"""DPCD's losses: consensus-weighted DKD between heads, and the weights of its dynamic DKD."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.losses.logits import decouple, target_mask

CONSENSUS_EPSILON = 1e-8


class DynamicWeights(NamedTuple):
    """The two weights of a dynamic DKD step.

    Attributes:
        ratio: r in (0, 1), how far the teacher's confidence is below the threshold; scalar.
        alpha: Weight of TCKD; scalar.
        beta: Weight of NCKD; scalar.
    """

    ratio: Tensor
    alpha: Tensor
    beta: Tensor


def ced_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float = 3.0,
    gamma: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """DKD between two heads of one network, each sample weighted by how far the heads agree.

    With p the softmax at temperature T, q the same without the class y of the label, and e = 1e-8::

        W_b   = sum_c (p_student,c p_teacher,c [c != y] + e)^(gamma / 2)
        TCKD  = T^2 / B sum_b sum_{c in {y, not y}} p_teacher,c (log p_teacher,c - log(p_student,c + e))
        NCKD  = T^2 / B sum_b W_b KL(q_teacher || q_student)

    The gradient of TCKD reaches both heads, that of NCKD only the student; W has none. The asymmetry is
    the reference's.

    Args:
        student_logits: The head that learns, `[B, C]` with C >= 2.
        teacher_logits: The head that it learns from, `[B, C]`.
        targets: Class indices `[B]` int64, or soft labels `[B, C]`, of which the largest counts.
        temperature: T > 0.
        gamma: Exponent of the agreement.

    Returns:
        (TCKD, NCKD), two unweighted scalars.

    Source:
        DPCD ``dpcd/train_student_cifar.py``.
    """
    is_target = target_mask(targets, student_logits.shape[1])
    student, teacher = student_logits / temperature, teacher_logits / temperature
    student_two_way, student_others = decouple(student, is_target)
    teacher_two_way, teacher_others = decouple(teacher, is_target)
    guarded = torch.log(student_two_way.exp() + CONSENSUS_EPSILON)
    tckd = F.kl_div(guarded, teacher_two_way, reduction="batchmean", log_target=True)
    agreement = _agreement(student.detach(), teacher.detach(), is_target, gamma)
    divergence = F.kl_div(student_others, teacher_others.detach(), reduction="none", log_target=True)
    return temperature**2 * tckd, temperature**2 * (agreement * divergence.sum(dim=1)).mean()


def ced_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float = 3.0,
    gamma: float = 2.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Consensus-enhanced DKD: alpha TCKD + beta NCKD.

    Args:
        student_logits: The head that learns, `[B, C]` with C >= 2.
        teacher_logits: The head that it learns from, `[B, C]`; not to be detached, see `ced_terms`.
        targets: Class indices `[B]` int64, or soft labels `[B, C]`, of which the largest counts.
        temperature: T > 0.
        gamma: Exponent of the agreement.
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term (DPCD: 8 on CIFAR, 2 on ImageNet).

    Returns:
        Scalar. See `ced_terms` for equations and source.
    """
    tckd, nckd = ced_terms(student_logits, teacher_logits, targets, temperature, gamma)
    return alpha * tckd + beta * nckd


def true_class_confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability of the labelled class at temperature 1, without gradient.

    Args:
        logits: `[B, C]`.
        targets: Class indices `[B]` int64, or soft labels `[B, C]`, of which the largest counts.

    Returns:
        `[B]` in [0, 1].
    """
    labels = targets if targets.dim() == 1 else targets.argmax(dim=1)
    return F.softmax(logits.detach(), dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)


def filled_quantile(values: Tensor, q: Tensor) -> Tensor:
    """The q-quantile of the finite values, with linear interpolation, without a synchronisation.

    Args:
        values: `[H]`; inf marks an empty place.
        q: Scalar in `[0, 1]`.

    Returns:
        Scalar; as NumPy's ``quantile``. NaN where all places are empty.
    """
    last = values.isfinite().sum() - 1
    position = q.to(values.dtype) * last
    below = position.floor().long().clamp(min=0)
    ordered = values.sort().values
    low, high = ordered.gather(0, torch.stack([below, torch.minimum(below + 1, last.clamp(min=0))]))
    return low + (position - below) * (high - low)


def dynamic_weights(
    threshold: Tensor,
    confidence: Tensor,
    sensitivity: Tensor,
    base_alpha: float,
    base_beta: float,
    alpha_range: tuple[float, float],
    beta_range: tuple[float, float],
) -> DynamicWeights:
    """How dynamic DKD weights its terms: a teacher less sure than the threshold shifts weight to TCKD.

    ::

        r     = sigmoid(sensitivity (threshold - confidence))
        alpha = clamp(base_alpha (1 + r), alpha_range)
        beta  = clamp(base_beta (1 - r / 2), beta_range)

    Args:
        threshold: Scalar in [0, 1].
        confidence: Moving average of the teacher's true-class confidence, scalar in [0, 1].
        sensitivity: Steepness k, scalar > 0.
        base_alpha: alpha for a confident teacher.
        base_beta: beta for a confident teacher.
        alpha_range: Smallest and largest alpha.
        beta_range: Smallest and largest beta.

    Returns:
        Scalars on the device.

    Source:
        DPCD ``dpcd/train_student_cifar.py``, class ``DynamicDKD``.
    """
    ratio = torch.sigmoid(sensitivity * (threshold - confidence))
    alpha = (base_alpha * (1 + ratio)).clamp(*alpha_range)
    beta = (base_beta * (1 - 0.5 * ratio)).clamp(*beta_range)
    return DynamicWeights(ratio, alpha, beta)


def _agreement(student: Tensor, teacher: Tensor, is_target: Tensor, gamma: float) -> Tensor:
    """W_b of `ced_terms`, `[B]`, from tempered logits; the target's place adds the epsilon alone."""
    product = F.softmax(student, dim=1) * F.softmax(teacher, dim=1)
    return (product.masked_fill(is_target, 0) + CONSENSUS_EPSILON).pow(gamma / 2).sum(dim=1)
