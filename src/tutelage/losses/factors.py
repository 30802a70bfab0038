"""Factor transfer: compare what two small networks make of the features."""

from __future__ import annotations

from torch import Tensor

from tutelage.losses.features import attention_map, pooled_alike


def factor_loss(student: Tensor, teacher: Tensor, p1: int = 2, p2: int = 1) -> Tensor:
    """Distance of two factors.

    L = mean |A(F_s) - A(F_t)|^p2 over batch and positions, A the ``attention_map`` of power p1. Along each
    side the larger factor is average-pooled to the smaller beforehand.

    Args:
        student: F_s `[B, C_s, H_s, W_s]`, made by the translator.
        teacher: F_t `[B, C_t, H_t, W_t]`, made by the paraphraser.
        p1: Power of the attention map.
        p2: Power of the difference.

    Returns:
        Scalar >= 0.

    Source:
        Kim et al. 2018, arXiv 1802.04977, section 3, which compares the scaled factors themselves, not their
        attention maps; RepDistiller ``distiller_zoo/FT.py`` (an odd p2 above 1 keeps the sign there).
    """
    student, teacher = pooled_alike(student, teacher)
    return (attention_map(student, p1) - attention_map(teacher, p1)).abs().pow(p2).mean()
