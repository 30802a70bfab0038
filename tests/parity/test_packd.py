"""PACKD's pieces, its contrast over several steps and its views against the official implementation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.golden import Case, arrays, cases, check_all
from parity.test_losses import leaves
from tutelage.data.batch import Batch
from tutelage.data.class_table import ClassTable
from tutelage.losses.packd import positive_log_shares, sinkhorn
from tutelage.methods import Clock, DataSpec, Outs, create_method, packd
from tutelage.methods.memory import EmbeddingHead
from tutelage.methods.packd import PACKD, TeacherHead
from tutelage.methods.packd_memory import BankMemory
from tutelage.models.network import Outputs

METHODS = {
    "PACKD Sinkhorn",
    "PACKD Embed",
    "PACKD ContrastNCELoss",
    "PACKD memory",
    "PACKD",
    "PACKD ImageNet queue memory",
    "PACKD teacher projection head",
    "PACKD total loss",
    "PACKD sampling",
    "PACKD ImageNet item",
}
FIRST_EPOCH = 782
NOW = Clock(torch.tensor(0.0), torch.tensor(0.0))


def parameters(kind: str, method: str) -> pytest.MarkDecorator:
    found = [case for case in cases(kind) if case["method"] == method]
    return pytest.mark.parametrize("case", found, ids=lambda case: case["id"])


both_precisions = pytest.mark.parametrize("precision", ["float64", "float32"])


def load(module: nn.Module, prefix: str, given: Mapping[str, Tensor]) -> None:
    state = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    module.load_state_dict({name: value.detach() for name, value in state.items()})


def steps_of(given: Mapping[str, Any]) -> Iterator[str]:
    number = 0
    while any(name.startswith(f"in.step{number}.") for name in given):
        yield f"step{number}"
        number += 1
    assert number


def method_for(given: Mapping[str, Tensor], labels: Tensor, precision: str, **settings: Any) -> PACKD:
    """PACKD without networks, its student's head filled from the case."""
    method = create_method("packd", **settings)
    assert isinstance(method, PACKD)
    method.know(labels, int(labels.max()) + 1)
    width, features = given["param.embed_s.linear.weight"].shape
    method.build_contrast(features, width)
    method.to(getattr(torch, precision))
    load(method.embed_s, "param.embed_s.", given)
    return method


