"""AB, FT and FSP: what their first stages train, and what comes after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toys import toy_batch, toy_clock, toy_data, toy_networks, toy_step
from tutelage.data import ResidentData
from tutelage.errors import UserError
from tutelage.losses import boundary_loss, factor_loss, flow_loss
from tutelage.methods import create_method
from tutelage.methods.projectors import ConvRegressor
from tutelage.training.step import Step


@pytest.fixture(scope="module")
def data() -> ResidentData:
    return toy_data()


def first_of(method):
    return method.phases()[0]


def without_gradient(step: Step) -> set[str]:
    return {name for name, parameter in step.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize(
    ("name", "trains", "rate"), [("ab", "student", None), ("fsp", "student", None), ("ft", "method", 0.01)]
)
def test_thirty_epochs_come_first(name: str, trains: str, rate: float | None) -> None:
    first, main = create_method(name).phases()
    assert (first.epochs, first.trains, first.lr) == (30, trains, rate)
    assert (main.name, main.epochs, main.objective, main.trains) == ("distil", None, "forward", "student")
    shorter = first_of(create_method(name, first_epochs=2, first_lr=0.3))
    assert (shorter.epochs, shorter.lr) == (2, 0.3)


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_the_first_stage_trains_all_but_the_classifier(name: str, data) -> None:
    step, nets = toy_step(create_method(name), data)
    first = Step(nets, step.method, "transfer").train()
    first(toy_batch(data), toy_clock()).loss.backward()
    assert without_gradient(first) == {"students.0.model.fc.weight", "students.0.model.fc.bias"}


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_the_main_stage_is_classification(name: str, data) -> None:
    step, _ = toy_step(
        create_method(name), data, teacher="resnet8x4_cifar" if name == "ab" else "resnet14_cifar"
    )
    result = step(toy_batch(data), toy_clock())
    assert list(result.terms) == ["ce"]
    result.loss.backward()
    parts = {f"method.{part}" for part, _ in step.method.named_parameters()}
    assert without_gradient(step) == parts


def test_boundaries_are_compared_before_the_activation_through_connectors(data) -> None:
    step, nets = toy_step(create_method("ab", ab_weight=2.0, margin=0.5), data, teacher="resnet8x4_cifar")
    connectors = step.method.connectors
    assert all(isinstance(connector, ConvRegressor) and not connector.relu for connector in connectors)
    batch = toy_batch(data)
    got = Step(nets, step.method, "transfer").train()(batch, toy_clock()).terms["ab"]
    _, student = nets.student.model.forward_intermediates(batch.images, indices=[1, 2, 3], preact=True)
    _, teacher = nets.teacher.model.forward_intermediates(batch.images, indices=[1, 2, 3], preact=True)
    assert all((maps < 0).any() for maps in (*student, *teacher))
    losses = [
        boundary_loss(connector(s), t, 0.5)
        for connector, s, t in zip(connectors, student, teacher, strict=True)
    ]
    expected = 2.0 * (losses[0] / 4 + losses[1] / 2 + losses[2])
    torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-5)


def test_equal_shapes_need_no_connector(data) -> None:
    step, _ = toy_step(create_method("ab"), data)
    assert all(isinstance(connector, nn.Identity) for connector in step.method.connectors)


def test_flows_begin_at_the_stem(data) -> None:
    step, nets = toy_step(create_method("fsp", fsp_weight=3.0), data)
    batch = toy_batch(data)
    got = Step(nets, step.method, "transfer").train()(batch, toy_clock()).terms["fsp"]
    features = [net.model.forward_intermediates(batch.images)[1] for net in (nets.student, nets.teacher)]
    assert len(features[0]) == 4
    torch.testing.assert_close(got, 3 * flow_loss(*features).detach(), rtol=1e-5, atol=1e-6)


def test_the_paraphraser_learns_alone_and_stays_as_it_was(data) -> None:
    step, nets = toy_step(create_method("ft", reconstruction_weight=2.0), data)
    method, batch = step.method, toy_batch(data)
    first = Step(nets, method, "paraphrase", students=False).train()
    features = nets.teacher(batch.images).stages[-1]
    error = (method.paraphraser(features)[1] - features).square().mean()
    result = first(batch, toy_clock())
    torch.testing.assert_close(result.terms["reconstruction"], 2 * error.detach())
    result.loss.backward()
    assert all("translator" in name for name in without_gradient(first)) and without_gradient(first)
    first.zero_grad(set_to_none=True)
    step(batch, toy_clock()).loss.backward()
    assert without_gradient(step) == {
        f"method.paraphraser.{n}" for n, _ in method.paraphraser.named_parameters()
    }


def test_factors_are_half_as_wide_as_the_teacher(data) -> None:
    step, nets = toy_step(create_method("ft"), data, teacher="resnet8x4_cifar")
    batch = toy_batch(data)
    term = step(batch, toy_clock()).terms["factor"]
    student = step.method.translator(nets.student(batch.images).stages[-1])
    teacher = step.method.paraphraser(nets.teacher(batch.images).stages[-1])[0]
    assert student.shape[1] == teacher.shape[1] == 128
    torch.testing.assert_close(term, 200 * factor_loss(student, teacher).detach(), rtol=1e-4, atol=1e-5)


def test_networks_that_do_not_fit_are_refused(data) -> None:
    with pytest.raises(UserError, match=r"16, 16, 32, 64 of them and the teacher's 32, 64, 128, 256"):
        toy_step(create_method("fsp"), data, teacher="resnet8x4_cifar")
    with pytest.raises(UserError, match="student has 3 and the teacher 4"):
        toy_step(create_method("fsp"), data, teacher="vgg8_cifar")
    with pytest.raises(
        UserError, match=r"single position in common \(8x8 and 1x1\), so nothing would be learnt"
    ):
        toy_step(create_method("ft"), data, teacher="swin")
    with pytest.raises(UserError, match="no features before the activation"):
        toy_networks(create_method("ab"), data, teacher="resnet18")
