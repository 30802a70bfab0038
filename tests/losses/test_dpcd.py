"""DPCD's losses against loops in float64 and the numbers worked out with the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.losses import ced_loss, ced_terms, cross_entropy, dkd_terms, kd_loss
from tutelage.losses.dpcd import dynamic_weights, filled_quantile, true_class_confidence

examples = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)

ROWS, COLUMNS = torch.arange(4.0).double().unsqueeze(1), torch.arange(5.0).double()
STUDENT, TEACHER = 2 * torch.sin(ROWS + 2 * COLUMNS), 3 * torch.cos(2 * ROWS + COLUMNS)
LABELS = torch.arange(4)


def random_logits(seed: int, batch: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two heads' logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    first, second = 3 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    return first, second, torch.randint(classes, (batch,), generator=generator)


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def naive_ced(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, gamma: float
) -> tuple[float, float]:
    tckd = nckd = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        q, p = softmax(s, temperature), softmax(t, temperature)
        others = [c for c in range(len(p)) if c != y]
        for of_teacher, of_student in ((p[y], q[y]), (sum(p[c] for c in others), sum(q[c] for c in others))):
            tckd += of_teacher * (math.log(of_teacher) - math.log(of_student + 1e-8))
        weight = sum(math.sqrt((p[c] * q[c] if c != y else 0) + 1e-8) ** gamma for c in range(len(p)))
        rest_p, rest_q = sum(p[c] for c in others), sum(q[c] for c in others)
        kl = sum(p[c] / rest_p * math.log(p[c] / rest_p / (q[c] / rest_q)) for c in others)
        nckd += weight * kl
    return temperature**2 * tckd / len(targets), temperature**2 * nckd / len(targets)


def test_numbers_of_the_reference() -> None:
    """Section 1.8 of the specification, all of it that is about losses."""
    tckd, nckd = dkd_terms(STUDENT, TEACHER, LABELS, 3.0)
    assert cross_entropy(STUDENT, LABELS).item() == pytest.approx(2.3579910122, abs=1e-10)
    assert kd_loss(STUDENT, TEACHER, 3.0).item() == pytest.approx(2.7232773642, abs=1e-10)
    assert tckd.item() == pytest.approx(1.2601011278, abs=1e-10)
    assert nckd.item() == pytest.approx(1.8451403455, abs=1e-10)
    confidence = true_class_confidence(TEACHER, LABELS)
    assert confidence.tolist() == pytest.approx([0.78391162, 0.00248516, 0.58338194, 0.00230370], abs=1e-8)
    assert confidence.mean().item() == pytest.approx(0.3430206048, abs=1e-10)
    threshold, sensitivity = torch.tensor([0.60, 18.0], dtype=torch.float64)
    free = dynamic_weights(threshold, confidence.mean(), sensitivity, 1.0, 6.0, (0, 9), (0, 9))
    expected = [0.9902975701, 1.9902975701, 3.0291072897]
    assert [value.item() for value in free] == pytest.approx(expected, abs=1e-10)
    held = dynamic_weights(threshold, confidence.mean(), sensitivity, 1.0, 6.0, (0.5, 2.0), (5.0, 8.0))
    assert held.beta.item() == 5
    assert (held.alpha * tckd + held.beta * nckd).item() == pytest.approx(11.733678, abs=1e-6)
    weighted = ced_terms(STUDENT, TEACHER, LABELS)[1]
    assert weighted.item() == pytest.approx(0.3050190, abs=1e-7)
    assert ced_loss(STUDENT, TEACHER, LABELS).item() == pytest.approx(3.7002530, abs=1e-7)
    assert abs(ced_loss(STUDENT, STUDENT, LABELS).item()) < 2e-7


def test_sample_weights_of_the_reference() -> None:
    """W_b is what NCKD of one sample gains over its unweighted divergence."""
    weights = []
    for b in range(4):
        row = slice(b, b + 1)
        plain = dkd_terms(STUDENT[row], TEACHER[row], LABELS[row], 3.0)[1]
        weights.append((ced_terms(STUDENT[row], TEACHER[row], LABELS[row])[1] / plain).item())
    assert weights == pytest.approx([0.13091606, 0.20198269, 0.14720502, 0.17236151], abs=1e-8)


@examples
@given(seeds, st.integers(1, 4), st.integers(2, 6), st.floats(0.5, 8), st.floats(0, 4))
def test_ced(seed: int, batch: int, classes: int, temperature: float, gamma: float) -> None:
    first, second, targets = random_logits(seed, batch, classes)
    tckd, nckd = naive_ced(first, second, targets, temperature, gamma)
    got = ced_terms(first, second, targets, temperature, gamma)
    assert [term.item() for term in got] == pytest.approx([tckd, nckd], rel=1e-7, abs=1e-9)
    total = ced_loss(first, second, targets, temperature, gamma, 2.0, 5.0).item()
    assert total == pytest.approx(2 * tckd + 5 * nckd, rel=1e-7, abs=1e-8)


def test_ced_takes_the_largest_soft_label() -> None:
    first, second, targets = random_logits(1, 4, 5)
    soft = torch.full((4, 5), 0.15, dtype=torch.float64).scatter_(1, targets.unsqueeze(1), 0.4)
    assert torch.equal(ced_loss(first, second, soft), ced_loss(first, second, targets))


def numeric_gradient(seed: int, agreement: Tensor, argument: int) -> Tensor:
    """Central differences of the loss; the agreement and NCKD's guide stay where they are."""
    first, second, targets = random_logits(seed, 3, 4)
    gradient = torch.zeros(3, 4, dtype=torch.float64)
    for position in range(12):
        values = []
        for sign in (1, -1):
            moved = [first.clone(), second.clone()]
            moved[argument].view(-1)[position] += sign * 1e-5
            tckd = naive_ced(moved[0], moved[1], targets, 3.0, 2.0)[0]
            samples = zip(moved[0].split(1), second.split(1), targets.split(1), strict=True)
            nckd = torch.stack([dkd_terms(s, t, y, 3.0)[1] for s, t, y in samples])
            values.append(tckd + 8 * float((agreement * nckd).mean()))
        gradient.view(-1)[position] = (values[0] - values[1]) / 2e-5
    return gradient


