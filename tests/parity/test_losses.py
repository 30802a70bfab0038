"""Losses and their gradients against the official implementations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.golden import Case, arrays, cases, check_all
from tutelage.losses import (
    attention_loss,
    dist_loss,
    dist_terms,
    dkd_loss,
    dkd_terms,
    hint_loss,
    kd_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_loss,
)
from tutelage.methods.projectors import ConvRegressor

Tensors = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def hinton(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": kd_loss(given["in.logits_student"], given["in.logits_teacher"], hyper["T"])}


def dkd(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    inputs = given["in.logits_student"], given["in.logits_teacher"], given["in.target"]
    tckd, nckd = dkd_terms(*inputs, hyper["T"])
    return {"loss": dkd_loss(*inputs, hyper["alpha"], hyper["beta"], hyper["T"]), "tckd": tckd, "nckd": nckd}


def dist(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    inputs = given["in.logits_student"], given["in.logits_teacher"]
    inter, intra = dist_terms(*inputs, hyper["tau"])
    return {
        "loss": dist_loss(*inputs, hyper["beta"], hyper["gamma"], hyper["tau"]),
        "inter": inter,
        "intra": intra,
    }


def fitnet(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": hint_loss(given["in.f_s"], given["in.f_t"])}


def regressor(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    module = ConvRegressor(hyper["s_shape"][1:], hyper["t_shape"][1:], relu=hyper["use_relu"])
    module.to(given["in.f_s"].dtype).train()
    state = {name.removeprefix("param."): value for name, value in given.items() if name.startswith("param.")}
    keys = set(module.state_dict()) - {"bn.num_batches_tracked"}
    assert keys == set(state) - {"bn.num_batches_tracked"}
    features = torch.func.functional_call(module, state, (given["in.f_s"],))
    return {"features": features, "loss": hint_loss(features, given["in.f_t"])}


def attention(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return summed([attention_loss(student, teacher, hyper["p"]) for student, teacher in layers(given)])


def similarity(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return summed([similarity_loss(student, teacher) for student, teacher in layers(given)])


def rkd(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    inputs = given["in.f_s"], given["in.f_t"]
    return {
        "loss": rkd_loss(*inputs, hyper["w_d"], hyper["w_a"]),
        "loss_distance": rkd_distance_loss(*inputs),
        "loss_angle": rkd_angle_loss(*inputs),
    }


def layers(given: Tensors) -> list[tuple[Tensor, Tensor]]:
    """The pairs (student, teacher) of ``in.f_s0``, ``in.f_t0``, ``in.f_s1``, ... in their order."""
    numbers = sorted(int(match[1]) for name in given if (match := re.fullmatch(r"in\.f_s(\d+)", name)))
    return [(given[f"in.f_s{number}"], given[f"in.f_t{number}"]) for number in numbers]


def summed(losses: list[Tensor]) -> dict[str, Tensor]:
    together = torch.stack(losses)
    return {"losses": together, "loss": together.sum()}


FORMULAS: dict[str, Callable[[Tensors, Hyper], dict[str, Tensor]]] = {
    "Hinton KD": hinton,
    "PAT / OFAKD kd_loss": hinton,
    "DKD": dkd,
    "DIST": dist,
    "FitNet": fitnet,
    "FitNet / AB regressor": regressor,
    "AT": attention,
    "SP": similarity,
    "RKD": rkd,
}
METHODS = set(FORMULAS)
CASES = [case for case in cases("loss") if case["method"] in METHODS]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_values_and_gradients(case: Case, precision: str) -> None:
    expected = arrays(case)
    given = leaves(expected, getattr(torch, precision))
    results = FORMULAS[case["method"]](given, case.get("hyper", {}))
    names = [name.removeprefix("grad.") for name in expected if name.startswith("grad.")]
    sources = [given[f"in.{name}"] if f"in.{name}" in given else given[f"param.{name}"] for name in names]
    gradients = torch.autograd.grad(results["loss"], sources)
    got = {f"out.{name}": value for name, value in results.items()}
    got |= {f"grad.{name}": value for name, value in zip(names, gradients, strict=True)}
    check_all(case, expected, got, precision)


def leaves(expected: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs and parameters as tensors; floats in ``dtype``, with gradient unless running statistics."""
    given = {}
    for name, array in expected.items():
        if name.startswith(("in.", "param.")):
            tensor = torch.from_numpy(array)
            if tensor.is_floating_point():
                tensor = tensor.to(dtype, copy=True).requires_grad_("running_" not in name)
            given[name] = tensor
    return given
