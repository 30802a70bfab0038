"""Losses of AFD and OFF, and binary distillation, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.losses import attended_loss, bkd_loss, cka_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sines(*shape: int, size: float, step: float, start: float = 0.0) -> Tensor:
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return size * torch.sin(step * count + start).view(shape)


def naive_map(features: Tensor, height: int, width: int) -> list[float]:
    """Mean of the squares over channels, averaged over the cells of height x width, of unit length."""
    count, rows, columns = features.shape
    energy = [
        [sum(float(features[c, y, x]) ** 2 for c in range(count)) / count for x in range(columns)]
        for y in range(rows)
    ]
    cells = []
    for i in range(height):
        for j in range(width):
            ys = range(i * rows // height, -((-(i + 1) * rows) // height))
            xs = range(j * columns // width, -((-(j + 1) * columns) // width))
            cells.append(sum(energy[y][x] for y in ys for x in xs) / (len(ys) * len(xs)))
    length = math.sqrt(sum(cell**2 for cell in cells))
    return [cell / length for cell in cells]


def test_attended_loss_weighs_all_pairs_of_stages():
    students = [normal(2, 3, 4, 4), normal(2, 2, 2, 2, seed=1), normal(2, 4, 5, 3, seed=2)]
    teachers = [normal(2, 2, 4, 4, seed=3), normal(2, 3, 2, 4, seed=4)]
    attention = normal(2, 2, 3, seed=5).softmax(2)
    expected = 0.0
    for b in range(2):
        for t, teacher in enumerate(teachers):
            sides = teacher.shape[2:]
            theirs = naive_map(teacher[b], *sides)
            for s, student in enumerate(students):
                ours = naive_map(student[b], *sides)
                distance = sum((a - c) ** 2 for a, c in zip(ours, theirs, strict=True)) / len(theirs)
                expected += float(attention[b, t, s]) * distance / 2
    assert float(attended_loss(students, teachers, attention)) == pytest.approx(expected, rel=1e-12)


def test_attended_loss_vanishes_where_attention_finds_the_same_stage():
    stages = [normal(2, 3, 4, 4), normal(2, 2, 2, 2, seed=1)]
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double().expand(2, 2, 2)
    assert float(attended_loss(stages[::-1], stages, swapped)) == pytest.approx(0, abs=1e-15)
    assert float(attended_loss(stages, stages, swapped)) > 0.01


def naive_hsic(first: Tensor, second: Tensor) -> float:
    """Of two sets of samples `[B, D]`."""
    count = len(first)

    def centred(samples: Tensor) -> list[list[float]]:
        unit = [row / row.norm() for row in samples.flatten(1)]
        gram = [[float(a @ b) for b in unit] for a in unit]
        rows = [sum(row) / count for row in gram]
        everything = sum(rows) / count
        return [[gram[i][j] - rows[i] - rows[j] + everything for j in range(count)] for i in range(count)]

    pairs = zip(centred(first), centred(second), strict=True)
    return sum(a * b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("joint", [False, True])
def test_cka_compares_whom_each_sample_resembles(joint):
    students, teachers = normal(4, 3, 5, 2), normal(4, 3, 7, seed=1)
    parts = [
        [naive_hsic(one[:, stage], other[:, stage]) for stage in range(3)]
        for one, other in ((students, teachers), (students, students), (teachers, teachers))
    ]
    if joint:
        parts = [[sum(part)] for part in parts]
    expected = sum(
        1 - abs(cross / math.sqrt((own + 1e-6) * (other + 1e-6)))
        for cross, own, other in zip(*parts, strict=True)
    )
    assert float(cka_loss(students, teachers, joint)) == pytest.approx(expected / 3, rel=1e-10)


def test_cka_is_blind_to_rotations_and_lengths():
    students = normal(5, 2, 6)
    rotation, _ = torch.linalg.qr(normal(6, 6, seed=1))
    lengths = 1 + normal(5, 2, 1, seed=2).abs()
    for joint in (False, True):
        same = cka_loss(students, lengths * (students @ rotation), joint)
        assert float(same) == pytest.approx(0, abs=1e-5)
        assert float(cka_loss(students, normal(5, 2, 6, seed=3), joint)) > 0.05


def test_bkd_asks_of_each_class_apart():
    student, teacher = normal(3, 4), 2 * normal(3, 4, seed=1)
    total = 0.0
    for z, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for value, other in zip(z, t, strict=True):
            p = math.exp(other) / sum(map(math.exp, t))
            yes = 1 / (1 + math.exp(-value))
            total -= p * math.log(yes) + (1 - p) * math.log(1 - yes)
    assert float(bkd_loss(student, teacher)) == pytest.approx(total / 12, rel=1e-12)


def test_bkd_gives_the_noted_value():
    student, teacher = sines(4, 5, size=2, step=1), sines(4, 5, size=3, step=0.7, start=0.3)
    assert float(bkd_loss(student, teacher)) == pytest.approx(0.9724278239937056, rel=1e-12)
