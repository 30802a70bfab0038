"""OFF's similarity and its mixing of stages against the published code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.golden import Case, arrays, cases, check_all
from parity.test_losses import called, leaves
from tutelage.losses import cka_loss
from tutelage.methods.off import Mixer, summed


class Attention(Mixer):
    """A mixer that answers with its weights."""

    def forward(self, students: Tensor, teachers: Tensor) -> Tensor:
        return self.attention(students, teachers)


def prior(given: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    return {"loss": cka_loss(given["in.f_s"], given["in.f_t"], joint=True)}


def mixing(given: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    """The published contraction: the sum of the weights, which is one, times the sum of the stages."""
    students, teachers = given["in.f_s"], given["in.f_t"]
    attention = called(
        Attention(students.shape[1], students.shape[3], hyper["dim"]), "param.", given, students, teachers
    )
    weights = attention.sum(dim=2)[:, :, None, None]
    return {"mixed": (weights * summed(students)).unsqueeze(2)}


FORMULAS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]] = {
    "FOFA (off.py) CKA prior loss": prior,
    "FOFA (off.py) attention mixing": mixing,
}
METHODS = set(FORMULAS)
CASES = [case for case in cases("loss") if case["method"] in METHODS]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_values_and_gradients(case: Case, precision: str) -> None:
    expected = arrays(case)
    given = leaves(expected, getattr(torch, precision))
    results = FORMULAS[case["method"]](given, case.get("hyper", {}))
    (answer,) = results.values()
    scalar = (answer * given["in.cotangent"]).sum() if "in.cotangent" in given else answer
    (gradient,) = torch.autograd.grad(scalar, given["in.f_s"])
    check_all(
        case,
        expected,
        {**{f"out.{key}": value for key, value in results.items()}, "grad.f_s": gradient},
        precision,
    )
