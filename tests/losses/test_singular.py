"""Losses on singular vectors against loops in float64, and their gradient where the usual one fails."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.losses import kdsvd_losses
from tutelage.losses.singular import singular_vectors

SVD = torch.linalg.svd


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_vectors(image: np.ndarray, count: int) -> tuple[list[np.ndarray], list[float]]:
    """Singular vectors of one map `[C, H, W]`, sums positive, from the eigenvectors of channel products."""
    flat = image.reshape(len(image), -1)
    squares, vectors = np.linalg.eigh(np.array([[float(np.dot(a, b)) for b in flat] for a in flat]))
    order = np.argsort(squares)[::-1][: min(count, *flat.shape)]
    return [vectors[:, i] * np.sign(vectors[:, i].sum()) for i in order], [
        math.sqrt(squares[i]) for i in order
    ]


def naive_directions(
    student: np.ndarray, teacher: np.ndarray, k: int, side: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scaled vectors of one sample's layer, the teacher's on the given side (1 or -1)."""
    targets, values = naive_vectors(teacher, k)
    candidates, _ = naive_vectors(student, k + 3)
    length = math.sqrt(sum(value**2 for value in values))
    pairs = []
    for target, value in zip(targets, values, strict=True):
        best = max(candidates, key=lambda candidate: abs(np.dot(candidate, side * target)))
        turned = best * np.sign(np.dot(best, side * target))
        pairs.append((turned * value / length, side * target * value / length))
    return [s for s, _ in pairs], [t for _, t in pairs]


def naive(
    students: Sequence[Tensor], teachers: Sequence[Tensor], k: int, sides: Sequence[int]
) -> list[float]:
    batch, losses = len(students[0]), [0.0] * (len(students) - 1)
    for row in range(batch):
        layers = [
            naive_directions(s[row].numpy(), t[row].numpy(), k, side)
            for s, t, side in zip(students, teachers, sides, strict=True)
        ]
        for pair in range(len(losses)):
            for c in range(k):
                (s, t), (next_s, next_t) = ([part[c] for part in layers[pair + up]] for up in (0, 1))
                for i in range(len(next_s)):
                    for j in range(len(s)):
                        r_s = math.exp(-((next_s[i] - s[j]) ** 2) / 8)
                        r_t = math.exp(-((next_t[i] - t[j]) ** 2) / 8)
                        losses[pair] += (r_s - r_t) ** 2 / batch
    return losses


