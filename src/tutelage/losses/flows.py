"""Flow of solution procedure: how one layer's channels go with the next one's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tutelage.losses.features import hint_loss, pooled_alike


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Products of the channels of two layers, averaged over positions.

    G_bij = mean over positions of F_1,bi F_2,bj. Along each side the larger map is average-pooled to the
    smaller beforehand.

    Args:
        first: F_1 `[B, C_1, H_1, W_1]`.
        second: F_2 `[B, C_2, H_2, W_2]`.

    Returns:
        `[B, C_1, C_2]`.

    Source:
        Yim et al. 2017 (CVPR), section 3; RepDistiller ``distiller_zoo/FSP.py``.
    """
    first, second = (maps.flatten(2) for maps in pooled_alike(first, second))
    return first @ second.transpose(1, 2) / first.shape[2]


def flow_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the flow matrices, summed over consecutive layers.

    L = sum_l mean (G(F_s,l, F_s,l+1) - G(F_t,l, F_t,l+1))^2.

    Args:
        student: Features `[B, C_l, H_l, W_l]` of at least two layers.
        teacher: As many; layer for layer with equally many channels, but of any height and width.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: The numbers of channels differ.

    Source:
        Yim et al. 2017 (CVPR), section 3; RepDistiller ``distiller_zoo/FSP.py``.
    """
    flows = [[flow_matrix(*pair) for pair in pairwise(features)] for features in (student, teacher)]
    return torch.stack([hint_loss(*pair) for pair in zip(*flows, strict=True)]).sum()
