"""CRD's contrast against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.losses import contrast_loss, log_normaliser


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6), st.integers(1, 50))
def test_contrast(seed: int, batch: int, count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, count + 1, generator=generator, dtype=torch.float64) + 1e-3
    noise, total = count / size, 0.0
    for row in scores.tolist():
        total -= math.log(row[0] / (row[0] + noise + 1e-7))
        total -= sum(math.log(noise / (score + noise + 1e-7)) for score in row[1:])
    assert contrast_loss(scores.log(), size).item() == pytest.approx(total / batch, rel=1e-9)


def test_the_normaliser_makes_scores_average_to_one_in_the_data() -> None:
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = log_normaliser(scores, 40).exp()
    assert float((scores.exp() / z).mean()) == pytest.approx(1 / 40)
    assert float(z) == pytest.approx(40 * sum(map(math.exp, scores.flatten().tolist())) / 21)


def test_low_temperatures_do_not_overflow() -> None:
    scores = torch.tensor([[300.0, -300.0, 250.0]]).requires_grad_()
    loss = contrast_loss(scores - log_normaliser(scores.detach(), 10), 10)
    loss.backward()
    assert loss.isfinite() and scores.grad.isfinite().all()
