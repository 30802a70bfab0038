"""Losses on logits against loops in float64, and against 60 digits where float64 runs out."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.losses import cross_entropy, dist_loss, dist_terms, dkd_loss, dkd_terms, kd_loss

examples = settings(max_examples=30, deadline=None, derandomize=True)
batches = st.integers(1, 5)
classes = st.integers(2, 7)
temperatures = st.floats(0.5, 8)
seeds = st.integers(0, 2**31)


def random_logits(seed: int, batch: int, count: int, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Student's logits, teacher's logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, batch, count, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(count, (batch,), generator=generator)


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive_dkd(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> tuple[float, float]:
    tckd = nckd = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        q, p = softmax(s, temperature), softmax(t, temperature)
        others_q = [value for c, value in enumerate(q) if c != y]
        others_p = [value for c, value in enumerate(p) if c != y]
        tckd += kl([p[y], sum(others_p)], [q[y], sum(others_q)])
        nckd += kl(
            [value / sum(others_p) for value in others_p], [value / sum(others_q) for value in others_q]
        )
    return temperature**2 * tckd / len(targets), temperature**2 * nckd / len(targets)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (math.sqrt((a * a).sum()) * math.sqrt((b * b).sum()) + 1e-8))


@examples
@given(seeds, batches, classes, st.floats(0, 1))
def test_cross_entropy(seed: int, batch: int, count: int, smoothing: float) -> None:
    logits, other, targets = random_logits(seed, batch, count)
    soft = other.softmax(1)
    hard_loss = soft_loss = 0.0
    for b in range(batch):
        p = softmax(logits[b].tolist(), 1.0)
        for c in range(count):
            hard_label = (1 - smoothing) * (c == targets[b].item()) + smoothing / count
            soft_label = (1 - smoothing) * soft[b, c].item() + smoothing / count
            hard_loss -= hard_label * math.log(p[c]) / batch
            soft_loss -= soft_label * math.log(p[c]) / batch
    assert cross_entropy(logits, targets, smoothing).item() == pytest.approx(hard_loss, rel=1e-10)
    assert cross_entropy(logits, soft, smoothing).item() == pytest.approx(soft_loss, rel=1e-10)
    one_hot = torch.nn.functional.one_hot(targets, count).float()
    assert cross_entropy(logits, one_hot, smoothing).item() == pytest.approx(hard_loss, rel=1e-10)


@examples
@given(seeds, batches, classes, temperatures)
def test_kd(seed: int, batch: int, count: int, temperature: float) -> None:
    student, teacher, _ = random_logits(seed, batch, count)
    expected = sum(
        kl(softmax(t, temperature), softmax(s, temperature))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    )
    got = kd_loss(student, teacher, temperature).item()
    assert got == pytest.approx(temperature**2 * expected / batch, rel=1e-9, abs=1e-12)


@examples
@given(seeds, batches, classes, temperatures)
def test_dkd(seed: int, batch: int, count: int, temperature: float) -> None:
    student, teacher, targets = random_logits(seed, batch, count)
    tckd, nckd = naive_dkd(student, teacher, targets, temperature)
    got = dkd_terms(student, teacher, targets, temperature)
    assert got[0].item() == pytest.approx(tckd, rel=1e-7, abs=1e-10)
    assert got[1].item() == pytest.approx(nckd, rel=1e-7, abs=1e-10)
    total = dkd_loss(student, teacher, targets, 0.5, 6.0, temperature).item()
    assert total == pytest.approx(0.5 * tckd + 6 * nckd, rel=1e-7, abs=1e-10)


@examples
@given(seeds, batches, classes, temperatures)
def test_dkd_recomposes_kd(seed: int, batch: int, count: int, temperature: float) -> None:
    """KD = TCKD + (1 - p_y) NCKD sample by sample (the paper's equation 7)."""
    student, teacher, targets = random_logits(seed, batch, count)
    whole = 0.0
    for b in range(batch):
        tckd, nckd = dkd_terms(student[b : b + 1], teacher[b : b + 1], targets[b : b + 1], temperature)
        whole += (tckd + (1 - (teacher[b] / temperature).softmax(0)[targets[b]]) * nckd).item() / batch
    assert whole == pytest.approx(kd_loss(student, teacher, temperature).item(), rel=1e-9, abs=1e-12)


def test_dkd_takes_the_largest_soft_label() -> None:
    student, teacher, targets = random_logits(3, 6, 5)
    soft = torch.full((6, 5), 0.15, dtype=torch.float64).scatter_(1, targets.unsqueeze(1), 0.4)
    for hard_term, soft_term in zip(
        dkd_terms(student, teacher, targets, 4.0), dkd_terms(student, teacher, soft, 4.0), strict=True
    ):
        assert torch.equal(hard_term, soft_term)


def exact_dkd(student: list[int], teacher: list[int], target: int) -> tuple[Decimal, Decimal]:
    """TCKD and NCKD of one sample at T = 1 in 60 digits."""

    def two_parts(row: list[int]) -> tuple[list[Decimal], list[Decimal]]:
        weights = [Decimal(value).exp() for value in row]
        rest = [weight for c, weight in enumerate(weights) if c != target]
        two_way = [weights[target] / sum(weights), sum(rest) / sum(weights)]
        return two_way, [weight / sum(rest) for weight in rest]

    def divergence(p: list[Decimal], q: list[Decimal]) -> Decimal:
        return sum((a * (a / b).ln() for a, b in zip(p, q, strict=True)), Decimal(0))

    (p2, p), (q2, q) = two_parts(teacher), two_parts(student)
    return divergence(p2, q2), divergence(p, q)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([800, 0, -3], [0, 1, 2]),  # the student's non-target mass underflows: inf in the reference
        ([-900, 0, 5], [4, 1, 0]),
        ([0, 2000, -2000], [1, 0, 3]),
        ([3, 1, 0], [3000, 0, 1]),
        ([3000, 1, 0], [3000, 0, 1]),  # a target 1000 above the rest no longer hides behind a lowered logit
        ([5000, 4000, 0], [0, 4000, 5000]),
    ],
)
def test_dkd_of_extreme_logits(student: list[int], teacher: list[int], precision: torch.dtype) -> None:
    with localcontext() as context:
        context.prec = 60
        exact = [float(value) for value in exact_dkd(student, teacher, 0)]
    logits = torch.tensor([student], dtype=precision, requires_grad=True)
    terms = dkd_terms(logits, torch.tensor([teacher], dtype=precision), torch.tensor([0]), 1.0)
    assert [term.item() for term in terms] == pytest.approx(exact, rel=1e-4, abs=1e-6)
    (gradient,) = torch.autograd.grad(sum(terms), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [1e3, 1e5, 1e10])