def test_ced_keeps_gradients_back() -> None:
    """The agreement has none at all, the non-target part none to the guide."""
    first, second, targets = random_logits(4, 3, 4)
    p, q = (first / 3).softmax(1), (second / 3).softmax(1)
    product = (p * q).scatter(1, targets.unsqueeze(1), 0) + 1e-8
    first.requires_grad_(), second.requires_grad_()
    loss = ced_loss(first, second, targets)
    gradients = torch.autograd.grad(loss, (first, second))
    for argument, gradient in enumerate(gradients):
        numeric = numeric_gradient(4, product.sum(dim=1), argument)
        torch.testing.assert_close(gradient, numeric, rtol=1e-5, atol=1e-6)
    tckd, nckd = ced_terms(first, second, targets)
    assert torch.autograd.grad(nckd, second, allow_unused=True, retain_graph=True) == (None,)
    assert torch.equal(gradients[1], torch.autograd.grad(tckd, second)[0])
    assert gradients[1].abs().max() > 1e-3


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_extreme_logits_stay_finite(size: float) -> None:
    first, second = size * torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    first.requires_grad_(), second.requires_grad_()
    loss = ced_loss(first, second, torch.arange(6))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (first, second)))


def test_a_head_learns_nothing_from_itself() -> None:
    """The reference lists these pairs; leaving them out changes nothing."""
    logits = STUDENT.float().requires_grad_()
    loss = ced_loss(logits, logits, LABELS)
    assert abs(loss.item()) < 2e-6
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


def test_confidence_is_measured_at_temperature_one_and_has_no_gradient() -> None:
    first, _, targets = random_logits(2, 5, 4)
    expected = [softmax(row, 1.0)[y] for row, y in zip(first.tolist(), targets.tolist(), strict=True)]
    got = true_class_confidence(first.requires_grad_(), targets)
    assert got.tolist() == pytest.approx(expected, rel=1e-12)
    assert not got.requires_grad
    one_hot = torch.nn.functional.one_hot(targets, 4).double()
    assert torch.equal(got, true_class_confidence(first, one_hot))


@examples
@given(seeds, st.integers(1, 12), st.integers(0, 5), st.floats(0, 1))
def test_quantile_of_the_filled_places(seed: int, filled: int, empty: int, q: float) -> None:
    values = np.random.RandomState(seed).uniform(size=filled)
    places = torch.cat([torch.full((empty,), math.inf), torch.from_numpy(values)])
    got = filled_quantile(places, torch.tensor(q, dtype=torch.float64)).item()
    assert got == pytest.approx(np.quantile(values, q), rel=1e-9)


@examples
@given(st.floats(0, 1), st.floats(0, 1), st.floats(6, 18))
def test_dynamic_weights(threshold: float, confidence: float, sensitivity: float) -> None:
    ratio = 1 / (1 + math.exp(-sensitivity * (threshold - confidence)))
    alpha, beta = min(max(1 + ratio, 0.5), 1.7), min(max(6 * (1 - ratio / 2), 5.0), 5.5)
    inputs = torch.tensor([threshold, confidence, sensitivity], dtype=torch.float64)
    got = dynamic_weights(*inputs, 1.0, 6.0, (0.5, 1.7), (5.0, 5.5))
    assert [value.item() for value in got] == pytest.approx([ratio, alpha, beta], rel=1e-9)


def test_compiles_whole() -> None:
    torch.compiler.reset()
    first, second = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()

    def everything(student: Tensor, teacher: Tensor) -> Tensor:
        confidence = true_class_confidence(teacher, LABELS)
        threshold = filled_quantile(confidence, torch.tensor(0.65).double())
        mean, sensitivity = confidence.mean(), threshold * 18
        weights = dynamic_weights(threshold, mean, sensitivity, 1.0, 6.0, (0.5, 2.0), (1.0, 8.0))
        return weights.alpha * ced_loss(student, teacher, LABELS) + weights.beta

    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for call in (everything, compiled):
        loss = call(first, second)
        results.append((loss, *torch.autograd.grad(loss, (first, second))))
    torch.testing.assert_close(results[1], results[0])
    torch.compiler.reset()
