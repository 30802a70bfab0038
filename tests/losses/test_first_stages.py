"""Losses of methods with a first stage, against loops in float64 and values noted from RepDistiller."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.losses import boundary_loss, factor_loss, flow_loss, flow_matrix
from tutelage.losses.boundaries import boundary_weights

examples = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
sides = st.integers(1, 5)
channels = st.integers(1, 3)


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SINES = torch.sin(0.1 * torch.arange(512, dtype=torch.float64)).view(4, 8, 4, 4)
COSINES = torch.cos(0.07 * torch.arange(512, dtype=torch.float64)).view(4, 8, 4, 4)


@examples
@given(seeds, st.integers(1, 3), channels, sides, st.floats(0, 2))
def test_boundaries(seed: int, batch: int, width: int, side: int, margin: float) -> None:
    student, teacher = maps(seed, batch, width, side, side), maps(seed + 1, batch, width, side, side)
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if s > -margin and t <= 0:
            total += (s + margin) ** 2
        if s <= margin and t > 0:
            total += (s - margin) ** 2
    expected = total / batch * 3 / 1000
    assert boundary_loss(student, teacher, margin).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_teacher_on_the_boundary_is_inactive_and_satisfied_neurons_get_no_gradient() -> None:
    student = torch.tensor([[0.0, -1.5, 1.5, 0.5]]).requires_grad_()
    boundary_loss(student, torch.tensor([[0.0, -1.0, 2.0, 1.0]])).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[2.0, 0.0, 0.0, -1.0]]) * 3 / 1000)


def test_boundaries_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="put a connector on the student"):
        boundary_loss(torch.zeros(2, 3), torch.zeros(2, 1))


def test_noted_boundaries() -> None:
    weights = boundary_weights(2)
    assert weights == [0.5, 1.0] and boundary_weights(4) == [0.125, 0.25, 0.5, 1.0]
    assert weights[0] * boundary_loss(SINES, COSINES).item() == pytest.approx(0.255985, abs=5e-7)
    assert weights[1] * boundary_loss(2 * SINES, COSINES).item() == pytest.approx(0.944700, abs=5e-7)


def unit_map(features: np.ndarray, p: int) -> np.ndarray:
    flat = (features**p).mean(axis=0).flatten()
    return flat / math.sqrt(sum(value * value for value in flat))


@examples
@given(seeds, st.integers(1, 3), channels, channels, sides, st.integers(1, 2), st.integers(1, 2))
def test_factors(seed: int, batch: int, first: int, second: int, side: int, p1: int, p2: int) -> None:
    student, teacher = maps(seed, batch, first, side, side), maps(seed + 1, batch, second, side, side)
    differences = [
        unit_map(s, p1) - unit_map(t, p1) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
    ]
    expected = np.mean(np.abs(differences) ** p2)
    assert factor_loss(student, teacher, p1, p2).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("p2", "expected"), [(1, 0.00715774), (2, 7.6935e-05)])
def test_noted_factors(p2: int, expected: float) -> None:
    assert factor_loss(SINES, COSINES, p2=p2).item() == pytest.approx(expected, rel=1e-5)


def naive_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Flow matrix of one image for two maps of equal sides."""
    out = np.zeros((len(first), len(second)))
    for i, j in np.ndindex(out.shape):
        out[i, j] = sum(a * b for a, b in zip(first[i].flat, second[j].flat, strict=True)) / first[i].size
    return out


@examples
@given(seeds, st.integers(1, 3), channels, channels, sides, st.integers(1, 3))
def test_flows(seed: int, batch: int, first: int, second: int, side: int, ratio: int) -> None:
    large, small = (
        maps(seed, batch, first, ratio * side, ratio * side),
        maps(seed + 1, batch, second, side, side),
    )
    pooled = large.unflatten(2, (side, ratio)).unflatten(4, (side, ratio)).mean(dim=(3, 5)).numpy()
    expected = np.stack([naive_flow(a, b) for a, b in zip(pooled, small.numpy(), strict=True)])
    np.testing.assert_allclose(flow_matrix(large, small).numpy(), expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(
        flow_matrix(small, large).numpy(), expected.transpose(0, 2, 1), rtol=1e-8, atol=1e-12
    )


def test_flows_are_summed_over_neighbours() -> None:
    student = [maps(layer, 2, width, 2, 2) for layer, width in enumerate((3, 2, 4))]
    teacher = [maps(layer + 9, 2, width, 4, 4) for layer, width in enumerate((3, 2, 4))]
    expected = sum(
        ((flow_matrix(*student[i : i + 2]) - flow_matrix(*teacher[i : i + 2])) ** 2).mean().item()
        for i in range(2)
    )
    assert flow_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_noted_flows() -> None:
    loss = flow_loss([SINES, 2 * SINES], [COSINES, 3 * COSINES])
    assert loss.item() == pytest.approx(2.161950, abs=5e-7)


def test_flows_of_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        flow_loss([maps(0, 1, 2, 2, 2)] * 2, [maps(0, 1, 3, 2, 2)] * 2)
