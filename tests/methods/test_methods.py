"""What holds for every registered method, on small networks."""

from __future__ import annotations

import copy

import pytest
import torch

from toys import (
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
from tutelage.methods import create_method, method_class, method_config, method_names
from tutelage.training.step import relative_difference


@pytest.fixture(scope="module")
def data():
    return toy_data()


@pytest.mark.parametrize("name", method_names())
def test_the_phases_train_the_student_and_the_parts_and_nothing_else(name, data):
    step, nets = toy_step(toy_method(name), data)
    before = copy.deepcopy(nets.teacher.state_dict()) if nets.teacher is not None else {}
    for module in objectives(step, nets).values():
        result = module(toy_batch(data, method=step.method), toy_clock())
        result.loss.backward()
        assert torch.isfinite(result.loss)
        torch.testing.assert_close(result.loss.detach(), sum(result.terms.values()))
    untrained = [n for n, p in step.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert untrained == []
    if nets.teacher is not None:
        assert all(p.grad is None for p in nets.teacher.parameters())
        assert all(torch.equal(before[key], value) for key, value in nets.teacher.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", method_names())
def test_the_step_compiled_with_inductor_gives_the_eager_gradients(name, data):
    step, nets = toy_step(toy_method(name), data)
    batch, clock = toy_batch(data, method=step.method), toy_clock()
    eager = gradients_of(step, nets, batch, clock)
    compiled = gradients_of(step, nets, batch, clock, compiled_with(options={"fallback_random": True}))
    assert relative_difference(compiled, eager) < 1e-3
    torch._dynamo.reset()


def terms_of(step, nets, batch, clock):
    """Terms of all objectives by name."""
    found = {}
    for objective, module in objectives(step, nets).items():
        found |= {f"{objective} {key}": value for key, value in module(batch, clock).terms.items()}
    return found


@pytest.mark.parametrize("name", [n for n in method_names() if n != "none"])
def test_each_weight_scales_its_term(name, data):
    defaults = method_class(name).Config()
    weights = [f for f in type(defaults).model_fields if f.endswith("_weight") or f in {"alpha", "beta"}]
    assert "ce_weight" in weights and len(weights) >= 2
    given = {weight: getattr(defaults, weight) or 1.0 for weight in weights}
    base, nets = toy_step(toy_method(name, **given), data)
    with torch.no_grad():
        for parameter in base.method.parameters():  # a part that starts as nothing may have no loss yet
            if not parameter.any():
                parameter.fill_(0.1)
    batch, clock = toy_batch(data, method=base.method), toy_clock(epoch=1000.0)
    state = copy.deepcopy(base.state_dict())
    terms = terms_of(base, nets, batch, clock)
    changed = set()
    for weight in weights:
        doubled, nets = toy_step(toy_method(name, **{**given, weight: 2 * given[weight]}), data)
        doubled.load_state_dict(state)
        got = terms_of(doubled, nets, batch, clock)
        moved = {key for key in terms if not torch.allclose(got[key], terms[key], rtol=1e-3, atol=1e-6)}
        assert len(moved) == 1, f"{weight} moved {moved}"
        torch.testing.assert_close(
            got[moved.copy().pop()], 2 * terms[moved.copy().pop()], rtol=1e-3, atol=1e-6
        )
        changed |= moved
    assert changed == set(terms)


def test_every_setting_is_documented():
    for name in method_names():
        cls = method_class(name)
        assert cls.summary and cls.source and cls.__doc__
        for field in cls.Config.model_fields.values():
            assert field.description and not field.is_required()


def test_unknown_names_and_values_are_refused_in_one_sentence():
    with pytest.raises(UserError, match="did you mean 'dkd'"):
        create_method("dkdd")
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        method_config("kd", {"temprature": 4.0})
    with pytest.raises(UserError, match=r"method\.temperature"):
        method_config("kd", {"temperature": -1.0})


def test_kd_is_the_sum_of_its_two_losses(data):
    step, nets = toy_step(create_method("kd", ce_weight=0.3, kd_weight=0.7, temperature=2.0), data)
    batch = toy_batch(data)
    terms = step(batch, toy_clock()).terms
    step.eval()
    nets.student.train()
    logits = nets.student(batch.images).logits.double()
    soft = (nets.teacher(batch.images).logits.double() / 2).softmax(1)
    kd = -(soft * ((logits / 2).log_softmax(1) - soft.log())).sum() * 4 / len(logits)
    ce = -logits.log_softmax(1)[torch.arange(len(logits)), batch.targets].mean()
    torch.testing.assert_close(terms["kd"].double(), 0.7 * kd, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["ce"].double(), 0.3 * ce, rtol=1e-4, atol=1e-5)


def test_dkd_ramps_up_over_its_warm_up(data):
    step, _ = toy_step(create_method("dkd", warmup_epochs=20), data)
    full, _ = toy_step(create_method("dkd", warmup_epochs=0), data)
    batch = toy_batch(data)
    expected = full(batch, toy_clock()).terms["nckd"]
    for epoch, share in ((0, 1 / 20), (9, 10 / 20), (19, 1.0), (200, 1.0)):
        got = step(batch, toy_clock(epoch=float(epoch))).terms["nckd"]
        torch.testing.assert_close(got, share * expected, rtol=1e-3, atol=1e-6)
