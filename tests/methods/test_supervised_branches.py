"""DPCD's teacher and student: their terms on given answers, and the state of the student over steps."""

from __future__ import annotations

import copy
from collections import deque

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from toys import toy_clock
from tutelage.data import Batch
from tutelage.losses import ced_loss, cross_entropy, dkd_terms
from tutelage.methods.base import Outs
from tutelage.methods.dpcd import DPCD, DPCDConfig, DPCDTeacher, DPCDTeacherConfig
from tutelage.models.network import Outputs

CLASSES = 5


def batch_of(targets: list[int] | Tensor) -> Batch:
    labels = torch.as_tensor(targets)
    rows = torch.arange(len(labels))
    return Batch(torch.zeros(len(labels), 3, 2, 2), labels, rows, rows)


def random_outs(seed: int, size: int = 4, branches: int = 3) -> Outs:
    generator = torch.Generator().manual_seed(seed)
    *own, teacher = 2 * torch.randn(branches + 2, size, CLASSES, generator=generator, dtype=torch.float64)
    logits, *others = (head.requires_grad_() for head in own)
    return Outs((Outputs(logits, branches=tuple(others)),), Outputs(teacher))


def leaves(outs: Outs) -> list[Tensor]:
    return [outs.student.logits, *outs.student.branches]


def test_teacher_terms() -> None:
    outs, batch = random_outs(0), batch_of([0, 1, 4, 4])
    terms = DPCDTeacher(DPCDTeacherConfig(ce_weight=2.0, branch_weight=0.5))(batch, outs, toy_clock())
    own, *others = [
        float(-head.detach().log_softmax(1)[range(4), batch.targets].mean()) for head in leaves(outs)
    ]
    assert terms["ce"].item() == pytest.approx(2 * own, rel=1e-12)
    assert terms["branch_ce"].item() == pytest.approx(0.5 * sum(others), rel=1e-12)


def test_needs() -> None:
    """The student's branches tell classes; the teacher's, which nobody uses, aren't asked for."""
    needs = DPCD(DPCDConfig()).needs.for_classes(7)
    assert needs.student.branches == 7 and needs.teacher.branches == 0 and needs.views == 1
    assert DPCDTeacher(DPCDTeacherConfig()).needs.student_role == "trained"
    assert DPCDTeacher(DPCDTeacherConfig(frozen=True)).needs.student_role == "branches"


@pytest.mark.parametrize(("branches", "pairs"), [(3, 8), (4, 13)])
def test_consensus_over_the_pairs_of_the_reference(branches: int, pairs: int) -> None:
    """Its list has branches teaching themselves, which is worth nothing; value and gradient are the same."""
    outs, batch = random_outs(1, branches=branches), batch_of([3, 0, 1, 2])
    logits, own = outs.student.logits, outs.student.branches
    listed = [(own[j], own[i]) for i in range(branches - 1) for j in range(i, branches)]
    listed += [(logits, branch) for branch in own]
    assert len(listed) == pairs
    expected = torch.stack([ced_loss(s, t, batch.targets) for s, t in listed]).sum()
    got = DPCD(DPCDConfig()).double()(batch, outs, toy_clock())["ced"]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(loss, leaves(outs), retain_graph=True) for loss in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_all_heads_learn_from_the_labels() -> None:
    outs, batch = random_outs(2), batch_of([1, 1, 0, 4])
    terms = DPCD(DPCDConfig(ce_weight=2.0, branch_weight=0.5)).double()(batch, outs, toy_clock())
    own, *others = [cross_entropy(head, batch.targets).item() for head in leaves(outs)]
    assert terms["ce"].item() == pytest.approx(2 * own, rel=1e-12)
    assert terms["branch_ce"].item() == pytest.approx(0.5 * sum(others), rel=1e-12)


def test_ramp_starts_at_nothing() -> None:
    """The worked example of the specification: a fresh state in epochs 0, 10 and 20 and more."""
    rows, columns = torch.arange(4.0).double().unsqueeze(1), torch.arange(5.0).double()
    student, teacher = 2 * torch.sin(rows + 2 * columns), 3 * torch.cos(2 * rows + columns)
    outs = Outs((Outputs(student.requires_grad_(), branches=(student.detach(),)),), Outputs(teacher))
    for epoch, expected in ((0, 0.0), (10, 5.866839), (20, 11.733678), (200, 11.733678)):
        loss = DPCD(DPCDConfig()).double()(batch_of([0, 1, 2, 3]), outs, toy_clock(epoch, 0))["dynamic"]
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        if epoch == 0:
            assert loss.item() == 0
            assert torch.autograd.grad(loss, student)[0].eq(0).all()
    no_ramp = DPCD(DPCDConfig(warmup_epochs=0)).double()
    loss = no_ramp(batch_of([0, 1, 2, 3]), outs, toy_clock(0, 0))["dynamic"]
    assert loss.item() == pytest.approx(11.733678, abs=1e-6)


