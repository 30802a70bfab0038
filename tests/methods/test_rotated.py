"""HSAKD's teacher and student and HSSAKD's mutual learning, on given answers and on small networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from toys import toy_batch, toy_clock, toy_data, toy_step
from tutelage.data import Batch, rotate_batch
from tutelage.errors import UserError
from tutelage.methods import Networks
from tutelage.methods.base import Method, Outs
from tutelage.methods.hsakd import HSAKD, HSAKDConfig, HSAKDTeacher, HSAKDTeacherConfig
from tutelage.methods.mutual import HSSAKD, HSSAKDConfig
from tutelage.models.network import Network, Outputs, create_network

CLASSES, SIZE = 5, 3


def rotated(targets: list[int] | Tensor, side: int = 2) -> Batch:
    labels = torch.as_tensor(targets)
    rows = torch.arange(len(labels))
    images = torch.randn(len(labels), 3, side, side, generator=torch.Generator().manual_seed(0))
    return rotate_batch(Batch(images, labels, rows, rows))


def random_answer(seed: int, branches: int = 3) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def leaf(width: int) -> Tensor:
        logits = 2 * torch.randn(4 * SIZE, width, generator=generator, dtype=torch.float64)
        return logits.requires_grad_()

    return Outputs(leaf(CLASSES), branches=tuple(leaf(4 * CLASSES) for _ in range(branches)))


def flat_answer(classes: int, branches: int) -> Outputs:
    """Every head undecided."""
    return Outputs(
        torch.zeros(4 * SIZE, classes), branches=tuple([torch.zeros(4 * SIZE, 4 * classes)] * branches)
    )


def detached(answer: Outputs) -> Outputs:
    return Outputs(answer.logits.detach(), branches=tuple(branch.detach() for branch in answer.branches))


def terms_of(
    method: Method, batch: Batch, *students: Outputs, teacher: Outputs | None = None
) -> dict[str, Tensor]:
    return method(batch, Outs(students, teacher), toy_clock())


def heads(answer: Outputs) -> list[Tensor]:
    return [answer.logits, *answer.branches]


def cross_entropy(row: Tensor, label: int) -> float:
    values = row.tolist()
    return math.log(sum(math.exp(value) for value in values)) - values[label]


def divergence(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> float:
    """T^2 KL(teacher || student) over the rows' mean, by a loop."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(value / temperature) for value in row] for row in (s, t))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def test_teacher_terms() -> None:
    """The joint term is the mean over rotations of each rotation's cross entropy."""
    targets, answer = [4, 0, 2], random_answer(1)
    method = HSAKDTeacher(HSAKDTeacherConfig(ce_weight=2.0, joint_weight=0.5))
    terms = terms_of(method, rotated(targets), answer)
    upright = [cross_entropy(answer.logits[4 * i], y) for i, y in enumerate(targets)]
    joint = 0.0
    for branch in answer.branches:
        for k in range(4):
            turned = [cross_entropy(branch[4 * i + k], 4 * y + k) for i, y in enumerate(targets)]
            joint += sum(turned) / SIZE / 4
    assert terms["ce"].item() == pytest.approx(2 * sum(upright) / SIZE, rel=1e-12)
    assert terms["joint"].item() == pytest.approx(0.5 * joint, rel=1e-12)


@pytest.mark.parametrize(("branches", "teacher", "mutual"), [(3, 22.58, 45.16), (4, 28.57, 57.14)])
def test_initial_losses(branches: int, teacher: float, mutual: float) -> None:
    """What undecided networks pay for 100 classes."""
    batch, answer = rotated([17, 99, 0]), flat_answer(100, branches)
    terms = terms_of(HSAKDTeacher(HSAKDTeacherConfig()), batch, answer)
    assert sum(terms.values()).item() == pytest.approx(teacher, abs=0.01)
    terms = terms_of(HSSAKD(HSSAKDConfig()), batch, answer, answer)
    assert (terms["ce"] + terms["joint"]).item() == pytest.approx(mutual, abs=0.01)
    assert terms["kd"].item() == terms["branch_kd"].item() == 0


