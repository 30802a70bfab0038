"""The memory of dynamic DKD against a deque, and its schedule against the reference's table."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from tutelage.methods.confidence import ConfidenceHistory, ConfidenceSchedule


def append(history: ConfidenceHistory, values: np.ndarray) -> None:
    """Write the batch's confidences into ``history``, as a method's commit does."""
    after = history.after(torch.from_numpy(values))
    history.values.copy_(after.values)
    history.average.copy_(after.average)


@pytest.mark.parametrize(("size", "needed"), [(10, None), (10, 6), (1, None), (3, None)])
def test_follows_a_deque_far_beyond_its_size(size: int, needed: int | None) -> None:
    history = ConfidenceHistory(size, needed).double()
    reference: deque[float] = deque(maxlen=size)
    random, average = np.random.RandomState(0), None
    start, q = torch.tensor([0.6, 0.65], dtype=torch.float64)
    for batch in (4, 4, 1, 4, 2, 10, 3, 25, 4, 1):
        values = random.uniform(size=batch)
        reference.extend(values)
        average = values.mean() if average is None else 0.9 * average + 0.1 * values.mean()
        append(history, values)
        held = history.values[history.values.isfinite()]
        assert held.tolist() == list(reference)
        assert history.average.item() == pytest.approx(average, rel=1e-12)
        expected = np.quantile(reference, 0.65) if len(reference) >= (needed or size) else 0.6
        assert history.threshold(history.values, start, q).item() == pytest.approx(expected, rel=1e-9)


def test_looking_ahead_writes_nothing() -> None:
    history = ConfidenceHistory(4)
    append(history, np.array([0.5, 0.25]))
    before = {name: value.clone() for name, value in history.state_dict().items()}
    history.after(torch.tensor([0.1, 0.9, 0.3]))
    assert all(torch.equal(value, before[name]) for name, value in history.state_dict().items())


def test_goes_on_from_a_saved_state() -> None:
    random = np.random.RandomState(1)
    first, second = ConfidenceHistory(7), ConfidenceHistory(7)
    for _ in range(3):
        append(first, random.uniform(size=4))
    assert set(first.state_dict()) == {"values", "average"}
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        values = random.uniform(size=4)
        append(first, values), append(second, values)
    assert torch.equal(first.values, second.values) and torch.equal(first.average, second.average)


@pytest.mark.parametrize(
    ("step", "start", "q", "sensitivity"),
    [
        (0, 0.60, 0.65, 18),
        (199, 0.60, 0.65, 12 * (1 - 0.199) + 6),
        (200, 0.65, 0.70, 12 * 0.8 + 6),
        (499, 0.65, 0.70, 12 * 0.501 + 6),
        (500, 0.70, 0.75, 12),
        (1000, 0.70, 0.75, 6),
        (10**6, 0.70, 0.75, 6),
    ],
)
def test_schedule(step: int, start: float, q: float, sensitivity: float) -> None:
    schedule, now = ConfidenceSchedule((200, 500), 1000), torch.tensor(float(step))
    assert schedule.start(now).item() == pytest.approx(start, rel=1e-6)
    assert schedule.quantile(now).item() == pytest.approx(q, rel=1e-6)
    assert schedule.sensitivity(now).item() == pytest.approx(sensitivity, rel=1e-6)
