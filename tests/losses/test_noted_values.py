"""Values that the official implementations (RepDistiller's, as PACKD ships them) gave for sines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.losses import (
    attention_loss,
    congruence_loss,
    hint_loss,
    kd_loss,
    nst_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_loss,
)
from tutelage.methods.vid import Guess


def sines(*shape: int) -> Tensor:
    return torch.sin(0.1 * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)


def cosines(*shape: int) -> Tensor:
    return torch.cos(0.07 * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)


MAPS = sines(4, 8, 4, 4), cosines(4, 8, 4, 4)
VECTORS = sines(4, 16), cosines(4, 16)


def vid() -> Tensor:
    guess = Guess(8, 8, 8, initial_variance=5.0).double()
    for weight in guess.regressor.parameters():
        weight.data = 0.2 * torch.arange(weight.numel(), dtype=torch.float64).sin().view_as(weight)
    return guess(*MAPS)


@pytest.mark.parametrize(
    ("name", "loss", "expected"),
    [
        ("kd", kd_loss(3 * sines(4, 10), 3 * cosines(4, 10), 4.0), 0.177789),
        ("hint", hint_loss(*MAPS), 0.868107),
        ("attention", attention_loss(*MAPS), 7.69350e-05),
        ("attention, pooled", attention_loss(MAPS[0], cosines(4, 8, 8, 8)), 4.61492e-04),
        ("similarity", similarity_loss(*MAPS), 0.467002),
        ("congruence", congruence_loss(*VECTORS), 2.479005),
        ("rkd", rkd_loss(*VECTORS), 4.064434),
        ("rkd distance", rkd_distance_loss(*VECTORS), 0.0500423),
        ("rkd angle", rkd_angle_loss(*VECTORS), 0.0562675),
        ("pkt", pkt_loss(*VECTORS), 0.166262),
        ("nst", nst_loss(*MAPS), 0.0717316),
        ("vid", vid(), 0.855179),
    ],
)
def test_noted_value(name: str, loss: Tensor, expected: float) -> None:
    assert loss.item() == pytest.approx(expected, rel=5e-6), name
