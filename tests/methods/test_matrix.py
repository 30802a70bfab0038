"""Every method between networks of every family: what trains, what doesn't, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toys import (
    FAMILIES,
    compiled_with,
    gradients_of,
    objectives,
    toy_batch,
    toy_clock,
    toy_data,
    toy_method,
    toy_step,
)
from tutelage.errors import UserError
from tutelage.methods import method_names
from tutelage.training.step import relative_difference

PAIRS = {
    "CNN to CNN": ("resnet14_cifar", "resnet8_cifar"),
    "ViT to CNN": ("vit", "resnet8_cifar"),
    "CNN to ViT": ("resnet8_cifar", "vit"),
    "MLP to CNN": ("mlp", "resnet8_cifar"),
    "Swin to MLP": ("swin", "mlp"),
    "ConvNeXt to Swin": ("convnext", "swin"),
}
"""(teacher, student)."""

MIXED = [pair for pair in PAIRS if pair != "CNN to CNN"]
WITHOUT_TEACHER = {"none", "dpcd_teacher", "hsakd_teacher", "hssakd"}

NO_BOUNDARY = r"has no features before the activation; choose a network of the zoo"
NO_STEM = r"has no features in front of its first stage; choose a network of the zoo .* or a timm network"
OTHER_COUNT = r"method 'kdsvd' pairs stages one to one, but the student has \d and the teacher \d; choose"
OTHER_WIDTH = (
    r"method 'kdsvd' needs two stages or more with equally many channels, .* choose a pair of one width"
)
ONE_PLACE = (
    r"method 'ft' compares where the last stages look, .* single position .*; give the networks larger"
)
NO_BRANCHES = (
    r"can't have auxiliary branches: .*; take a network of the zoo .*, or a convolutional one of timm"
)

STUDENT_WITHOUT_BRANCHES = dict.fromkeys(["CNN to ViT", "Swin to MLP", "ConvNeXt to Swin"], NO_BRANCHES)
REFUSED: dict[str, dict[str, str]] = {
    "ab": dict.fromkeys(MIXED, NO_BOUNDARY),
    "fsp": dict.fromkeys(MIXED, NO_STEM),
    "ft": dict.fromkeys(["Swin to MLP", "ConvNeXt to Swin"], ONE_PLACE),
    "kdsvd": {
        **dict.fromkeys(["ViT to CNN", "CNN to ViT", "MLP to CNN"], OTHER_COUNT),
        **dict.fromkeys(["Swin to MLP", "ConvNeXt to Swin"], OTHER_WIDTH),
    },
    "hsakd": dict.fromkeys(MIXED, NO_BRANCHES),
    "dpcd": STUDENT_WITHOUT_BRANCHES,
    "dpcd_teacher": STUDENT_WITHOUT_BRANCHES,
    "hsakd_teacher": STUDENT_WITHOUT_BRANCHES,
    "hssakd": STUDENT_WITHOUT_BRANCHES,
}
"""Which methods can't take which pairs, and the sentence that says so before training starts."""

CELLS = [(name, pair) for name in method_names() for pair in PAIRS]
TRAINED = [(name, pair) for name, pair in CELLS if pair not in REFUSED.get(name, {})]
BY_METHOD = {name: [pair for other, pair in TRAINED if other == name] for name in method_names()}
ONE_EACH = [
    (name, pairs[-1 - i % max(len(pairs) - 1, 1)])
    for i, (name, pairs) in enumerate(BY_METHOD.items())
    if pairs
]
"""For each method a pair of two families where it takes one, another pair for each next method."""

ROWS = 4


@pytest.fixture(scope="module")
def data():
    return toy_data(per_class=2)


def step_of(name: str, pair: str, data: Any) -> Any:
    teacher, student = PAIRS[pair]
    return toy_step(toy_method(name), data, teacher=teacher, student=student)


def test_the_tables_name_methods_and_families_that_are_there():
    assert {name for pair in PAIRS.values() for name in pair if not name.endswith("_cifar")} <= set(FAMILIES)
    assert set(REFUSED) <= set(method_names())
    assert {name for name in method_names() if toy_method(name).needs.teacher is None} == WITHOUT_TEACHER


@pytest.mark.parametrize(("name", "pair"), CELLS)
def test_a_step_trains_the_student_and_the_parts_and_nothing_else(name, pair, data):
    if pair in REFUSED.get(name, {}):
        with pytest.raises(UserError, match=REFUSED[name][pair]) as refusal:
            step_of(name, pair, data)
        assert "\n" not in str(refusal.value)
        return
    step, nets = step_of(name, pair, data)
    frozen = {key: value.clone() for key, value in nets.teacher.state_dict().items()} if nets.teacher else {}
    before = {key: value.detach().clone() for key, value in step.named_parameters()}
    batch = toy_batch(data, ROWS, step.method)
    for module in objectives(step, nets).values():
        result = module(batch, toy_clock())
        result.loss.backward()
        assert torch.isfinite(result.loss)
        assert all(torch.isfinite(term) for term in result.terms.values())
        step.method.commit(batch)
    parameters = dict(step.named_parameters())
    assert [key for key, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()] == []
    torch.optim.SGD(step.parameters(), lr=0.1).step()
    moved = {key for key, p in parameters.items() if not torch.equal(before[key], p)}
    owners = [f"students.{number}." for number in range(len(nets.students))]
    owners += [f"method.{part}" for part, module in step.method.named_children() if list(module.parameters())]
    assert [owner for owner in owners if not any(key.startswith(owner) for key in moved)] == []
    if nets.teacher is not None:
        assert all(p.grad is None for p in nets.teacher.parameters())
        assert all(torch.equal(frozen[key], value) for key, value in nets.teacher.state_dict().items())
        assert not {id(p) for p in nets.teacher.parameters()} & {id(p) for p in step.parameters()}


def check_compiled(name: str, pair: str, data: Any) -> None:
    step, nets = step_of(name, pair, data)
    batch, clock = toy_batch(data, ROWS, step.method), toy_clock()
    eager = gradients_of(step, nets, batch, clock)
    compiled = gradients_of(step, nets, batch, clock, compiled_with(backend="aot_eager"))
    torch._dynamo.reset()
    assert relative_difference(compiled, eager) < 1e-4


@pytest.mark.parametrize(("name", "pair"), ONE_EACH)
def test_the_step_compiles_whole_and_gives_the_eager_gradients(name, pair, data):
    check_compiled(name, pair, data)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pair"), [cell for cell in TRAINED if cell not in ONE_EACH])
def test_every_other_step_compiles_whole(name, pair, data):
    check_compiled(name, pair, data)
