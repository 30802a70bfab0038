"""Losses on relations within a batch against loops in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.losses import (
    congruence_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_loss,
)

examples = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
batches = st.integers(2, 5)
widths = st.integers(1, 6)


def embeddings(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def naive_similarity(features: np.ndarray) -> np.ndarray:
    flat = features.reshape(len(features), -1)
    gram = np.array([[float(np.dot(a, b)) for b in flat] for a in flat])
    return np.array([row / math.sqrt(sum(value**2 for value in row)) for row in gram])


def naive_distances(points: np.ndarray) -> np.ndarray:
    count = len(points)
    distances = np.array([[math.dist(a, b) for b in points] for a in points])
    pairs = [distances[i, j] for i in range(count) for j in range(count) if i != j]
    return distances / (sum(pairs) / len(pairs))


def naive_cosine(i: int, j: int, k: int, points: np.ndarray) -> float:
    a, b = points[j] - points[i], points[k] - points[i]
    lengths = math.hypot(*a) * math.hypot(*b)
    return float(np.dot(a, b)) / lengths if lengths else 0.0


def naive_rkd(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    s, t = student.numpy(), teacher.numpy()
    count = len(s)
    distance = sum(map(huber, (naive_distances(s) - naive_distances(t)).flatten())) / count**2
    triples = itertools.product(range(count), repeat=3)
    angle = sum(huber(naive_cosine(*ijk, s) - naive_cosine(*ijk, t)) for ijk in triples) / count**3
    return distance, angle


@examples
@given(seeds, batches, st.lists(st.integers(1, 3), min_size=1, max_size=3), widths)
def test_similarity(seed: int, batch: int, shape: list[int], width: int) -> None:
    student, teacher = embeddings(seed, batch, *shape), embeddings(seed + 1, batch, width)
    difference = naive_similarity(student.numpy()) - naive_similarity(teacher.numpy())
    expected = (difference**2).sum() / batch**2
    assert similarity_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9, abs=1e-14)


@examples
@given(seeds, batches, widths, widths, st.floats(0.01, 100))
def test_rkd(seed: int, batch: int, student_width: int, teacher_width: int, scale: float) -> None:
    student = scale * embeddings(seed, batch, student_width)
    teacher = embeddings(seed + 1, batch, teacher_width)
    distance, angle = naive_rkd(student, teacher)
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(distance, rel=1e-7, abs=1e-10)
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(angle, rel=1e-7, abs=1e-10)
    assert rkd_loss(student, teacher).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-7, abs=1e-8)
    weighted = rkd_loss(student, teacher, distance_weight=2.0, angle_weight=0.5).item()
    assert weighted == pytest.approx(2 * distance + 0.5 * angle, rel=1e-7, abs=1e-8)


def test_large_differences_count_linearly() -> None:
    """One far outlier brings the distance term past the bend of the huber loss."""
    student, teacher = embeddings(0, 5, 2), embeddings(1, 5, 2)
    student[0] += 100
    assert np.abs(naive_distances(student.numpy()) - naive_distances(teacher.numpy())).max() > 1
    expected, _ = naive_rkd(student, teacher)
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_moving_scaling_and_rotating_changes_no_relation() -> None:
    points = embeddings(2, 6, 3)
    rotation, _ = torch.linalg.qr(embeddings(3, 3, 3))
    moved = 5 * points @ rotation + 40
    assert rkd_loss(points, moved).item() == pytest.approx(0, abs=1e-10)
    assert similarity_loss(points, 5 * points @ rotation).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss, rkd_loss, similarity_loss])
def test_equal_inputs_lose_nothing(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    points = embeddings(4, 6, 3).requires_grad_()
    value = loss(points, points.detach())
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(value, points)[0].abs().max() < 1e-7


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_coinciding_samples_keep_a_gradient_of_ordinary_size(precision: torch.dtype) -> None:
    student, teacher = embeddings(5, 6, 3).to(precision), embeddings(6, 6, 3).to(precision)
    student[1] = student[4]
    student.requires_grad_()
    for loss in (rkd_distance_loss, rkd_angle_loss):
        (gradient,) = torch.autograd.grad(loss(student, teacher), student)
        assert gradient.abs().max() < 10


def test_a_batch_of_one_has_no_relations() -> None:
    point = embeddings(7, 1, 3).requires_grad_()
    loss = rkd_loss(point, embeddings(8, 1, 4))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, point)[0].eq(0).all()


def test_distances_far_from_the_origin_keep_their_digits_in_float32() -> None:
    student, teacher = embeddings(9, 6, 3) + 1000, embeddings(10, 6, 3)
    expected = naive_rkd(student.float().double(), teacher.float().double())[0]
    assert rkd_distance_loss(student.float(), teacher.float()).item() == pytest.approx(expected, rel=1e-3)


@examples
@given(seeds, batches, widths)
def test_congruence(seed: int, batch: int, width: int) -> None:
    student, teacher = embeddings(seed, batch, width), embeddings(seed + 1, batch, width)
    deltas = [[abs(a - b) for a, b in zip(*rows, strict=True)] for rows in zip(student, teacher, strict=True)]
    products = [sum(float(a * b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(deltas)]
    assert congruence_loss(student, teacher).item() == pytest.approx(sum(products) / len(products), rel=1e-9)


def test_congruence_of_a_batch_of_one_is_nothing() -> None:
    point = embeddings(11, 1, 3).requires_grad_()
    loss = congruence_loss(point, embeddings(12, 1, 3))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, point)[0].eq(0).all()


def test_congruence_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        congruence_loss(torch.zeros(4, 3), torch.zeros(4, 1))


def naive_resemblances(points: np.ndarray) -> list[list[float]]:
    lengths = [math.hypot(*point) + 1e-7 for point in points]
    count = range(len(points))
    rows = [[(np.dot(points[i], points[j]) / lengths[i] / lengths[j] + 1) / 2 for j in count] for i in count]
    return [[value / sum(row) for value in row] for row in rows]


@examples
@given(seeds, batches, widths, widths, st.floats(0.01, 100))
def test_pkt(seed: int, batch: int, student_width: int, teacher_width: int, scale: float) -> None:
    student = scale * embeddings(seed, batch, student_width)
    teacher = embeddings(seed + 1, batch, teacher_width)
    q, p = naive_resemblances(student.numpy()), naive_resemblances(teacher.numpy())
    terms = [
        p[i][j] * math.log((p[i][j] + 1e-7) / (q[i][j] + 1e-7)) for i in range(batch) for j in range(batch)
    ]
    assert pkt_loss(student, teacher).item() == pytest.approx(sum(terms) / batch**2, rel=1e-7, abs=1e-10)


def test_pkt_is_finite_for_features_of_zero() -> None:
    student = embeddings(13, 4, 3)
    student[1] = 0
    student.requires_grad_()
    loss = pkt_loss(student, embeddings(14, 4, 3))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()
