"""HSAKD's and HSSAKD's rotations, losses with gradients, and evaluation against the research scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from parity.golden import Case, arrays, cases, check, check_all
from tutelage.data import Batch, collapse_joint, joint_labels, rotate_batch
from tutelage.methods.base import Clock, Outs
from tutelage.methods.hsakd import HSAKD, HSAKDConfig, HSAKDTeacher, HSAKDTeacherConfig
from tutelage.methods.mutual import HSSAKD, HSSAKDConfig
from tutelage.models.network import Outputs
from tutelage.training.metrics import branch_correct, topk_correct

Tensors = Mapping[str, Tensor]

LOSSES = {"HSAKD student", "HSAKD teacher", "HSAKD online mutual"}
EVALUATIONS = {"HSAKD evaluation": "", "HSAKD online evaluation": "net{}."}
METHODS = LOSSES | set(EVALUATIONS) | {"HSAKD rotation batch"}
LOSS_CASES = [case for case in cases("loss") if case["method"] in LOSSES]
METRIC_CASES = [case for case in cases("metric") if case["method"] in EVALUATIONS]
ROTATION_CASES = [case for case in cases("data") if case["method"] == "HSAKD rotation batch"]
EPOCH_ZERO = Clock(torch.zeros(()), torch.zeros(()))

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


def series(given: Tensors, prefix: str) -> Iterator[Tensor]:
    """``prefix0``, ``prefix1``, ... as far as there are."""
    number = 0
    while f"{prefix}{number}" in given:
        yield given[f"{prefix}{number}"]
        number += 1


def answer(given: Tensors, logits: str, branches: str) -> Outputs:
    return Outputs(given[logits], branches=tuple(series(given, branches)))


def rotated_batch(targets: Tensor) -> Batch:
    """The batch that a method gets for these labels; it doesn't look at the images."""
    rows = torch.arange(len(targets))
    return rotate_batch(Batch(torch.zeros(len(targets), 3, 2, 2), targets, rows, rows))


def student(given: Tensors, case: Case) -> dict[str, Tensor]:
    outs = Outs(
        (answer(given, "in.logits_student", "in.aux_student"),),
        answer(given, "in.logits_teacher", "in.aux_teacher"),
    )
    method = HSAKD(HSAKDConfig(temperature=case["hyper"]["T"]))
    terms = method(rotated_batch(given["in.target"]), outs, EPOCH_ZERO)
    return {"loss_cls": terms["ce"], "loss_div": terms["kd"] + terms["branch_kd"]}


def teacher(given: Tensors, case: Case) -> dict[str, Tensor]:
    outs = Outs((answer(given, "in.logits", "in.aux"),))
    terms = HSAKDTeacher(HSAKDTeacherConfig())(rotated_batch(given["in.target"]), outs, EPOCH_ZERO)
    return {"loss_backbone": terms["ce"], "loss_branches": terms["joint"]}


def mutual(given: Tensors, case: Case) -> dict[str, Tensor]:
    outs = Outs(tuple(answer(given, f"in.net{n}.logits", f"in.net{n}.aux") for n in (1, 2)))
    method = HSSAKD(HSSAKDConfig(temperature=case["hyper"]["T"]))
    terms = method(rotated_batch(given["in.target"]), outs, EPOCH_ZERO)
    return {"loss_cls": terms["ce"] + terms["joint"], "loss_div": terms["kd"] + terms["branch_kd"]}


FORMULAS = {"HSAKD student": student, "HSAKD teacher": teacher, "HSAKD online mutual": mutual}


@every_precision
@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case["id"])
def test_values_and_gradients(case: Case, precision: str) -> None:
    expected = arrays(case)
    given = tensors(expected, precision)
    results = FORMULAS[case["method"]](given, case)
    loss = torch.stack(list(results.values())).sum()
    names = [name.removeprefix("grad.") for name in expected if name.startswith("grad.")]
    gradients = torch.autograd.grad(loss, [given[f"in.{name}"] for name in names])
    got = {f"out.{name}": value for name, value in results.items()} | {"out.loss": loss}
    got |= {f"grad.{name}": value for name, value in zip(names, gradients, strict=True)}
    check_all(case, expected, got, precision)
    if "in.joint_labels" in expected:
        assert torch.equal(joint_labels(given["in.target"]), given["in.joint_labels"])