def contrast(method: PACKD, student: Tensor, teacher: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
    rows = index.repeat_interleave(method.shown)
    batch = Batch(torch.empty(0), method.labels[rows], rows, rows, chosen)
    blank = torch.empty(0)
    outs = Outs((Outputs(blank, student, (), ()),), Outputs(blank, teacher, (), ()))
    return method.contrast(batch, outs)


@both_precisions
@parameters("loss", "PACKD Sinkhorn")
def test_sinkhorn(case: Case, precision: str) -> None:
    expected = arrays(case)
    given, hyper = leaves(expected, getattr(torch, precision)), case["hyper"]
    cost = (given["in.x"].unsqueeze(2) - given["in.y"].unsqueeze(1)).square().sum(3)
    result = sinkhorn(cost, hyper["eps"], hyper["threshold"], hyper["max_iter"])
    gradients = torch.autograd.grad(result.cost.sum(), (given["in.x"], given["in.y"]))
    got = {
        "out.cost": result.cost,
        "out.plan": result.plan,
        "out.cost_matrix": cost,
        "out.n_iterations": result.rounds,
        "grad.x": gradients[0],
        "grad.y": gradients[1],
    }
    check_all(case, expected, got, precision)


@both_precisions
@parameters("loss", "PACKD Embed")
def test_embedding(case: Case, precision: str) -> None:
    expected = arrays(case)
    given = leaves(expected, getattr(torch, precision))
    features, got = given["in.x"], {}
    head = EmbeddingHead(features.shape[1], given["in.cotangent"].shape[1]).to(features.dtype)
    if "param.linear.weight" in given:
        load(head.linear, "param.linear.", given)
        classifier = given["param.fc.weight"], given["param.fc.bias"]
        got["out.logits"] = F.linear(64 * head(features), *classifier)
    else:
        head.linear = nn.Identity()
    got["out.embedding"] = head(features)
    (got["grad.x"],) = torch.autograd.grad((head(features) * given["in.cotangent"]).sum(), features)
    check_all(case, expected, got, precision)


@both_precisions
@parameters("loss", "PACKD ContrastNCELoss")
def test_contrast_of_given_similarities(case: Case, precision: str) -> None:
    expected = arrays(case)
    given, hyper = leaves(expected, getattr(torch, precision)), case["hyper"]
    shares = positive_log_shares(given["in.pos"], given["in.neg"], hyper["temperature"])
    if "in.pi" in given:
        loss = -(given["in.pi"] * shares).sum() / (len(shares) // hyper["mixup_num"])
    else:
        loss = -shares.mean()
    gradients = torch.autograd.grad(loss, (given["in.pos"], given["in.neg"]))
    got = {"out.loss": loss, "grad.pos": gradients[0], "grad.neg": gradients[1]}
    check_all(case, expected, got, precision)


@both_precisions
@parameters("loss", "PACKD memory")
def test_memory(case: Case, precision: str) -> None:
    expected, hyper = arrays(case), case["hyper"]
    given = leaves(expected, getattr(torch, precision))
    labels = torch.arange(hyper["n_data"])
    table = ClassTable.of(labels, len(labels))
    memory = BankMemory(table, hyper["feat_dim"], 1, "own", hyper["nce_m"]).to(given["in.memory0"].dtype)
    memory.rows.copy_(given["in.memory0"].detach())
    got = {}
    for step in steps_of(given):
        memory.written.fill_(bool(given[f"in.{step}.update_count_before"] >= FIRST_EPOCH))
        index = given[f"in.{step}.idx"]
        memory.take_in(index, labels[index], given[f"in.{step}.feature"])
        assert memory.written[index].all()
        got[f"out.{step}.memory"] = memory.rows.clone()
    anchors = given["in.query.feature"].unsqueeze(1)
    scores = memory.similarities(anchors, labels, given["in.query.contrast_idx"])
    got["out.query.similarity"] = scores.unsqueeze(2)
    check_all(case, expected, got, precision)


@both_precisions
@parameters("loss", "PACKD")
def test_contrast_against_the_bank(case: Case, precision: str) -> None:
    expected, hyper = arrays(case), case["hyper"]
    given = leaves(expected, getattr(torch, precision))
    method = method_for(
        given,
        torch.arange(hyper["n_data"]),
        precision,
        mixes=hyper["mixup_num"],
        embedding_dim=hyper["feat_dim_used"],
        negatives=hyper["nce_k"],
        momentum=hyper["nce_m"],
        transport_epsilon=hyper["ops_eps"],
        transport_threshold=hyper["ops_err_thres"],
    )
    assert isinstance(method.memory, BankMemory)
    method.memory.rows.copy_(given["in.memory0"].detach())
    method.head = nn.Identity()
    if hyper["teacher_linear"]:
        method.head = nn.Linear(hyper["t_dim"], hyper["feat_dim_used"]).to(method.memory.rows.dtype)
        load(method.head, "param.embed_t.linear.", given)
    got = {}
    for step in steps_of(given):
        method.memory.written.fill_(bool(given[f"in.{step}.update_count_before"] >= FIRST_EPOCH))
        student, teacher = given[f"in.{step}.feat_s"], given[f"in.{step}.feat_t"]
        loss = contrast(method, student, teacher, given[f"in.{step}.idx"], given[f"in.{step}.contrast_idx"])
        gradients = torch.autograd.grad(loss, (student, method.embed_s.linear.weight))
        got[f"out.{step}.loss"], got[f"out.{step}.memory"] = loss, method.memory.rows.clone()
        got[f"grad.{step}.feat_s"], got[f"grad.{step}.embed_s.linear.weight"] = gradients
    check_all(case, expected, got, precision)


@both_precisions
@parameters("loss", "PACKD ImageNet queue memory")
def test_contrast_against_the_queue(case: Case, precision: str) -> None:
    expected, hyper = arrays(case), case["hyper"]
    given = leaves(expected, getattr(torch, precision))
    size = hyper["batch"]
    batches = hyper["n_data"] // (size * (hyper["mixup_num"] + 1))
    method = method_for(
        given,
        given["in.labels"],
        precision,
        memory="queue",
        queue_size=size * batches,
        mixes=hyper["mixup_num"],
        negatives=hyper["nce_k"],
        transport_epsilon=hyper["ops_eps"],
        transport_threshold=hyper["ops_err_thres"],
    )
    got = {}
    for number, step in enumerate(steps_of(given)):
        oldest = max(0, number + 1 - batches) * size
        places = (oldest + given[f"in.{step}.negative_queue_idx"]) % (size * batches)
        student = given[f"in.{step}.feat_s"]
        loss = contrast(method, student, given[f"in.{step}.feat_t"], given[f"in.{step}.image_id"], places)
        (got[f"grad.{step}.feat_s"],) = torch.autograd.grad(loss, student)
        got[f"out.{step}.loss"] = loss
        held = int((method.memory.labels >= 0).sum()) // size
        got[f"out.{step}.queue_batches_after"] = torch.tensor(min(held, batches - 1))
    check_all(case, expected, got, precision)


@both_precisions
@parameters("loss", "PACKD teacher projection head")
def test_teacher_head(case: Case, precision: str) -> None:
    expected = arrays(case)
    given = leaves(expected, getattr(torch, precision))
    features = given["in.feature"].detach()
    classes, width = given["param.classifier.weight"].shape
    method = create_method("packd")
    method.head = TeacherHead(features.shape[1], width, classes).to(features.dtype)
    load(method.head, "param.", given)
    outs = Outs((), Outputs(features, features, (), ()))
    batch = Batch(features, given["in.target"], given["in.target"], given["in.target"])
    loss = method.classify(batch, outs, NOW)["head"]
    projected = method.head(features)
    got = {"out.proj": projected, "out.proj_logits": method.head.classifier(projected), "out.loss": loss}
    names = [name for name, _ in method.head.named_parameters()]
    gradients = torch.autograd.grad(loss, list(method.head.parameters()))
    got |= {f"grad.{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    check_all(case, expected, got, precision)


@both_precisions
@parameters("loss", "PACKD total loss")
def test_total(case: Case, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, hyper = arrays(case), case["hyper"]
    given = leaves(expected, getattr(torch, precision))
    method = create_method(
        "packd",
        mixes=hyper["views"] - 1,
        kd_weight=hyper["alpha"],
        mix_kd_weight=hyper["alpha_aug"],
        contrast_weight=hyper["beta"],
        temperature=hyper["T"],
    )
    monkeypatch.setattr(method, "contrast", lambda batch, outs: given["in.loss_contrast"])
    student, teacher = given["in.logits_student"], given["in.logits_teacher"].detach()
    targets = given["in.target"].repeat_interleave(hyper["views"])
    outs = Outs((Outputs(student, None, (), ()),), Outputs(teacher, None, (), ()))
    terms = method(Batch(student, targets, targets, targets), outs, NOW)
    loss = sum(terms.values())
    got = {
        "out.loss_cls": terms["ce"],
        "out.loss_div_plain": terms["kd"] / hyper["alpha"],
        "out.loss_div_views": terms["mix_kd"] / hyper["alpha_aug"],
        "out.loss": loss,
        "grad.logits_student": torch.autograd.grad(loss, student)[0],
    }
    check_all(case, expected, got, precision)


def shown(
    case: Case,
    given: Mapping[str, np.ndarray],
    item: str,
    precision: str,
    patch: pytest.MonkeyPatch,
    **more: Any,
) -> Batch:
    """The views of one anchor, made with the draws of the case; images are only scaled to 0..1."""
    images = torch.from_numpy(given["in.images"]).permute(0, 3, 1, 2).to(getattr(torch, precision)) / 255
    labels = torch.from_numpy(given["in.labels"])

    def take(index: Tensor, view: Tensor) -> Batch:
        return Batch(images[index], labels[index], index, view)

    method = create_method("packd", **more)
    classes = int(labels.max()) + 1
    method.know(labels, classes)
    method.data = DataSpec(classes, (3, *images.shape[2:]), labels, take, 1)
    if method.contrasts:
        method.build_contrast(3, 3)
    partners = given.get(f"in.{item}.drawn_partner", given.get(f"out.{item}.mix_indexes", np.empty(1))[1:])
    lots = torch.from_numpy(given[f"in.{item}.drawn_lambda"])
    turns = torch.from_numpy(given[f"in.{item}.drawn_rotation"])
    patch.setattr(packd, "draw_partners", lambda *given: torch.from_numpy(partners).unsqueeze(0))
    patch.setattr(packd, "draw_shares", lambda count, floor, generator: floor + (1 - floor) * lots)
    patch.setattr(packd, "draw_turns", lambda count, generator: turns)
    index = torch.from_numpy(given[f"in.{item}.index"]).reshape(1)
    return method.views(take(index, torch.zeros_like(index)), torch.Generator().manual_seed(0))


def items_of(given: Mapping[str, np.ndarray]) -> list[str]:
    return sorted({name.split(".")[1] for name in given if name.startswith("in.item")})


@both_precisions
@parameters("data", "PACKD sampling")
def test_views_of_an_item(case: Case, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, hyper = arrays(case), case["hyper"]
    rotate, single = hyper["mixup_rotate"], hyper["mixup_num"] < 0
    settings = {
        "mixes": hyper["mixup_num"],
        "turn": rotate > 0,
        "mix": rotate >= -1,
        "smallest_share": 0.0 if single else hyper["mixup_ratio"],
        "first_negative": {"exact": "own", "relax": "class"}[hyper["mode"]],
        "negatives": hyper["k"],
    }
    labels = torch.from_numpy(given["in.labels"])
    table = ClassTable.of(labels, int(labels.max()) + 1)
    got: dict[str, Any] = {}
    if "out.positive_lists" in given:
        got["out.positive_lists"] = table.rows.unflatten(0, given["out.positive_lists"].shape)
    for name in (name for name in given if name.startswith("out.negative_list_class")):
        number = int(name.removeprefix("out.negative_list_class"))
        got[name] = table.rows[labels[table.rows] != number]
    for item in items_of(given):
        batch = shown(case, given, item, precision, monkeypatch, **settings)
        target, theirs = batch.targets[0], torch.from_numpy(given[f"out.{item}.contrast_idx"])
        got |= {f"out.{item}.images": batch.images, f"out.{item}.target": target}
        assert batch.negatives is not None and batch.negatives.shape == (1, *theirs.shape)
        for drawn in (theirs, batch.negatives[0]):
            assert (labels[drawn[1:]] != target).all() and labels[drawn[0]] == target
            assert hyper["mode"] == "relax" or drawn[0] == batch.index[0]
        # What is drawn at random is judged by its rules above.
        got[f"out.{item}.contrast_idx"] = theirs
        got[f"out.{item}.mix_indexes"] = given[f"out.{item}.mix_indexes"]
        assert (labels[torch.from_numpy(given[f"out.{item}.mix_indexes"])] == target).all()
    check_all(case, given, got, precision)


@both_precisions
@parameters("data", "PACKD ImageNet item")
def test_views_of_an_imagenet_item(case: Case, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, got = arrays(case), {}
    settings = {
        "mixes": case["hyper"]["mixnum"],
        "smallest_share": 0.1,
        "fresh_anchor": False,
        "memory": "queue",
        "negatives": 1,
    }
    for item in items_of(given):
        batch = shown(case, given, item, precision, monkeypatch, **settings)
        got[f"out.{item}.images"] = batch.images.flatten(0, 1)
        got[f"out.{item}.labels"] = batch.targets
    check_all(case, given, got, precision)
