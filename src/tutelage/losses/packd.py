"""PACKD's contrast of several positives against many negatives, weighted by optimal transport."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

EXCLUDED = -1e9
"""Similarity of a negative that must not count: finite, so that even a row of them has a gradient (0)."""


class Transport(NamedTuple):
    """What `sinkhorn` finds.

    Attributes:
        plan: `[B, P, Q]`, not negative. Columns sum to 1/Q, rows to 1/P once converged, all entries to 1.
        cost: `[B]`, the sum of plan times cost.
        rounds: int64 scalar, how many rounds were made.
    """

    plan: Tensor
    cost: Tensor
    rounds: Tensor


def sinkhorn(cost: Tensor, epsilon: float = 0.1, threshold: float = 0.1, rounds: int = 100) -> Transport:
    """Entropic optimal transport between uniform marginals, in the log domain.

    A round scales the rows of ``exp(-cost / epsilon)`` to the sum 1/P, then the columns to 1/Q. Rounds end as
    soon as the row potentials move by less than ``threshold``, summed over rows and averaged over the batch.
    All ``rounds`` are computed and those past the end thrown away, which spares the device a question to the
    host in every round.

    Args:
        cost: `[B, P, Q]`.
        epsilon: Weight of the entropy, in the unit of the cost; small is close to the best assignment.
        threshold: In the unit of the cost; 0 makes all rounds. With PACKD's defaults it ends after 1 to 3,
            before rows are evenly loaded.
        rounds: Largest number of rounds, at least 1.

    Returns:
        Plan, cost and number of rounds; differentiable in ``cost`` through all rounds.

    Source:
        Cuturi 2013, arXiv 1306.0895; PACKD ``code/packd/layers.py``, whose updates of the potentials are
        normalisations of rows and columns. It adds 1e-8 to the marginals, which float32 rounds away.
    """
    logits, running = -cost / epsilon, cost.new_ones((), dtype=torch.bool)
    row_mass, column_mass = (-math.log(size) for size in cost.shape[1:])
    done = cost.new_zeros((), dtype=torch.int64)
    for _ in range(rounds):
        loaded = logits.log_softmax(dim=2) + row_mass
        moved = epsilon * (loaded - logits)[:, :, 0].abs().sum(dim=1).mean()
        logits = torch.where(running, loaded.log_softmax(dim=1) + column_mass, logits)
        done = done + running
        running = running & (moved >= threshold)
    plan = logits.exp()
    return Transport(plan, (plan * cost).sum(dim=(1, 2)), done)


def positive_log_shares(positive: Tensor, negatives: Tensor, temperature: float = 0.07) -> Tensor:
    """The log of each positive's share among itself and the negatives: log(e^p / (e^p + sum_n e^n)).

    Args:
        positive: Similarities `[B, P]`, each on its own against the negatives.
        negatives: Similarities `[B, L]`; where one must not count, give `EXCLUDED`.
        temperature: tau, which all similarities are divided by.

    Returns:
        `[B, P]`, at most 0. Computed by log-sum-exp, so that no similarity overflows.
    """
    scaled = positive / temperature
    return scaled - torch.logaddexp(scaled, (negatives / temperature).logsumexp(dim=1, keepdim=True))


def packd_loss(
    student: Tensor,
    teacher: Tensor,
    negatives: Tensor,
    temperature: float = 0.07,
    epsilon: float = 0.1,
    threshold: float = 0.1,
    rounds: int = 100,
    cosine_cost: bool = False,
) -> Tensor:
    """Positive-pair aware contrastive loss.

    L = mean_b -log(e^(p_b / tau) / (e^(p_b / tau) + sum_n e^(n_b / tau))), where p_b = <plan_b, C_b> weighs
    the cosines C_b of all pairs of a student's and a teacher's positive of anchor b by `sinkhorn`'s plan, and
    n_b are the similarities of all the student's positives with their negatives. The plan has no gradient.

    Args:
        student: Embeddings of unit length `[B, M, D]`, the M views of each anchor.
        teacher: The same of the teacher.
        negatives: Similarities of the student's embeddings with the negatives, `[B, L]`, see
            `positive_log_shares`.
        temperature: tau.
        epsilon: See `sinkhorn`.
        threshold: See `sinkhorn`.
        rounds: See `sinkhorn`.
        cosine_cost: Transport by the paper's cost 1 - cos / tau; else by the code's squared Euclidean
            distance, 2 - 2 cos.

    Returns:
        Scalar, at least 0.

    Source:
        Yu et al. 2022, doi 10.1145/3503161.3548256, equation 9; PACKD ``code/packd/packd.py``.
    """
    cosines = student @ teacher.transpose(1, 2)
    with torch.no_grad():
        cost = 1 - cosines / temperature if cosine_cost else 2 - 2 * cosines
        plan = sinkhorn(cost, epsilon, threshold, rounds).plan
    positive = (plan * cosines).sum(dim=(1, 2)).unsqueeze(1)
    return -positive_log_shares(positive, negatives, temperature).mean()
