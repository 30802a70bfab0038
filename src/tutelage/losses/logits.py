"""Losses on class scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy with hard or soft labels, mean over the batch.

    L = -1/B sum_b sum_c ((1 - e) y_bc + e / C) log softmax(z_b)_c, with e the label smoothing.

    Args:
        logits: Class scores z `[B, C]`.
        targets: Class indices `[B]` int64 in `[0, C)`, or a distribution over the classes `[B, C]`.
        label_smoothing: e in `[0, 1]`; the share of the label that is spread evenly over all classes.

    Returns:
        Scalar >= 0.
    """
    if targets.is_floating_point():
        targets = targets.to(logits.dtype)
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def binary_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Every class as a yes-or-no question that the label answers, mean over batch and classes.

    L = -1/(B C) sum_bc (t_bc log sigmoid(z_bc) + (1 - t_bc) log (1 - sigmoid(z_bc))), where
    t = (1 - e) y + e / C, with e the label smoothing.

    Args:
        logits: Class scores z `[B, C]`.
        targets: Class indices `[B]` int64 in `[0, C)`, or a distribution over the classes `[B, C]`.
        label_smoothing: e in `[0, 1]`.

    Returns:
        Scalar >= 0.

    Source:
        Wightman et al. 2021, arXiv 2110.00476; timm ``loss/binary_cross_entropy.py``, where the smoothing of
        distributions is left to what made them.
    """
    if not targets.is_floating_point():
        targets = target_mask(targets, logits.shape[1])
    soft = (1 - label_smoothing) * targets.to(logits.dtype) + label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, soft)


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Hinton's distillation loss: KL between softened class distributions.

    L = T^2 / B sum_b KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes. The factor T^2 keeps
    the size of the gradient independent of T.

    Args:
        student_logits: z_s `[B, C]`.
        teacher_logits: z_t `[B, C]`; minus infinity rules a class out.
        temperature: T > 0.

    Returns:
        Scalar >= 0; 0 if and only if both softened distributions agree.

    Source:
        Hinton et al. 2015, arXiv 1503.02531, section 2; RepDistiller ``distiller_zoo/KD.py``; OFAKD
        ``distillers/utils.py``. Both networks' distributions stay logarithms here, so a probability that
        underflows costs its true finite amount.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    # A class that the teacher rules out costs 0 log 0 = 0, and not 0 times minus infinity.
    teacher = teacher.clamp(min=torch.finfo(teacher.dtype).min)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def bkd_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Binary distillation: every class is a yes-or-no question that the teacher's softmax answers.

    L = -1/(B C) sum_bc (p_bc log sigmoid(z_bc) + (1 - p_bc) log (1 - sigmoid(z_bc))), p = softmax(z_t).

    Args:
        student_logits: z `[B, C]`.
        teacher_logits: z_t `[B, C]`.

    Returns:
        Scalar >= 0; least where sigmoid(z) = p, which isn't where the logits agree.

    Source:
        OFAKD and PAT ``distillers/kd.py`` (``BKD``).
    """
    return binary_cross_entropy(student_logits, teacher_logits.softmax(dim=1))


