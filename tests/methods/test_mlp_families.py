"""OFA and PAT between the MLP networks of the zoo and others, as student and as teacher."""

from __future__ import annotations

import copy

import pytest
import torch

from toys import toy_clock, toy_data, toy_network, toy_step
from tutelage.methods import DataSpec, Networks, create_method
from tutelage.methods.ofa_branches import TokenBranch
from tutelage.methods.pairs import on_tokens
from tutelage.models.network import Ask, Network, create_network, probe
from tutelage.training.step import relative_difference

CNN = "test_resnet"
PAIRS = [("cycle", "vit"), ("hire", "cycle"), ("permutator", "hire"), (CNN, "permutator")]
"""(student, teacher): each of the three families once on either side."""
METHODS = {"ofa": {}, "pat": {"dim": 16, "heads": 4, "regions": 4}}

every_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS)


@pytest.fixture(scope="module")
def data():
    return toy_data(per_class=2)


def two_batches(data, method):
    found = data.train_batches(0, 0, 4)
    return [method.views(next(found), torch.Generator()) for _ in range(2)]


def train_twice(name, data, student, teacher, compiled=False):
    """Two steps; the second one's gradients, and the parts."""
    step, nets = toy_step(create_method(name, **METHODS[name]), data, student=student, teacher=teacher)
    for prompt in getattr(step.method, "prompt_blocks", torch.nn.ModuleDict()).values():
        prompt.block.beta.data.fill_(0.3)
    before = copy.deepcopy(nets.teacher.state_dict())
    call = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False) if compiled else step
    for batch in two_batches(data, step.method):
        step.zero_grad()
        result = call(batch, toy_clock())
        assert torch.isfinite(result.loss)
        result.loss.backward()
        step.method.commit(batch)
    assert all(torch.equal(before[key], value) for key, value in nets.teacher.state_dict().items())
    return {key: parameter.grad for key, parameter in step.named_parameters()}, nets


@every_pair
@pytest.mark.parametrize("name", METHODS)
def test_everything_that_is_trained_gets_a_gradient_and_the_teacher_stays(name, student, teacher, data):
    gradients, nets = train_twice(name, data, student, teacher)
    assert [key for key, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    of_student = [grad for key, grad in gradients.items() if key.startswith("students.")]
    assert of_student and (student == CNN or all(grad.any() for grad in of_student))
    assert all(parameter.grad is None for parameter in nets.teacher.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pair"), [("ofa", PAIRS[0]), ("pat", PAIRS[2])])
def test_a_compiled_step_gives_the_eager_gradients(name, pair, data):
    eager, compiled = (train_twice(name, data, *pair, compiled=compiled)[0] for compiled in (False, True))
    assert relative_difference(compiled, eager) < 1e-4
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("family", "tokens"), [("cycle", False), ("hire", False), ("permutator", True), ("swin", True)]
)
def test_branches_are_of_the_kind_that_the_research_code_gives_a_family(family, tokens, data):
    network = Network(toy_network(family, 5), Ask(stages=True))
    assert on_tokens(network, probe(network, 32)) is tokens
    step, _ = toy_step(create_method("ofa"), data, student=family, teacher="resnet8_cifar")
    assert {isinstance(branch, TokenBranch) for branch in step.method.branches} == {tokens}


@pytest.mark.parametrize(
    ("name", "teacher", "student", "classes", "parameters"),
    [
        ("pat", "convnext_tiny", "swin_pico_patch4_window7_224", 100, 17_768_420),
        ("pat", "mixer_b16_224", "swin_pico_patch4_window7_224", 100, 84_627_476),
        ("pat", "resnet50", "swin_nano_patch4_window7_224", 1000, 60_828_332),
        ("pat", "vit_small_patch16_224", "mobilenetv2_100", 100, 26_405_716),
        ("ofa", "convnext_tiny", "swin_pico_patch4_window7_224", 100, 14_864_656),
        ("ofa", "mixer_b16_224", "swin_nano_patch4_window7_224", 1000, 28_187_040),
    ],
)
def test_published_pairs_have_as_many_extra_parameters_as_published(
    name, teacher, student, classes, parameters
):
    with torch.device("meta"):
        method = create_method(name)
        needs = method.needs.for_classes(classes)
        nets = Networks(
            (Network(create_network(student, classes), needs.student),),
            Network(create_network(teacher, classes), needs.teacher, "frozen"),
        )
        method.setup(nets, DataSpec(classes, (3, 224, 224), torch.zeros(1, dtype=torch.int64), None, 1))
    assert sum(parameter.numel() for parameter in method.parameters()) == parameters
