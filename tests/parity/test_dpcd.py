"""DPCD's losses with gradients, its state over steps, and its evaluation against the research scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from parity.golden import Case, arrays, cases, check, check_all
from tutelage.data import Batch
from tutelage.losses import ced_loss, ced_terms
from tutelage.methods.base import Clock, Outs
from tutelage.methods.confidence import ConfidenceHistory
from tutelage.methods.dpcd import DPCD, DPCDConfig, DPCDTeacher, DPCDTeacherConfig
from tutelage.models.network import Outputs
from tutelage.training.metrics import branch_correct, topk_correct

Tensors = Mapping[str, Tensor]

LOSSES = {"DPCD teacher", "DPCD CED loss", "DPCD student total"}
METHODS = LOSSES | {"DPCD DynamicDKD", "DPCD gradient projection", "DPCD evaluation"}
LOSS_CASES = [case for case in cases("loss") if case["method"] in LOSSES]
DYNAMIC_CASES = [case for case in cases("loss") if case["method"] == "DPCD DynamicDKD"]
PROJECTION_CASES = [case for case in cases("loss") if case["method"] == "DPCD gradient projection"]
METRIC_CASES = [case for case in cases("metric") if case["method"] == "DPCD evaluation"]

# The script remembers this many confidences before it looks at their quantile, however long its memory is.
NEEDED = {"train_student_cifar.py": 2000, "train_student_imagenet.py": 20000}
IMAGENET: dict[str, Any] = {
    "temperature": 1.0,
    "base_beta": 0.5,
    "beta_range": (0.4, 1.0),
    "warmup_epochs": 0.0,
    "threshold_steps": (20000, 50000),
    "sensitivity_steps": 100000,
}

every_precision = pytest.mark.parametrize("precision", ["float64", "float32"])


def tensors(expected: Mapping[str, np.ndarray], precision: str) -> dict[str, Tensor]:
    """The inputs; floats in ``precision`` and with gradient."""
    given = {}
    for name, array in expected.items():
        if name.startswith("in."):
            tensor = torch.from_numpy(array)
            floating = tensor.is_floating_point()
            given[name] = (
                tensor.to(getattr(torch, precision), copy=True).requires_grad_() if floating else tensor
            )
    return given


def branches(given: Tensors, prefix: str) -> tuple[Tensor, ...]:
    """``prefix0``, ``prefix1``, ... as far as there are."""
    count = sum(name.startswith(prefix) for name in given)
    return tuple(given[f"{prefix}{number}"] for number in range(count))


def batch_of(targets: Tensor) -> Batch:
    """The batch that a method gets for these labels; it doesn't look at the images."""
    rows = torch.arange(len(targets))
    return Batch(torch.zeros(len(targets), 3, 2, 2), targets, rows, rows)


def clock_at(epoch: float, step: float = 0) -> Clock:
    return Clock(torch.tensor(float(epoch)), torch.tensor(float(step)))