def dkd_terms(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Hinton's loss decoupled into its target-class and non-target-class parts.

    With p the softmax at temperature T and y the label::

        TCKD = T^2 / B sum_b KL([p_y, 1 - p_y]_teacher || [p_y, 1 - p_y]_student)
        NCKD = T^2 / B sum_b KL(q_teacher || q_student),  q_c = p_c / (1 - p_y) for c != y

    Args:
        student_logits: `[B, C]` with C >= 2.
        teacher_logits: `[B, C]`.
        targets: Class indices `[B]` int64, or soft labels `[B, C]`, of which the largest counts.
        temperature: T > 0.

    Returns:
        (TCKD, NCKD), two unweighted scalars >= 0. NCKD is 0 for two classes.

    Source:
        Zhao et al. 2022, arXiv 2203.08679, equations 5 to 7; mdistiller ``mdistiller/distillers/DKD.py``.
        Deviations: the reference takes the logarithm of summed probabilities and lowers the target's
        logit by 1000; where these underflow it returns inf or NaN. Here the two-way distribution is the
        sigmoid of the gap between the target's logit and the log-sum-exp of all others, and the target
        is left out exactly, so value and gradient stay finite for finite logits of any size.
    """
    is_target = target_mask(targets, student_logits.shape[1])
    student_two_way, student_others = decouple(student_logits / temperature, is_target)
    teacher_two_way, teacher_others = decouple(teacher_logits / temperature, is_target)
    tckd = F.kl_div(student_two_way, teacher_two_way, reduction="batchmean", log_target=True)
    nckd = F.kl_div(student_others, teacher_others, reduction="batchmean", log_target=True)
    return temperature**2 * tckd, temperature**2 * nckd


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """Decoupled knowledge distillation: alpha TCKD + beta NCKD.

    Args:
        student_logits: `[B, C]` with C >= 2.
        teacher_logits: `[B, C]`.
        targets: Class indices `[B]` int64, or soft labels `[B, C]`, of which the largest counts.
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term.
        temperature: T > 0.

    Returns:
        Scalar. See ``dkd_terms`` for equations, source and deviations.
    """
    tckd, nckd = dkd_terms(student_logits, teacher_logits, targets, temperature)
    return alpha * tckd + beta * nckd


def dist_terms(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Relations between classes (rows) and within a class (columns) as Pearson correlations.

    With P the softmax matrices `[B, C]` at temperature T and rho Pearson's correlation::

        inter = T^2 (1 - mean over rows    of rho(P_student[b, :], P_teacher[b, :]))
        intra = T^2 (1 - mean over columns of rho(P_student[:, c], P_teacher[:, c]))

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        temperature: T > 0 (tau in the paper).

    Returns:
        (inter, intra), two unweighted scalars in `[0, 2 T^2]`. A row or column that is constant but for
        rounding counts as uncorrelated and has no gradient: every column of a batch of one image, and every
        row of a classifier that starts at zero.

    Source:
        Huang et al. 2022, arXiv 2205.10536, equations 7 to 10; OFAKD ``distillers/dist.py``. Deviation: there
        a constant row gets a gradient larger by 1e8, what the product of the two lengths is raised by being
        1e-8; it ruins networks whose classifier starts at zero (ResMLP, MLP-Mixer) in the first step.
    """
    student = F.softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    inter = 1 - _pearson(student, teacher).mean()
    intra = 1 - _pearson(student.t(), teacher.t()).mean()
    return temperature**2 * inter, temperature**2 * intra


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, beta: float, gamma: float, temperature: float
) -> Tensor:
    """DIST: beta inter + gamma intra.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        beta: Weight of the relation between classes.
        gamma: Weight of the relation within a class.
        temperature: T > 0.

    Returns:
        Scalar. See ``dist_terms`` for equations and source.
    """
    inter, intra = dist_terms(student_logits, teacher_logits, temperature)
    return beta * inter + gamma * intra


def target_mask(targets: Tensor, classes: int) -> Tensor:
    """Where the label is.

    Args:
        targets: Class indices `[B]` int64, or soft labels `[B, C]`, of which the largest counts.
        classes: C.

    Returns:
        Bool `[B, C]`, one true entry a row.
    """
    labels = targets if targets.dim() == 1 else targets.argmax(dim=1)
    return torch.arange(classes, device=labels.device) == labels.unsqueeze(1)


def decouple(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target against rest `[B, 2]` and, renormalised, of the other classes `[B, C]`.

    The target's own column of the second is 0 in every row, which adds nothing to a KL divergence and
    passes no gradient.
    """
    others = logits.masked_fill(is_target, torch.finfo(logits.dtype).min).logsumexp(dim=1)
    target = logits.masked_fill(~is_target, 0).sum(dim=1)
    gap = target - others
    two_way = torch.stack([F.logsigmoid(gap), F.logsigmoid(-gap)], dim=1)
    return two_way, (logits - others.unsqueeze(1)).masked_fill(is_target, 0)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of matching rows, `[N, M]` and `[N, M]` to `[N]`."""
    (a, length_a), (b, length_b) = _centred(a), _centred(b)
    return (a * b).sum(dim=1) / (length_a * length_b + 1e-8)


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[N, M]` less their mean, and the lengths `[N]` of that; 0 and 1 for rows that are constant."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(centred, dim=1)
    rounding = 8 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows.detach(), dim=1)
    varies = lengths > rounding
    return torch.where(varies.unsqueeze(1), centred, 0.0), torch.where(varies, lengths, 1.0)
