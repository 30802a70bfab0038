"""Losses and their gradients against the official implementations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity.golden import Case, arrays, cases, check_all
from tutelage.data.batch import Batch
from tutelage.losses import (
    attention_loss,
    boundary_loss,
    congruence_loss,
    contrast_loss,
    dist_loss,
    dist_terms,
    dkd_loss,
    dkd_terms,
    factor_loss,
    flow_loss,
    hcl_loss,
    hint_loss,
    kd_loss,
    nst_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_loss,
)
from tutelage.losses.boundaries import boundary_weights
from tutelage.methods import Clock, Outs, create_method
from tutelage.methods.ft import Paraphraser, Translator
from tutelage.methods.projectors import ConvRegressor
from tutelage.methods.reviewkd import Fusion
from tutelage.methods.vid import Guess
from tutelage.models.network import Outputs

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
    features = called(module, "param.", given, given["in.f_s"])
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


def congruence(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": congruence_loss(given["in.f_s"], given["in.f_t"])}


def correlation(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    weight = hyper["kd_loss_weight"] * hyper["correlation_scale"]
    method = create_method("cc", ce_weight=hyper["gt_loss_weight"], cc_weight=weight)
    for side in ("embed_s", "embed_t"):
        width, inputs = given[f"param.{side}.weight"].shape
        setattr(method, side, nn.Linear(inputs, width))
    targets = given["in.target"]
    rows = torch.arange(len(targets))
    batch = Batch(torch.empty(len(targets), 0), targets, rows, torch.zeros_like(rows))
    student, teacher = (
        Outputs(given[f"in.logits_{name}"], given[f"in.f_{name[0]}"]) for name in ("student", "teacher")
    )
    terms = called(method, "param.", given, batch, Outs((student,), teacher), Clock(*torch.zeros(2)))
    return {"loss_gt": terms["ce"], "loss_kd": terms["cc"], "loss": terms["ce"] + terms["cc"]}


def pkt(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": pkt_loss(given["in.f_s"], given["in.f_t"])}


def nst(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return summed([nst_loss(student, teacher) for student, teacher in layers(given)])


def vid(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    student, teacher = given["in.f_s"], given["in.f_t"]
    hidden, variance = hyper["mid_channels"], hyper["init_pred_var"]
    module = Guess(student.shape[1], hidden, teacher.shape[1], variance)
    start = module.log_scale[0].detach()
    return {"loss": called(module, "param.", given, student, teacher), "initial_log_scale": start}


def hcl(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    levels = torch.stack([hcl_loss(student, teacher) for student, teacher in layers(given)])
    return {"loss_per_level": levels, "loss": levels.sum()}


def fusion(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    deep, shallow = given["in.x0"], given["in.x1"]
    sides = hyper["out_shape_first"], hyper["out_shape_second"]
    answers = [(given[f"in.t{level}"].shape[1], side, side) for level, side in enumerate(sides)]
    first = Fusion(deep.shape[1], hyper["mid"], answers[0], fuse=False)
    second = Fusion(shallow.shape[1], hyper["mid"], answers[1], fuse=True)
    y0, residual0 = called(first, "param.first.", given, deep)
    y1, residual1 = called(second, "param.second.", given, shallow, residual0)
    loss = hcl_loss(y1, given["in.t1"]) + hcl_loss(y0, given["in.t0"])
    return {"y0": y0, "residual0": residual0, "y1": y1, "residual1": residual1, "loss": loss}


def boundaries(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    pairs = layers(given)
    weights = boundary_weights(len(pairs))
    return summed([w * boundary_loss(*pair, hyper["margin"]) for w, pair in zip(weights, pairs, strict=True)])


def factors(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": factor_loss(given["in.factor_s"], given["in.factor_t"], hyper["p1"], hyper["p2"])}


def factor_networks(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    channels = given["in.f_s"].shape[1], given["in.f_t"].shape[1]
    width = len(given["param.translator.encoder.6.bias"])
    retold = called(Paraphraser(channels[1], width), "param.paraphraser.", given, given["in.f_t"])
    translated = called(Translator(channels[0], width), "param.translator.", given, given["in.f_s"])
    error = hint_loss(retold[1], given["in.f_t"])
    outputs = {"factor_t": retold[0], "reconstruction": retold[1], "factor_s": translated}
    return {**outputs, "reconstruction_loss": error, "loss": error}


def flows(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    pairs = layers(given)
    steps = [list(zip(*neighbours, strict=True)) for neighbours in pairwise(pairs)]
    losses = torch.stack([flow_loss(*step) for step in steps])
    return {"losses": losses, "loss": flow_loss(*zip(*pairs, strict=True))}


def contrast(given: Tensors, hyper: Hyper) -> dict[str, Tensor]:
    return {"loss": contrast_loss(given["in.scores"].squeeze(2).log(), hyper["n_data"])}


def called(module: nn.Module, prefix: str, given: Tensors, *args: Any) -> Any:
    """The answer of ``module`` in training mode with exactly the parameters given under ``prefix``."""
    module.to(given[next(name for name in given if name.startswith(prefix))].dtype).train()
    state = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    keys = {key for key in module.state_dict() if key.rpartition(".")[2] not in statistics}
    assert keys == {key for key in state if key.rpartition(".")[2] not in statistics}
    return torch.func.functional_call(module, state, args)


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
    "CC / correlation congruence": congruence,
    "Correlation (OFAKD form)": correlation,
    "VID": vid,
    "PKT": pkt,
    "NST": nst,
    "ReviewKD hcl": hcl,
    "ReviewKD ABF": fusion,
    "AB": boundaries,
    "FT": factors,
    "FT modules": factor_networks,
    "FSP": flows,
    "CRD contrast loss": contrast,
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
    gradients = torch.autograd.grad(results["loss"], sources) if sources else ()
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
