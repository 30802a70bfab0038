"""OFA-KD's loss, branches and total against the official implementation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.golden import Case, arrays, cases, check_all
from parity.test_losses import leaves
from tutelage.data.batch import Batch
from tutelage.losses import ofa_loss
from tutelage.losses.logits import target_mask
from tutelage.methods import Clock, Outs, create_method
from tutelage.methods.ofa import OFA
from tutelage.models.network import Outputs

METHODS = {"OFA", "OFA total"}
STAGES = 4
"""Stages of the reference's networks."""

TOKEN_PARTS = {"0": "merges", "1": "blocks", "3": "head"}

both_precisions = pytest.mark.parametrize("precision", ["float64", "float32"])


def parameters(method: str) -> pytest.MarkDecorator:
    found = [case for case in cases("loss") if case["method"] == method]
    return pytest.mark.parametrize("case", found, ids=lambda case: case["id"])


def targets_of(given: Mapping[str, Tensor]) -> Tensor:
    return given["in.target"] if "in.target" in given else given["in.soft_target"].detach()


@both_precisions
@parameters("OFA")
def test_loss(case: Case, precision: str) -> None:
    expected, hyper = arrays(case), case["hyper"]
    given = leaves(expected, getattr(torch, precision))
    student, teacher, targets = given["in.logits_student"], given["in.logits_teacher"], targets_of(given)
    loss = ofa_loss(student, teacher, targets, hyper["eps"], hyper["T"])
    (gradient,) = torch.autograd.grad(loss, student)
    mask = target_mask(targets, student.shape[1]).long()
    got = {"out.loss": loss, "out.target_mask": mask, "grad.logits_student": gradient}
    check_all(case, expected, got, precision)


def features_of(given: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> tuple[bool, tuple[Tensor, ...]]:
    """Whether the stages are tokens; the stages as a network hands them over, class tokens behind them."""
    found = {number: given[f"in.f_s{number}"] for number in hyper["stages"]}
    first = hyper["class_tokens"]
    some = next(iter(found.values()))
    maps, prefixes = [], []
    for stage in (found.get(number, some) for number in range(1, STAGES + 1)):
        if stage.ndim == 4:
            maps.append(stage)
            continue
        side = round((stage.shape[1] - first) ** 0.5)
        maps.append(stage[:, first:].transpose(1, 2).unflatten(2, (side, side)))
        prefixes.append(stage[:, :first].transpose(1, 2).unsqueeze(3))
    return some.ndim == 3, (*maps, *(prefixes if first else []))


def method_of(given: Mapping[str, Tensor], hyper: Mapping[str, Any], precision: str) -> OFA:
    """OFA with the case's branches."""
    numbers = hyper["stages"]
    method = create_method("ofa", stages=numbers, eps=hyper["eps"], temperature=hyper["T"])
    assert isinstance(method, OFA)
    tokens, stages = features_of(given, hyper)
    shapes = [tuple(stage.shape[1:]) for stage in stages[:STAGES]]
    widths = hyper["feature_dim_s"], hyper["feature_dim_t"]
    method.build(shapes, widths, hyper["num_classes"], tokens, bool(hyper["class_tokens"]))
    method.to(getattr(torch, precision)).train()
    state = {}
    for name, value in given.items():
        if name.startswith("param.projector."):
            number, key = name.removeprefix("param.projector.").split(".", 1)
            if tokens:
                part, rest = key.split(".", 1)
                key = f"{TOKEN_PARTS[part]}.{re.sub('^fn[.]', '', rest)}"
            state[f"branches.{numbers.index(int(number))}.{key.replace('.op.', '.')}"] = value.detach()
    missing, unexpected = method.load_state_dict(state, strict=False)
    assert not unexpected
    assert {key.rpartition(".")[2] for key in missing} <= {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    return method


@both_precisions
@parameters("OFA total")
def test_total(case: Case, precision: str) -> None:
    expected, hyper = arrays(case), case["hyper"]
    given = leaves(expected, getattr(torch, precision))
    method = method_of(given, hyper, precision)
    _, stages = features_of(given, hyper)
    student, teacher = Outputs(given["in.logits_student"], stages=stages), given["in.logits_teacher"].detach()
    targets = targets_of(given)
    rows = torch.arange(len(targets))
    batch = Batch(torch.empty(len(targets), 0), targets, rows, torch.zeros_like(rows))
    terms = method(batch, Outs((student,), Outputs(teacher)), Clock(*torch.zeros(2)))
    loss = torch.stack(list(terms.values())).sum()
    sources = ["logits_student", *(f"f_s{number}" for number in hyper["stages"])]
    gradients = torch.autograd.grad(loss, [given[f"in.{name}"] for name in sources])
    scores = method.scores(student)
    got = {f"out.loss_{name}": terms[key] for name, key in (("gt", "ce"), ("kd", "kd"), ("ofa", "ofa"))}
    got |= {"out.loss": loss}
    got |= {f"out.stage{n}_logits": value for n, value in zip(hyper["stages"], scores, strict=True)}
    got |= {f"grad.{name}": value for name, value in zip(sources, gradients, strict=True)}
    check_all(case, expected, got, precision)
