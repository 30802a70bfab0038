"""The step: precision, the compiled-against-eager check, counters."""

from __future__ import annotations

import copy

import pytest
import torch

from toys import gradients_of, toy_batch, toy_clock, toy_data, toy_method, toy_step
from tutelage.methods import create_method
from tutelage.training import step as step_module
from tutelage.training.meter import Meter
from tutelage.training.step import compiled_or_eager, relative_difference


@pytest.fixture(scope="module")
def data():
    return toy_data()


@pytest.fixture
def fake_compile(monkeypatch):
    """Stand in for the compiler: takes what the test says the compiled step does."""

    def install(make):
        monkeypatch.setattr(step_module.torch, "compile", lambda step, **options: make(step))

    return install


def test_a_compiled_step_that_agrees_is_used_and_leaves_no_trace(data, fake_compile):
    step, _ = toy_step(create_method("kd"), data)
    before = copy.deepcopy(step.state_dict())
    random_before = torch.get_rng_state()
    fake_compile(lambda s: lambda *arguments: s(*arguments))
    call, why_not = compiled_or_eager(step, toy_batch(data), toy_clock())
    assert why_not is None and call is not step
    assert all(torch.equal(before[key], value) for key, value in step.state_dict().items())
    assert all(p.grad is None for p in step.parameters())
    assert torch.equal(random_before, torch.get_rng_state())


def test_wrong_compiled_gradients_are_noticed(data, fake_compile):
    def wrong(step):
        def call(*arguments):
            result = step(*arguments)
            return result._replace(loss=result.loss + 0.2 * next(step.students[0].parameters()).sum())

        return call

    step, _ = toy_step(create_method("kd"), data)
    fake_compile(wrong)
    call, why_not = compiled_or_eager(step, toy_batch(data), toy_clock())
    assert call is step and "differ from exact ones" in why_not


def test_rounding_under_autocast_is_no_reason_to_distrust(data, fake_compile):
    step, _ = toy_step(create_method("kd"), data)
    step.amp = torch.bfloat16
    fake_compile(lambda s: lambda *arguments: s(*arguments))
    _, why_not = compiled_or_eager(step, toy_batch(data), toy_clock())
    assert why_not is None and step.amp is torch.bfloat16


def test_a_compiler_that_fails_is_survived(data, fake_compile):
    def broken(step):
        def call(*arguments):
            raise RuntimeError("no kernel for you")

        return call

    step, _ = toy_step(create_method("kd"), data)
    fake_compile(broken)
    call, why_not = compiled_or_eager(step, toy_batch(data), toy_clock())
    assert call is step and "no kernel for you" in why_not


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["kd", "dpcd", "crd"])
def test_a_teacher_whose_answers_are_known_is_not_asked(method, compiled, data, monkeypatch):
    step, nets = toy_step(toy_method(method), data)
    batch = toy_batch(data, method=step.method)
    with torch.no_grad():
        taught = nets.teacher(batch.images)
    expected = gradients_of(step, nets, batch, toy_clock())

    def asked(*arguments):
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(nets.teacher, "forward", asked)
    whole = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False) if compiled else step
    torch.manual_seed(1)
    whole(batch, toy_clock(), taught).loss.backward()
    got = {f"forward {n}": p.grad for n, p in step.named_parameters() if p.grad is not None}
    assert relative_difference(got, expected) < 1e-6


def test_relative_difference():
    a = {"x": torch.tensor([3.0, 4.0])}
    assert relative_difference(a, a) == 0
    assert relative_difference({"x": torch.tensor([3.0, 4.5])}, a) == pytest.approx(0.1)
    assert relative_difference({"y": a["x"]}, a) == float("inf")
    assert relative_difference({"x": torch.tensor([float("nan"), 4.0])}, a) == float("inf")


def test_autocast_keeps_the_loss_in_float32(data):
    step, _ = toy_step(create_method("at"), data)
    exact = step(toy_batch(data), toy_clock())
    step.amp = torch.bfloat16
    rounded = step(toy_batch(data), toy_clock())
    assert rounded.loss.dtype == torch.float32
    assert exact.loss.item() != rounded.loss.item()
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)


def test_the_meter_weighs_short_batches_by_their_images(data):
    step, _ = toy_step(create_method("kd"), data)
    meter, losses, hits = Meter(torch.device("cpu")), [], 0
    for size in (8, 3):
        result = step(toy_batch(data, size), toy_clock())
        meter.add(result, size)
        losses.append((float(result.loss), size))
        hits += int(result.correct[0])
    got = meter.read()
    assert got["loss"] == pytest.approx(sum(loss * size for loss, size in losses) / 11, rel=1e-6)
    assert got["loss"] == pytest.approx(sum(got["terms"].values()), rel=1e-5)
    assert got["top1"] == pytest.approx(100 * hits / 11)
