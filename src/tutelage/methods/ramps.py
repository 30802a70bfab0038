"""Weights that grow over the first epochs."""

from __future__ import annotations

from torch import Tensor

from tutelage.methods.base import Clock


def ramp(clock: Clock, epochs: float) -> Tensor:
    """min((epoch + 1) / epochs, 1) as a scalar: mdistiller's linear warm-up, which counts epochs from 1.

    Args:
        clock: Where training stands.
        epochs: Epoch, counted from 1, of the first full weight; up to 1 the weight is full from the start.
    """
    return ((clock.epoch + 1) / max(epochs, 1.0)).clamp(max=1.0)