def naive_weights(history: deque[float], average: float, step: int, full: bool) -> tuple[float, float]:
    """alpha and beta of the reference for the default settings and the beta range of the test."""
    tiers = [(0.70, 0.75), (0.65, 0.70), (0.60, 0.65)]
    start, q = tiers[0] if step >= 500 else tiers[1] if step >= 200 else tiers[2]
    threshold = np.quantile(history, q) if full else start
    ratio = 1 / (1 + np.exp(-(12 * (1 - min(step / 1000, 1)) + 6) * (threshold - average)))
    return min(max(1 + ratio, 0.5), 2.0), min(max(6 * (1 - 0.5 * ratio), 3.2), 5.8)


@pytest.mark.parametrize("schedule", ["corrected", "published"])
def test_dynamic_dkd_over_steps(schedule: str) -> None:
    """The quantile takes over once the history is full; "published" never hears of the step."""
    method = DPCD(
        DPCDConfig(schedule=schedule, history_size=10, beta_range=(3.2, 5.8), warmup_epochs=0)
    ).double()
    history: deque[float] = deque(maxlen=10)
    average, seen = None, set()
    for number, step in enumerate((0, 150, 200, 300, 499, 500, 900, 1000, 5000)):
        outs, batch = random_outs(number), batch_of(torch.arange(4) + number % 2)
        confidence = outs.teacher.logits.softmax(1)[range(4), batch.targets]
        history.extend(confidence.tolist())
        mean = confidence.mean().item()
        average = mean if average is None else 0.9 * average + 0.1 * mean
        told = step if schedule == "corrected" else 0
        alpha, beta = naive_weights(history, average, told, len(history) == 10)
        tckd, nckd = dkd_terms(outs.student.logits, outs.teacher.logits, batch.targets, 3.0)
        loss = method(batch, outs, toy_clock(5, step))["dynamic"]
        method.commit(batch)
        assert loss.item() == pytest.approx((alpha * tckd + beta * nckd).item(), rel=1e-6)
        seen.add(beta)
    assert len(seen) >= 5


def run(method: DPCD, steps: range) -> list[Tensor]:
    losses = []
    for number in steps:
        outs, batch = random_outs(number), batch_of([0, 1, 2, 3])
        losses.append(method(batch, outs, toy_clock(9, number))["dynamic"].detach())
        method.commit(batch)
    return losses


def test_goes_on_from_a_saved_state() -> None:
    """Whole history, wrapped around, and average; a step that is not committed leaves no trace."""
    first, second = (DPCD(DPCDConfig(history_size=10)).double() for _ in range(2))
    run(first, range(5))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    outs = random_outs(77)
    second(batch_of([0, 1, 2, 3]), outs, toy_clock())
    second.discard()
    assert run(first, range(5, 9)) == run(second, range(5, 9))


def test_the_teacher_gets_no_gradient() -> None:
    outs = random_outs(3)
    outs.teacher.logits.requires_grad_()
    method = DPCD(DPCDConfig()).double()
    state = method.weigh(outs.teacher.logits, torch.arange(4), toy_clock())
    assert not any(value.requires_grad for value in (*state.confidences, state.threshold, *state.weights))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_steps_go_like_eager_ones(backend: str) -> None:
    """Over several steps, so that a gradient computed from a buffer already overwritten would show."""
    torch.compiler.reset()
    settings = {"history_size": 10, "beta_range": (1.0, 8.0), "warmup_epochs": 5.0}
    eager, method = (DPCD(DPCDConfig(**settings)).double() for _ in range(2))
    compiled = torch.compile(method, backend=backend, fullgraph=True, dynamic=False)
    for number in range(5):
        results = []
        for module, call in ((eager, eager), (method, compiled)):
            outs, batch = random_outs(number), batch_of([0, 1, 2, 3])
            loss = torch.stack(list(call(batch, outs, toy_clock(3, number)).values())).sum()
            loss.backward()
            module.commit(batch)
            results.append([loss.detach(), *(leaf.grad for leaf in leaves(outs)), *module.buffers()])
        torch.testing.assert_close(results[1], results[0])
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["alpha_range", "beta_range", "threshold_steps"])
def test_ranges_are_in_order(name: str) -> None:
    for pair in ((3, 2), (-1, 2)):
        with pytest.raises(ValidationError, match="at most the second"):
            DPCDConfig(**{name: pair})
