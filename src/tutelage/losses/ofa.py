"""The loss of OFA-KD: the teacher's distribution with its target class enhanced."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tutelage.losses.logits import target_mask

TargetForm = Literal["code", "paper"]
"""Which of the two published weights of the classes, see `ofa_loss`."""


def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    eps: float,
    temperature: float = 1.0,
    form: TargetForm = "code",
) -> Tensor:
    """Cross entropy with the teacher's distribution, in which an exponent raises the target class.

    With p the softmax at temperature T, y the label and m its one-hot vector::

        L = -1/B sum_b sum_c w_bc log p_student[b, c]
        code:   w_c = (p_c + m_c)^eps - m_c, so (1 + p_y)^eps - 1 for the target and p_c^eps for the others
        paper:  w_y = (1 + p_y)^eps,         p_c for the others,                        p the teacher's

    Both are the cross entropy with the teacher's distribution at eps = 1, the paper's form plus the cross
    entropy with the label. A larger exponent lifts the target class the more, the surer the teacher is of it.

    Args:
        student_logits: `[B, C]`.
        teacher_logits: `[B, C]`.
        targets: Class indices `[B]` int64, or soft labels `[B, C]`, of which the largest counts.
        eps: The exponent, > 0 (gamma in the paper).
        temperature: T > 0; there is no factor T^2.
        form: "code" is what made the published tables.

    Returns:
        Scalar >= 0.

    Source:
        Hao et al. 2023, arXiv 2310.19444, equation 5; OFAKD ``distillers/ofa.py``. Deviation: that one takes
        the logarithm of the student's softmax, which is infinite where a probability underflows; here the
        log-softmax costs its true finite amount.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    is_target = target_mask(targets, teacher.shape[1])
    if form == "code":
        mask = is_target.to(teacher.dtype)
        weights = (teacher + mask).pow(eps) - mask
    else:
        weights = (1 + teacher).pow(eps).where(is_target, teacher)
    return -(weights * student).sum(dim=1).mean()