@every_precision
@pytest.mark.parametrize("case", ROTATION_CASES, ids=lambda case: case["id"])
def test_rotations_and_labels(case: Case, precision: str) -> None:
    expected = arrays(case)
    images = torch.from_numpy(expected["in.images"]).to(getattr(torch, precision))
    targets = torch.from_numpy(expected["in.target"])
    rows = torch.arange(len(targets))
    turned = rotate_batch(Batch(images, targets, rows, rows))
    # Turning moves numbers without changing them, so the tolerance is none, also in float32.
    wanted = {**expected, "out.images": expected["out.images"].astype(precision)}
    check_all(case, wanted, {"out.images": turned.images, "out.labels": joint_labels(targets)}, precision)


@every_precision
@pytest.mark.parametrize("case", METRIC_CASES, ids=lambda case: case["id"])
def test_evaluation(case: Case, precision: str) -> None:
    """The scripts sum hits over batches, but average the batches' losses whatever their sizes."""
    expected = arrays(case)
    given = {name: tensor.detach() for name, tensor in tensors(expected, precision).items()}
    pattern = EVALUATIONS[case["method"]]
    nets = [pattern.format(number) for number in (1, 2)] if pattern else [""]
    batches = range(sum(name.startswith("in.") and name.endswith(".target") for name in given))
    images = sum(len(given[f"in.batch{b}.target"]) for b in batches)
    joint, classes, main, losses = {}, {}, {}, {}
    for net in nets:
        hits = []
        losses[net] = []
        for b in batches:
            out = answer(given, f"in.batch{b}.{net}logits", f"in.batch{b}.{net}aux")
            targets = given[f"in.batch{b}.target"]
            upright = out.logits[::4]
            hits.append((*branch_correct(out.branches, targets, rotations=4), topk_correct(upright, targets)))
            losses[net].append(F.cross_entropy(upright, targets))
            for number, branch in enumerate(out.branches):
                name = f"out.batch{b}.class_logits{number}"
                if name in expected:
                    check(name, collapse_joint(branch, upright.shape[1]), expected[name], case, precision)
            if f"out.batch{b}.multi_target" in expected:
                repeated = rotated_batch(targets).targets
                check("multi_target", repeated, expected[f"out.batch{b}.multi_target"], case)
        sums = [torch.stack(part).sum(dim=0) for part in zip(*hits, strict=True)]
        joint[net], classes[net], main[net] = sums

    def rounded(counts: dict[str, Tensor], rows: int) -> Tensor:
        return torch.stack([counts[net][..., 0].double() / rows for net in nets]).squeeze(0)

    backbone = rounded(main, images)
    accuracies = torch.cat([rounded(classes, 4 * images), backbone.unsqueeze(-1)], dim=-1)
    only = nets[0]
    got = {
        "out.ss_top1_correct": joint[only][:, 0],
        "out.ss_top5_correct": joint[only][:, 1],
        "out.class_top1_correct": classes[only][:, 0],
        "out.class_top5_correct": classes[only][:, 1],
        "out.main_top1_correct": main[only][0],
        "out.main_top5_correct": main[only][1],
        "out.total_images": torch.tensor(images),
        "out.ss_accuracy_rounded4": rounded(joint, 4 * images).numpy().round(4),
        "out.class_accuracy_rounded4": accuracies.numpy().round(4),
        "out.test_loss_cls_5digits": torch.stack(losses[only]).mean().double().numpy().round(5),
        "out.returned": backbone.max().numpy().round(4),
    }
    wanted = {name: array for name, array in expected.items() if not name.startswith("out.batch")}
    check_all(case, wanted, got, precision)
