"""The loss of OFA-KD against loops in float64 and the numbers that the reference gives for sines."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.losses import cross_entropy, kd_loss, ofa_loss
from tutelage.losses.logits import target_mask

PLACES = torch.arange(1, 21, dtype=torch.float64)
STUDENT, TEACHER = (2 * torch.sin(PLACES)).view(4, 5), (3 * torch.sin(0.7 * PLACES + 0.3)).view(4, 5)
LABELS = torch.tensor([0, 3, 1, 4])


def probabilities(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def naive(
    student: Tensor, teacher: Tensor, labels: Tensor, eps: float, temperature: float, form: str
) -> float:
    total = 0.0
    for row, taught, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        mine, theirs = probabilities(row, temperature), probabilities(taught, temperature)
        for c in range(len(row)):
            if form == "paper":
                weight = (1 + theirs[c]) ** eps if c == label else theirs[c]
            else:
                weight = (1 + theirs[c]) ** eps - 1 if c == label else theirs[c] ** eps
            total -= weight * math.log(mine[c])
    return total / len(student)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(2, 6),
    st.floats(0.5, 3.0),
    st.floats(0.5, 8.0),
    st.sampled_from(["code", "paper"]),
)
def test_the_loss_is_the_sum_over_classes(
    seed: int, batch: int, classes: int, eps: float, temperature: float, form: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    expected = naive(student, teacher, labels, eps, temperature, form)
    assert ofa_loss(student, teacher, labels, eps, temperature, form).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("eps", "form", "expected"),
    [
        (1.0, "code", 2.4899874838788465),
        (1.2, "code", 2.3609831812897757),
        (1.5, "code", 2.2704749607951937),
        (2.0, "code", 2.2712906607356764),
        (1.0, "paper", 4.172441502641573),
        (1.5, "paper", 4.427297608407259),
    ],
)
def test_noted_value(eps: float, form: str, expected: float) -> None:
    assert ofa_loss(STUDENT, TEACHER, LABELS, eps, form=form).item() == pytest.approx(expected, rel=1e-12)


def test_exponent_one_is_the_cross_entropy_with_the_teacher_and_in_the_paper_with_the_label_too() -> None:
    soft = TEACHER.softmax(1)
    entropy = -(soft * soft.log()).sum(1).mean()
    code = ofa_loss(STUDENT, TEACHER, LABELS, 1.0)
    torch.testing.assert_close(code, kd_loss(STUDENT, TEACHER, 1.0) + entropy)
    paper = ofa_loss(STUDENT, TEACHER, LABELS, 1.0, form="paper")
    torch.testing.assert_close(paper, code + cross_entropy(STUDENT, LABELS))


def test_the_largest_soft_label_is_the_target() -> None:
    soft = 0.3 * torch.eye(5, dtype=torch.float64)[LABELS] + 0.14
    assert torch.equal(target_mask(soft, 5), target_mask(LABELS, 5))
    assert torch.equal(ofa_loss(STUDENT, TEACHER, soft, 1.5), ofa_loss(STUDENT, TEACHER, LABELS, 1.5))


@pytest.mark.parametrize("form", ["code", "paper"])
def test_logits_far_apart_cost_a_finite_amount(form: str) -> None:
    student = torch.tensor([[0.0, -500.0, 500.0]], requires_grad=True)
    loss = ofa_loss(student, torch.tensor([[300.0, 0.0, -300.0]]), torch.tensor([1]), 1.5, form=form)
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()