def test_extreme_logits_stay_finite(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = size * torch.randn(2, 8, 10, generator=generator)
    student.requires_grad_()
    targets = torch.randint(10, (8,), generator=generator)
    losses = {
        "ce": cross_entropy(student, targets),
        "kd": kd_loss(student, teacher, 4.0),
        "dkd": dkd_loss(student, teacher, targets, 1.0, 8.0, 4.0),
        "dist": dist_loss(student, teacher, 1.0, 1.0, 4.0),
    }
    for name, loss in losses.items():
        assert loss.isfinite(), name
        assert torch.autograd.grad(loss, student, retain_graph=True)[0].isfinite().all(), name


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agreeing_networks_lose_nothing(temperature: float) -> None:
    student, _, targets = random_logits(5, 6, 9)
    student.requires_grad_()
    shifted = student.detach() + torch.arange(6.0, dtype=torch.float64).unsqueeze(1)
    exact = kd_loss(student, shifted, temperature), *dkd_terms(student, shifted, targets, temperature)
    nearly = dist_terms(student, shifted, temperature)  # its denominators carry 1e-8
    for loss, tolerance in [*((loss, 1e-10) for loss in exact), *((loss, 1e-4) for loss in nearly)]:
        assert loss.item() == pytest.approx(0, abs=tolerance)
        assert torch.autograd.grad(loss, student, retain_graph=True)[0].abs().max() < tolerance


def test_two_classes_have_no_non_target_relation() -> None:
    student, teacher, targets = random_logits(6, 4, 2)
    assert dkd_terms(student, teacher, targets, 2.0)[1].item() == 0


@examples
@given(seeds, st.integers(2, 6), classes, temperatures)
def test_dist(seed: int, batch: int, count: int, temperature: float) -> None:
    student, teacher, _ = random_logits(seed, batch, count)
    p = np.array([softmax(row, temperature) for row in student.tolist()])
    q = np.array([softmax(row, temperature) for row in teacher.tolist()])
    inter = temperature**2 * (1 - sum(pearson(p[b], q[b]) for b in range(batch)) / batch)
    intra = temperature**2 * (1 - sum(pearson(p[:, c], q[:, c]) for c in range(count)) / count)
    got = dist_terms(student, teacher, temperature)
    assert [term.item() for term in got] == pytest.approx([inter, intra], rel=1e-8, abs=1e-8)
    total = dist_loss(student, teacher, 2.0, 3.0, temperature).item()
    assert total == pytest.approx(2 * inter + 3 * intra, rel=1e-8, abs=1e-7)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 10, 1000])
def test_dist_of_a_student_that_knows_nothing_is_calm(count: int, precision: torch.dtype) -> None:
    """A classifier that starts at zero makes every row and column constant, but for rounding."""
    _, teacher, _ = random_logits(3, 16, count)
    student = torch.zeros(16, count, dtype=precision, requires_grad=True)
    inter, intra = dist_terms(student, teacher.to(precision), 1.0)
    assert inter.item() == intra.item() == 1.0
    (gradient,) = torch.autograd.grad(inter + intra, student)
    assert not gradient.any()
    noise = torch.randn(16, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slightly = (1e-3 * noise).to(precision).requires_grad_()
    (gradient,) = torch.autograd.grad(sum(dist_terms(slightly, teacher.to(precision), 1.0)), slightly)
    assert 0 < gradient.norm() < 1e3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_teacher_may_rule_classes_out(temperature: float) -> None:
    student, teacher, _ = random_logits(5, 6, 7)
    teacher[:, 2] = -torch.inf
    student.requires_grad_()
    probabilities = (teacher / temperature).softmax(dim=1)
    logs = (student / temperature).log_softmax(dim=1)
    kept = probabilities > 0
    each = probabilities[kept] * (probabilities[kept].log() - logs[kept])
    loss = kd_loss(student, teacher, temperature)
    torch.testing.assert_close(loss, temperature**2 * each.sum() / 6)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, temperature / 6 * (logs.exp() - probabilities))


def test_dist_of_one_image_has_a_gradient() -> None:
    student, teacher, _ = random_logits(7, 1, 5)
    student.requires_grad_()
    inter, intra = dist_terms(student, teacher, 4.0)
    assert intra.item() == 16.0
    (gradient,) = torch.autograd.grad(inter + intra, student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