def some_layers(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Three layers of two samples; the last has fewer positions than channels."""
    students = [maps(seed, 2, 4, 3, 3), maps(seed + 1, 2, 5, 3, 2), maps(seed + 2, 2, 7, 2, 2)]
    return students, [maps(seed + 3, 2, 4, 4, 4), maps(seed + 4, 2, 5, 3, 3), maps(seed + 5, 2, 7, 2, 2)]


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_kdsvd(seed: int, components: int) -> None:
    students, teachers = some_layers(seed)
    expected = naive(students, teachers, components, (1, 1, 1))
    assert kdsvd_losses(students, teachers, components).tolist() == pytest.approx(expected, rel=1e-9)


def test_the_value_noted_for_the_official_implementation() -> None:
    """RepDistiller's on sines, maps of rank 2, whose two vectors it took on sides that nobody noted."""
    angles = torch.arange(4 * 8 * 4 * 4, dtype=torch.float64).view(4, 8, 4, 4)
    s, t = torch.sin(0.1 * angles), torch.cos(0.07 * angles)

    def of_rank_two(sides: tuple[int, int]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        of_each_call = iter(np.repeat(sides, 2))

        def decompose(matrices: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
            left, values, rows = SVD(matrices, full_matrices=full_matrices)
            rows = rows[:, :2] * rows[:, :2].sum(dim=2, keepdim=True).sign() * next(of_each_call)
            return left[:, :, :2], values[:, :2], rows

        return decompose

    possible = []
    for sample in range(4):
        students, teachers = ([layer[[sample]], layer[[3 - sample]]] for layer in (s, t))
        possible.append([])
        for sides in ((1, 1), (1, -1)):
            with mock.patch("torch.linalg.svd", of_rank_two(sides)):
                possible[-1].append(kdsvd_losses(students, teachers, fixed_signs=False).item())
    totals = [sum(choice) / 4 for choice in itertools.product(*possible)]
    assert min(totals, key=lambda total: abs(total - 0.130246)) == pytest.approx(0.130246, rel=4e-6)


def test_fixed_signs_do_not_depend_on_the_library() -> None:
    def turned(matrices: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
        left, values, rows = SVD(matrices, full_matrices=full_matrices)
        odd = 1 - 2 * (torch.arange(rows.shape[1]) % 2).double()
        return left, values, -rows * odd[:, None]

    students, teachers = some_layers(3)
    before = kdsvd_losses(students, teachers, 2)
    with mock.patch("torch.linalg.svd", turned):
        torch.testing.assert_close(kdsvd_losses(students, teachers, 2), before)
    single = kdsvd_losses([s.float() for s in students], [t.float() for t in teachers], 2)
    torch.testing.assert_close(single.double(), before, rtol=1e-4, atol=1e-6)


def test_a_student_with_the_teachers_maps_loses_nothing() -> None:
    students, _ = some_layers(4)
    assert kdsvd_losses(students, [3 * layer for layer in students]).abs().max() < 1e-15


@pytest.mark.parametrize("shape", [(3, 5, 4, 3), (3, 6, 2, 2), (3, 4, 2, 2)])
def test_vectors_and_gradient_are_those_of_the_decomposition(shape: tuple[int, ...]) -> None:
    features, weights = maps(5, *shape).requires_grad_(), maps(6, 3, shape[1], 2)
    results = []
    for known in (False, True):
        if known:
            _, values, rows = SVD(features.flatten(2).transpose(1, 2), full_matrices=False)
            vectors, values = rows.transpose(1, 2)[:, :, :2], values[:, :2]
        else:
            vectors, values = singular_vectors(features, 2)
        loss = (vectors * weights).sum() + (values.square() * weights[:, 0]).sum()
        results.append((vectors, values, torch.autograd.grad(loss, features)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-10)


def dead_channels(features: Tensor) -> Tensor:
    return torch.cat([features[:, :2], torch.zeros_like(features[:, 2:])], dim=1)


def equal_values(features: Tensor) -> Tensor:
    """Every channel lights up one position of its own."""
    return torch.eye(6, dtype=features.dtype).view(1, 6, 3, 2).expand_as(features).clone()


ABSURD = 1e6
"""What no gradient of the losses reaches. Values that differ by rounding alone divide to more, equal ones to
infinity or NaN; which of them a processor's LAPACK makes is its own."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spoil", [dead_channels, equal_values, torch.zeros_like, torch.ones_like])
def test_the_gradient_is_finite_where_singular_values_coincide(spoil, dtype: torch.dtype) -> None:
    features = spoil(maps(7, 2, 6, 3, 2).to(dtype)).requires_grad_()
    teachers = [maps(8, 2, 6, 3, 2).to(dtype), maps(9, 2, 6, 3, 2).to(dtype)]
    losses = kdsvd_losses([features, features.square()], teachers)
    (gradient,) = torch.autograd.grad(losses.sum(), features)
    assert losses.isfinite().all() and (gradient.abs() < ABSURD).all()
    _, _, rows = SVD(features.flatten(2).transpose(1, 2), full_matrices=False)
    (usual,) = torch.autograd.grad(rows[:, :4].square().sum() + rows[:, 0].sum(), features)
    assert not (usual.abs() < ABSURD).all()


def test_dead_channels_leave_the_others_their_gradient() -> None:
    """A third, dead channel changes neither the vectors of the living two nor the gradient in them."""
    living = maps(10, 2, 2, 3, 3).requires_grad_()
    padded = torch.cat([living, torch.zeros(2, 3, 3, 3, dtype=torch.float64)], dim=1)
    weights = maps(11, 2, 2)
    gradients = []
    for features in (living, padded):
        vectors, _ = singular_vectors(features, 1)
        side = vectors[:, :1].sign()
        gradients.append(torch.autograd.grad((side * vectors[:, :2] * weights[:, :, None]).sum(), living)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_features_that_are_not_finite_show_in_the_loss() -> None:
    students, teachers = some_layers(12)
    students[0][0, 0, 0, 0] = math.nan
    teachers[2][1, 0, 0, 0] = math.inf
    assert kdsvd_losses(students, teachers).isnan().all()


def test_layers_have_to_pair() -> None:
    students, teachers = some_layers(13)
    for wrong in ((students[:2], teachers), (students, teachers[::-1]), (students[:1], teachers[:1])):
        with pytest.raises(ValueError, match="equal channels"):
            kdsvd_losses(*wrong)
