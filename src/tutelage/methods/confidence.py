"""What dynamic DKD remembers of the teacher's confidence, and what it makes of it as training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tutelage.losses.dpcd import filled_quantile

MOMENTUM = 0.9


class Confidences(NamedTuple):
    """A state of `ConfidenceHistory`.

    Attributes:
        values: `[H]`, the last H confidences, oldest first; inf in the places not yet filled, at the front.
        average: Moving average over the batches' means; scalar.
    """

    values: Tensor
    average: Tensor


class ConfidenceHistory(nn.Module):
    """The last H true-class confidences of the teacher and a moving average, as buffers.

    The state is read and its successor computed without being written: a compiled step may come back to the
    buffers in its backward pass. The method hands the successor to `Method.keep`.

    Args:
        size: H, how many confidences are kept.
        needed: How many must be there before their quantile counts; None for all H.
    """

    values: Tensor
    average: Tensor

    def __init__(self, size: int, needed: int | None = None) -> None:
        super().__init__()
        self.needed = size if needed is None else needed
        self.register_buffer("values", torch.full((size,), torch.inf))
        self.register_buffer("average", torch.zeros(()))

    def after(self, confidence: Tensor) -> Confidences:
        """The state once a batch's confidences `[B]` are in it; the first batch sets the average."""
        newest = confidence[-len(self.values) :].to(self.values.dtype)
        values = torch.cat([self.values[len(newest) :], newest])
        mean = confidence.mean().to(self.average.dtype)
        moved = MOMENTUM * self.average + (1 - MOMENTUM) * mean
        return Confidences(values, torch.where(self.values[-1].isinf(), mean, moved))

    def threshold(self, values: Tensor, start: Tensor, q: Tensor) -> Tensor:
        """``start`` while too few ``values`` are there, then their q-quantile; a scalar."""
        enough = values.isfinite().sum() >= self.needed
        return torch.where(enough, filled_quantile(values, q).to(start.dtype), start)


@dataclass(frozen=True)
class ConfidenceSchedule:
    """How dynamic DKD becomes stricter and less sensitive as training goes on.

    Attributes:
        steps: The steps at which the second and the third tier begin.
        sensitivity_steps: Step from which the sensitivity stays at its least.
    """

    steps: tuple[int, int]
    sensitivity_steps: int

    def start(self, step: Tensor) -> Tensor:
        """The threshold as long as the history is short, a scalar."""
        return self._tier(step, 0.60, 0.65, 0.70)

    def quantile(self, step: Tensor) -> Tensor:
        """Which quantile of the history is the threshold later, a scalar."""
        return self._tier(step, 0.65, 0.70, 0.75)

    def sensitivity(self, step: Tensor) -> Tensor:
        """Steepness k, from 18 down to 6; a scalar."""
        return 12 * (1 - (step / self.sensitivity_steps).clamp(max=1)) + 6

    def _tier(self, step: Tensor, first: float, second: float, third: float) -> Tensor:
        low = torch.where(step >= self.steps[0], second, first)
        return torch.where(step >= self.steps[1], third, low)
