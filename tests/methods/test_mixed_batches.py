"""Every method on batches of mixed images, whose targets are distributions, and with the other criterion."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch.nn import functional as F

from toys import compiled_with, gradients_of, objectives, toy_batch, toy_clock, toy_data, toy_method, toy_step
from tutelage.data import Mixing
from tutelage.methods import create_method, method_names
from tutelage.training.step import relative_difference

MIXING = [name for name in method_names() if toy_method(name).needs.mixes]


@pytest.fixture(scope="module")
def data():
    return toy_data()


@pytest.fixture(scope="module")
def mixed():
    data = toy_data()
    data.mixing = Mixing(data.info.num_classes, mixup=0.8, cutmix=1.0)
    return data


def terms_of(step, nets, batch):
    """Terms of all objectives by name; the state stays as it was."""
    found, state = {}, copy.deepcopy(step.state_dict())
    for objective, module in objectives(step, nets).items():
        torch.manual_seed(1)
        result = module(batch, toy_clock())
        found |= {f"{objective} {key}": value for key, value in result.terms.items()}
        found[f"{objective} hits"] = result.correct
        step.method.discard()
        step.load_state_dict(state)
    return found


def test_all_but_the_ones_that_rely_on_classes_take_mixed_batches():
    assert set(method_names()) - set(MIXING) == {"packd"}


@pytest.mark.parametrize("name", MIXING)
def test_certain_distributions_are_what_labels_are(name, data):
    step, nets = toy_step(toy_method(name, label_smoothing=0.1), data)
    plain = toy_batch(data)
    certain = plain._replace(targets=F.one_hot(plain.targets, data.info.num_classes).float())
    batches = [step.method.views(batch, torch.Generator().manual_seed(0)) for batch in (plain, certain)]
    expected, got = (terms_of(step, nets, batch) for batch in batches)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", MIXING)
def test_mixed_batches_train(name, mixed):
    step, nets = toy_step(toy_method(name, criterion="bce"), mixed)
    batch = toy_batch(mixed, method=step.method)
    assert batch.targets.shape == (len(batch.images), mixed.info.num_classes)
    gradients = gradients_of(step, nets, batch, toy_clock())
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "dkd" else pytest.mark.slow) for name in MIXING]
)
def test_the_step_compiles_whole_on_mixed_batches(name, mixed):
    step, nets = toy_step(toy_method(name, criterion="bce"), mixed)
    batch, clock = toy_batch(mixed, method=step.method), toy_clock()
    eager = gradients_of(step, nets, batch, clock)
    compiled = gradients_of(step, nets, batch, clock, compiled_with(backend="aot_eager"))
    assert relative_difference(compiled, eager) < 1e-4
    torch._dynamo.reset()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_criteria_are_timms(smoothing):
    scores, labels = 3 * torch.randn(6, 7), torch.tensor([0, 1, 6, 3, 3, 2])
    soft = Mixing(7, mixup=0.8).draw(0, 0, 0, 8).labels(labels, 7)
    smoothed = (1 - smoothing) * soft + smoothing / 7
    binary = create_method("none", criterion="bce", label_smoothing=smoothing).label_loss
    timms = BinaryCrossEntropy(smoothing)
    torch.testing.assert_close(binary(scores, labels), timms(scores, labels))
    torch.testing.assert_close(binary(scores, soft), timms(scores, smoothed))
    usual = create_method("none", label_smoothing=smoothing).label_loss
    torch.testing.assert_close(usual(scores, soft), SoftTargetCrossEntropy()(scores, smoothed))


@pytest.mark.parametrize("name", ["none", "hsakd_teacher", "dpcd_teacher"])
def test_the_criterion_reaches_every_head_that_learns_from_labels(name, data):
    step, nets = toy_step(create_method(name), data)
    other, _ = toy_step(create_method(name, criterion="bce"), data)
    other.load_state_dict(step.state_dict())
    batch = toy_batch(data, method=step.method)
    usual, binary = terms_of(step, nets, batch), terms_of(other, nets, batch)
    assert all(float(binary[key]) < 0.8 * float(usual[key]) for key in usual if not key.endswith("hits"))
