"""Sinkhorn's plan and the positive-pair contrast against noted values and slow references in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.losses import packd_loss
from tutelage.losses.packd import EXCLUDED, positive_log_shares, sinkhorn


def circle(*degrees: float) -> Tensor:
    """Unit vectors `[n, 2]` at the given angles."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


STUDENT, TEACHER = circle(0, 30, 100), circle(10, 60, 120)
COST = (STUDENT[:, None] - TEACHER[None]).square().sum(2).unsqueeze(0)


def clouds(*shape: int, seed: int = 0) -> Tensor:
    points = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return points / points.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(
    ("epsilon", "threshold", "rounds", "plan", "cost"),
    [
        (0.1, 0.1, 1, [0.183795, 0.000095, 0, 0.149538, 0.286927, 0, 0, 0.046311, 0.333333], 0.162472),
        (0.1, 0.0, 100, [0.327018, 0.004532, 0, 0.006315, 0.326014, 0, 0, 0.002788, 0.333333], 0.144094),
        (0.01, 0.1, 2, [0.25, 0, 0, 0.083333, 0.333333, 0, 0, 0, 0.333333], 0.147169),
    ],
)
def test_noted_plans(epsilon: float, threshold: float, rounds: int, plan: list[float], cost: float) -> None:
    noted = [0.030385, 1, 3, 0.120615, 0.267949, 2, 2, 0.467911, 0.120615]
    torch.testing.assert_close(COST.flatten(), torch.tensor(noted).double(), atol=1e-6, rtol=0)
    result = sinkhorn(COST, epsilon, threshold, 100)
    assert int(result.rounds) == rounds
    torch.testing.assert_close(result.plan.flatten(), torch.tensor(plan).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.cost, torch.tensor([cost]).double(), atol=1e-6, rtol=0)


def slow_sinkhorn(cost: Tensor, epsilon: float, threshold: float, rounds: int) -> tuple[Tensor, int]:
    """Potentials, loops and a real break."""
    batch, rows, columns = cost.shape
    u, v = torch.zeros(batch, rows).double(), torch.zeros(batch, columns).double()
    done = 0
    while done < rounds:
        done, before = done + 1, u
        u = torch.stack(
            [epsilon * (math.log(1 / rows) - ((v - cost[:, p]) / epsilon).logsumexp(1)) for p in range(rows)],
            dim=1,
        )
        v = torch.stack(
            [
                epsilon * (math.log(1 / columns) - ((u - cost[:, :, q]) / epsilon).logsumexp(1))
                for q in range(columns)
            ],
            dim=1,
        )
        if (u - before).abs().sum(1).mean() < threshold:
            break
    return ((u[:, :, None] + v[:, None] - cost) / epsilon).exp(), done


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.3, 0.1, 1e-3, 0.0])
def test_the_mask_stops_where_a_loop_would(seed: int, threshold: float) -> None:
    cost = 4 * torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected, rounds = slow_sinkhorn(cost, 0.1, threshold, 30)
    result = sinkhorn(cost, 0.1, threshold, 30)
    assert int(result.rounds) == rounds
    torch.testing.assert_close(result.plan, expected)


def test_columns_are_exact_and_rows_in_the_limit() -> None:
    cost = 4 * torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    early, late = sinkhorn(cost).plan, sinkhorn(cost, threshold=0.0, rounds=300).plan
    for plan in (early, late):
        torch.testing.assert_close(plan.sum(1), torch.full((5, 4), 0.25).double())
    assert (early.sum(2) - 1 / 3).abs().max() > 1e-3
    torch.testing.assert_close(late.sum(2), torch.full((5, 3), 1 / 3).double(), rtol=1e-4, atol=1e-6)


def test_one_positive_carries_everything_and_small_entropies_stay_finite() -> None:
    assert torch.equal(sinkhorn(torch.tensor([[[3.0]], [[0.0]]])).plan, torch.ones(2, 1, 1))
    tiny = sinkhorn(COST.float(), epsilon=1e-7).plan
    assert torch.isfinite(tiny).all()
    torch.testing.assert_close(tiny.sum(), torch.tensor(1.0))


def slow_loss(student: Tensor, teacher: Tensor, negatives: Tensor, plan: Tensor, tau: float) -> Tensor:
    """The formula with plain exponentials, anchor by anchor."""
    losses = []
    for own, guide, others, weights in zip(student, teacher, negatives, plan, strict=True):
        views = range(len(own))
        positive = sum(weights[p, q] * (own[p] @ guide[q]) for p in views for q in views)
        top = (positive / tau).exp()
        losses.append(-(top / (top + (others / tau).exp().sum())).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("views", [1, 2, 4])
def test_loss_and_gradients_are_those_of_the_formula(views: int, cosine: bool) -> None:
    student, teacher = clouds(3, views, 6).requires_grad_(), clouds(3, views, 6, seed=1)
    bank = clouds(20, 6, seed=2)
    results = []
    for slow in (False, True):
        negatives = (student @ bank.T).flatten(1)
        if slow:
            cosines = (student @ teacher.transpose(1, 2)).detach()
            cost = 1 - cosines / 0.2 if cosine else 2 - 2 * cosines
            loss = slow_loss(student, teacher, negatives, slow_sinkhorn(cost, 0.1, 0.1, 100)[0], 0.2)
        else:
            loss = packd_loss(student, teacher, negatives, 0.2, cosine_cost=cosine)
        results.append((loss, *torch.autograd.grad(loss, student)))
    torch.testing.assert_close(results[0], results[1])
    if views > 1:
        other = packd_loss(student, teacher, (student @ bank.T).flatten(1), 0.2, cosine_cost=not cosine)
        assert not torch.isclose(other, results[0][0], rtol=1e-6)


def test_similarities_that_overflow_in_exponentials_do_not_here() -> None:
    positive, negatives = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    shares = positive_log_shares(positive, negatives, 1e-3)
    assert torch.isfinite(shares).all() and shares[1] < -1999
    half = positive_log_shares(positive.bfloat16().float(), negatives, 0.07)
    assert torch.isfinite(half).all()


def test_excluded_negatives_have_no_weight_and_no_gradient() -> None:
    positive = torch.tensor([[0.3], [0.2]], requires_grad=True)
    negatives = torch.tensor([[EXCLUDED] * 3, [0.1, EXCLUDED, EXCLUDED]], requires_grad=True)
    shares = positive_log_shares(positive, negatives)
    assert shares[0] == 0
    torch.testing.assert_close(shares[1], torch.nn.functional.logsigmoid(torch.tensor([0.1 / 0.07])))
    gradients = torch.autograd.grad(shares.sum(), (positive, negatives))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert gradients[1].count_nonzero() == 1 and gradients[0][0] == 0


def test_the_plan_is_detached_and_the_teacher_differentiable() -> None:
    student, teacher = clouds(2, 3, 4).requires_grad_(), clouds(2, 3, 4, seed=1).requires_grad_()
    loss = packd_loss(student, teacher, torch.zeros(2, 5).double())
    ours = torch.autograd.grad(loss, (student, teacher))
    cosines = student @ teacher.transpose(1, 2)
    plan = sinkhorn((2 - 2 * cosines).detach()).plan
    positive = (plan * cosines).sum((1, 2))[:, None]
    theirs = torch.autograd.grad(-positive_log_shares(positive, torch.zeros(2, 5)).mean(), (student, teacher))
    torch.testing.assert_close(ours, theirs)