def teacher(given: Tensors, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    outs = Outs((Outputs(given["in.logits"], branches=branches(given, "in.aux")),))
    terms = DPCDTeacher(DPCDTeacherConfig())(batch_of(given["in.target"]), outs, clock_at(0))
    return {"loss": torch.stack(list(terms.values())).sum()}


def consensus(given: Tensors, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    inputs = given["in.logits_first"], given["in.logits_second"], given["in.target"]
    tckd, nckd = ced_terms(*inputs, hyper["T"], hyper["gamma"])
    loss = ced_loss(*inputs, hyper["T"], hyper["gamma"], hyper["alpha"], hyper["beta"])
    return {"loss": loss, "tckd": tckd, "nckd": nckd}


def student(given: Tensors, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    outs = Outs(
        (Outputs(given["in.logits_student"], branches=branches(given, "in.aux_student")),),
        Outputs(given["in.logits_teacher"].detach()),
    )
    method = DPCD(DPCDConfig(warmup_epochs=hyper["warmup"])).to(given["in.logits_student"].dtype)
    terms = method(batch_of(given["in.target"]), outs, clock_at(hyper["epoch"]))
    return {
        "loss_cls": terms["ce"] + terms["branch_ce"],
        "loss_div": terms["dynamic"],
        "loss_ced": terms["ced"],
        "loss": torch.stack(list(terms.values())).sum(),
    }


FORMULAS = {"DPCD teacher": teacher, "DPCD CED loss": consensus, "DPCD student total": student}


@every_precision
@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case["id"])
def test_values_and_gradients(case: Case, precision: str) -> None:
    expected = arrays(case)
    given = tensors(expected, precision)
    results = FORMULAS[case["method"]](given, case.get("hyper", {}))
    names = [name.removeprefix("grad.") for name in expected if name.startswith("grad.")]
    gradients = torch.autograd.grad(results["loss"], [given[f"in.{name}"] for name in names])
    got = {f"out.{name}": value for name, value in results.items()}
    got |= {f"grad.{name}": value for name, value in zip(names, gradients, strict=True)}
    check_all(case, expected, got, precision)


@every_precision
@pytest.mark.parametrize("case", DYNAMIC_CASES, ids=lambda case: case["id"])
def test_dynamic_dkd_over_many_steps(case: Case, precision: str) -> None:
    """The cases pass the global step on, as the training scripts don't."""
    expected, hyper = arrays(case), case["hyper"]
    given = tensors(expected, precision)
    script = case["source"][0]["file"].rpartition("/")[2]
    settings = IMAGENET if "imagenet" in script else {}
    keys = {"T_tckd": "temperature", "warmup": "warmup_epochs"}
    keys |= {name: name for name in ("history_size", "base_alpha", "base_beta")}
    settings = settings | {keys[name]: hyper[name] for name in keys if name in hyper}
    assert hyper.get("T_tckd") == hyper.get("T_nckd")
    method = DPCD(DPCDConfig(schedule="corrected", **settings))
    method.history = ConfidenceHistory(hyper["history_size"], NEEDED[script])
    method.to(getattr(torch, precision))
    got: dict[str, Tensor] = {}
    for number, (epoch, step) in enumerate(
        zip(expected["in.epochs"], expected["in.global_steps"], strict=True)
    ):
        logits, targets = given[f"in.step{number}.logits_student"], given[f"in.step{number}.target"]
        taught = given[f"in.step{number}.logits_teacher"].detach()
        outs = Outs((Outputs(logits, branches=(logits.detach(),)),), Outputs(taught))
        batch, clock = batch_of(targets), clock_at(epoch, step)
        state = method.weigh(taught, targets, clock)
        loss = method(batch, outs, clock)["dynamic"]
        method.commit(batch)
        step_values = {
            "out.{}.loss": loss,
            "grad.{}.logits_student": torch.autograd.grad(loss, logits)[0],
            "out.{}.ema_confidence": method.history.average.clone(),
            "out.{}.threshold": state.threshold,
            "out.{}.adjust_ratio": state.weights.ratio,
            "out.{}.alpha": state.weights.alpha,
            "out.{}.beta": state.weights.beta,
            "out.{}.history_length": method.history.values.isfinite().sum(),
        }
        got |= {name.format(f"step{number}"): value for name, value in step_values.items()}
    check_all(case, expected, got, precision)


@pytest.mark.parametrize("case", PROJECTION_CASES, ids=lambda case: case["id"])
def test_the_unused_gradient_projection_leaves_gradients_as_they_are(case: Case) -> None:
    """The helper splits each gradient into parallel parts and puts them together again; nothing calls it.

    What it changes is a share (1 - w) 1e-8 / (|w g|^2 + 1e-8), and gradients too small for its threshold,
    which it shortens; so training without it is the same method.
    """
    expected = arrays(case)
    for name, result in expected.items():
        if name.startswith("out."):
            gradient = expected[name.replace("out.", "in.")]
            weight = float(name.removeprefix("out.w").rpartition(".")[0])
            size = float(np.square(weight * gradient).sum())
            lost = (1 - weight) * 1e-8 / (size + 1e-8) if size**0.5 > 1e-6 else 1 - weight
            check(name, gradient * (1 - lost), result, case)


@every_precision
@pytest.mark.parametrize("case", METRIC_CASES, ids=lambda case: case["id"])
def test_evaluation(case: Case, precision: str) -> None:
    """The script sums hits over batches, but averages the batches' losses whatever their sizes."""
    expected = arrays(case)
    given = tensors(expected, precision)
    hits, losses, images = [], [], 0
    for number in range(sum(name.endswith(".target") for name in given)):
        logits, targets = given[f"in.batch{number}.logits"].detach(), given[f"in.batch{number}.target"]
        found = branch_correct(branches(given, f"in.batch{number}.aux"), targets)
        assert torch.equal(found.joint, found.classes)
        hits.append(torch.cat([found.classes[:, 0], topk_correct(logits, targets)[:1]]))
        losses.append(F.cross_entropy(logits, targets))
        images += len(targets)
    accuracies = torch.stack(hits).sum(dim=0).double() / images
    got = {
        "out.class_accuracy_rounded4": accuracies.numpy().round(4),
        "out.ss_accuracy_rounded4": accuracies.numpy().round(4),
        "out.test_loss_cls_5digits": torch.stack(losses).mean().detach().double().numpy().round(5),
        "out.returned": accuracies[-1].numpy().round(4),
    }
    check_all(case, expected, got, precision)