def test_student_terms() -> None:
    targets, student, teacher = [1, 3, 3], random_answer(1), random_answer(2)
    config = HSAKDConfig(ce_weight=2.0, kd_weight=0.5, branch_weight=0.25)
    terms = terms_of(HSAKD(config), rotated(targets), student, teacher=detached(teacher))
    ce = sum(cross_entropy(student.logits[4 * i], y) for i, y in enumerate(targets)) / SIZE
    branches = sum(divergence(s, t) for s, t in zip(student.branches, teacher.branches, strict=True))
    assert list(terms) == ["ce", "kd", "branch_kd"]
    assert terms["ce"].item() == pytest.approx(2 * ce, rel=1e-12)
    assert terms["kd"].item() == pytest.approx(0.5 * divergence(student.logits, teacher.logits), rel=1e-10)
    assert terms["branch_kd"].item() == pytest.approx(0.25 * branches, rel=1e-10)


def branch_gradients(targets: list[int], **settings: Any) -> list[Tensor]:
    student, teacher = random_answer(1), detached(random_answer(2))
    terms = terms_of(HSAKD(HSAKDConfig(**settings)), rotated(targets), student, teacher=teacher)
    return list(torch.autograd.grad(torch.stack(list(terms.values())).sum(), student.branches))


def test_labels_do_not_reach_the_students_branches_unless_told_to() -> None:
    plain, other = branch_gradients([0, 1, 2]), branch_gradients([4, 4, 4])
    assert all(map(torch.equal, plain, other))
    told, other = (branch_gradients(targets, joint_labels=True) for targets in ([0, 1, 2], [4, 4, 4]))
    assert not any(map(torch.equal, told, other))
    assert not any(map(torch.equal, told, plain))


def test_joint_labels_are_a_term_of_their_own() -> None:
    batch, student, teacher = rotated([0, 1, 2]), random_answer(1), detached(random_answer(2))
    terms = terms_of(HSAKD(HSAKDConfig(joint_labels=True)), batch, student, teacher=teacher)
    expected = terms_of(HSAKDTeacher(HSAKDTeacherConfig()), batch, student)["joint"]
    assert torch.equal(terms["joint"], expected)


def test_upright_kd_compares_upright_rows() -> None:
    student, teacher = random_answer(1), detached(random_answer(2))
    terms = terms_of(HSAKD(HSAKDConfig(upright_kd=True)), rotated([0, 1, 2]), student, teacher=teacher)
    expected = divergence(student.logits[::4], teacher.logits[::4])
    assert terms["kd"].item() == pytest.approx(expected, rel=1e-10)
    whole = terms_of(HSAKD(HSAKDConfig()), rotated([0, 1, 2]), student, teacher=teacher)
    assert torch.equal(terms["branch_kd"], whole["branch_kd"])


def test_every_kl_of_mutual_learning_reaches_one_network() -> None:
    """Each network's gradient is that of learning from the others' fixed answers, and nothing else."""
    answers = [random_answer(seed) for seed in (1, 2, 3)]
    batch = rotated([0, 1, 2])
    terms = terms_of(HSSAKD(HSSAKDConfig(networks=3)), batch, *answers)
    kl = terms["kd"] + terms["branch_kd"]
    for i, learner in enumerate(answers):
        alone = torch.zeros((), dtype=torch.float64)
        for peer in (answers[j] for j in range(3) if j != i):
            terms_of_one = terms_of(HSAKD(HSAKDConfig()), batch, learner, teacher=detached(peer))
            alone = alone + (terms_of_one["kd"] + terms_of_one["branch_kd"]) / 2
        got = torch.autograd.grad(kl, heads(learner), retain_graph=True)
        torch.testing.assert_close(got, torch.autograd.grad(alone, heads(learner)))


def test_mutual_terms_of_two_networks() -> None:
    targets, first, second = [2, 2, 0], random_answer(1), random_answer(2)
    config = HSSAKDConfig(ce_weight=2.0, joint_weight=3.0, kd_weight=0.5, branch_weight=0.25)
    terms = terms_of(HSSAKD(config), rotated(targets), first, second)
    teacher = HSAKDTeacher(HSAKDTeacherConfig())
    alone = [terms_of(teacher, rotated(targets), answer) for answer in (first, second)]
    kd = [divergence(a, b) for a, b in zip(heads(first), heads(second), strict=True)]
    back = [divergence(b, a) for a, b in zip(heads(first), heads(second), strict=True)]
    torch.testing.assert_close(terms["ce"], 2 * (alone[0]["ce"] + alone[1]["ce"]))
    torch.testing.assert_close(terms["joint"], 3 * (alone[0]["joint"] + alone[1]["joint"]))
    assert terms["kd"].item() == pytest.approx(0.5 * (kd[0] + back[0]), rel=1e-10)
    assert terms["branch_kd"].item() == pytest.approx(0.25 * (sum(kd[1:]) + sum(back[1:])), rel=1e-10)


