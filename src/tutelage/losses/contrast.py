"""Noise-contrastive estimation: tell the sample's own partner from many drawn ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPSILON = 1e-7


def contrast_loss(log_scores: Tensor, data_size: int) -> Tensor:
    """CRD's contrast for one direction, from the logarithms of normalised scores.

    L = -1/B sum_b [log P_b0 / (P_b0 + n + e) + sum_k log n / (P_bk + n + e)], n = K / N, e = 1e-7: the
    log-likelihood of knowing column 0 for the partner and columns 1 to K for draws from the data.

    Args:
        log_scores: log P `[B, K + 1]`, column 0 the sample's own partner; P is exp(similarity / T) / Z with Z
            from `log_normaliser`.
        data_size: N, images in the training set, one of which is drawn with probability 1 / N.

    Returns:
        Scalar > 0.

    Source:
        Tian et al. 2020, arXiv 1910.10699, section 3.1; RepDistiller ``crd/criterion.py``
        (``ContrastLoss``), which takes P itself. With logarithms no temperature overflows.
    """
    rate = (log_scores.shape[1] - 1) / data_size
    floor = torch.full_like(log_scores[:1, :1], math.log(rate + _EPSILON))
    known_partner = log_scores[:, 0] - torch.logaddexp(log_scores[:, :1], floor).squeeze(1)
    known_draws = math.log(rate) - torch.logaddexp(log_scores[:, 1:], floor)
    return -(known_partner.sum() + known_draws.sum()) / len(log_scores)


def log_normaliser(scores: Tensor, data_size: int) -> Tensor:
    """log Z, Z = N mean exp(score): what makes the scores of one batch average to 1 / N.

    Args:
        scores: Similarities over the temperature, of any shape.
        data_size: N, images in the training set.

    Returns:
        Scalar.

    Source:
        RepDistiller ``crd/memory.py``, which keeps the Z of the first batch for the whole training.
    """
    return scores.flatten().logsumexp(dim=0) - math.log(scores.numel()) + math.log(data_size)