def networks(method: Method, *names: str, teacher: str | None = None) -> Networks:
    needs = method.needs.for_classes(CLASSES)
    torch.manual_seed(0)
    models = [create_network(name, CLASSES) for name in names]
    students = tuple(Network(model, needs.student, needs.student_role) for model in models)
    if teacher is None:
        return Networks(students)
    return Networks(students, Network(create_network(teacher, CLASSES), needs.teacher, "frozen"))


def test_needs_say_how_wide_branches_are() -> None:
    needs = HSAKD(HSAKDConfig(branches=(3, 1))).needs.for_classes(7)
    assert needs.views == 4 and needs.student_role == "trained"
    assert needs.student == needs.teacher
    assert (needs.student.branches, needs.student.chosen) == (28, (3, 1))
    frozen = HSAKDTeacher(HSAKDTeacherConfig(frozen=True)).needs
    assert (frozen.student_role, frozen.teacher, frozen.student_branches) == ("branches", None, 4)
    assert HSSAKD(HSSAKDConfig(networks=3)).needs.students == 3


def test_networks_with_other_branch_counts_are_refused() -> None:
    method = HSSAKD(HSSAKDConfig())
    with pytest.raises(UserError, match=r"hssakd.* 3 and 4 of them"):
        method.setup(networks(method, "resnet8_cifar", "vgg8_cifar"), None)
    offline = HSAKD(HSAKDConfig(branches=(1, 2)))
    offline.setup(networks(offline, "resnet8_cifar", teacher="vgg8_cifar"), None)


@pytest.mark.parametrize("frozen", [False, True])
def test_teacher_learns_on_a_network(frozen: bool) -> None:
    method = HSAKDTeacher(HSAKDTeacherConfig(frozen=frozen))
    nets = networks(method, "resnet8_cifar")
    before = {key: value.clone() for key, value in nets.student.model.state_dict().items()}
    nets.student.train()
    terms = terms_of(method, rows := rotated([0, 3], side=32), nets.student(rows.images))
    sum(terms.values()).backward()
    same = [torch.equal(value, before[key]) for key, value in nets.student.model.state_dict().items()]
    assert all(same) == frozen
    assert all((p.grad is None) == frozen for p in nets.student.model.parameters())
    assert all(p.grad is not None for p in nets.student.branches.parameters())


def test_steps_compile_whole() -> None:
    torch.compiler.reset()
    answers, teacher = [random_answer(1), random_answer(2)], detached(random_answer(3))
    batch = rotated([0, 1, 2])
    calls = [
        (HSAKDTeacher(HSAKDTeacherConfig()), Outs((answers[0],))),
        (HSAKD(HSAKDConfig(upright_kd=True, joint_labels=True)), Outs((answers[0],), teacher)),
        (HSSAKD(HSSAKDConfig()), Outs(tuple(answers))),
    ]
    for method, outs in calls:
        leaves = [head for answer in outs.students for head in heads(answer)]
        compiled = torch.compile(method, backend="aot_eager", fullgraph=True, dynamic=False)
        results = []
        for call in (method, compiled):
            loss = torch.stack(list(call(batch, outs, toy_clock()).values())).sum()
            results.append((loss, *torch.autograd.grad(loss, leaves)))
        torch.testing.assert_close(results[1], results[0])
    torch.compiler.reset()


@pytest.mark.parametrize("chosen", [(0,), (1, 1), (-2, 1)])
def test_branches_are_counted_from_one(chosen: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        HSAKDConfig(branches=chosen)


def test_the_joint_loss_is_the_mean_over_the_rotations() -> None:
    method, batch, answer = HSAKDTeacher(HSAKDTeacherConfig()), rotated([1, 4, 0]), random_answer(3, 1)
    joint = terms_of(method, batch, answer)["joint"]
    labels = torch.tensor([1, 4, 0])
    per_rotation = [
        torch.nn.functional.cross_entropy(answer.branches[0][turns::4], 4 * labels + turns)
        for turns in range(4)
    ]
    torch.testing.assert_close(joint, torch.stack(per_rotation).mean())


def test_the_teacher_stays_in_evaluation_mode_and_out_of_the_graph() -> None:
    method, data = HSAKD(HSAKDConfig()), toy_data()
    step, nets = toy_step(method, data)
    teacher = nets.teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    step.train()
    step(toy_batch(data, method=method), toy_clock()).loss.backward()
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
