"""AFD: its attention against a naive one, its terms, and PAT's version without labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toys import toy_batch, toy_clock, toy_data, toy_step
from tutelage.losses import attended_loss, kd_loss
from tutelage.methods import create_method
from tutelage.methods.afd import StageAttention


@pytest.fixture(scope="module")
def data():
    return toy_data(per_class=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_stage_of_the_student_is_matched_with_every_one_of_the_teacher():
    torch.manual_seed(0)
    attention = StageAttention((3, 4), (2, 5, 3), 6).double()
    students, teachers = (
        [normal(4, 3, 4, 4), normal(4, 4, 2, 2, seed=1)],
        [normal(4, channels, 3, 3, seed=channels) for channels in (2, 5, 3)],
    )

    def normed(layer, rows):
        out = rows @ layer.linear.weight.t() + layer.linear.bias
        return (out - out.mean(0)) / (out.var(0, unbiased=False) + 1e-5).sqrt()

    queries = [
        normed(layer, t.mean((2, 3))) for layer, t in zip(attention.query_layer, teachers, strict=True)
    ]
    keys = [
        normed(layer, s.mean((2, 3))).clamp(min=0)
        for layer, s in zip(attention.key_layer, students, strict=True)
    ]
    bilinear = normed(attention.bilinear, torch.cat(keys))
    got = attention(students, teachers)
    for b in range(4):
        # samples and stages of the keys are normed together, whatever their order
        for t, query in enumerate(queries):
            scores = [
                (query[b] @ bilinear[4 * s + b, 6 * t : 6 * t + 6] + attention.p_t[t] @ attention.p_s[s])
                / math.sqrt(6)
                for s in range(2)
            ]
            torch.testing.assert_close(got[b, t], torch.stack(scores).softmax(0))


def test_the_state_has_the_names_and_sizes_of_navers(data):
    attention = StageAttention((3, 4), (2, 5, 3), 6)
    names = {name for name, _ in attention.named_parameters()}
    layers = [f"query_layer.{t}" for t in range(3)] + [f"key_layer.{s}" for s in range(2)] + ["bilinear"]
    parts = ("linear.weight", "linear.bias", "bn.weight", "bn.bias")
    assert names == {"p_t", "p_s", *(f"{layer}.{part}" for layer in layers for part in parts)}
    assert attention.bilinear.linear.weight.shape == (18, 6) and attention.p_t.shape == (3, 6)


@pytest.mark.parametrize(("student", "teacher"), [("vit", "convnext"), ("resnet8_cifar", "swin")])
def test_the_terms_are_labels_kd_and_distances(data, student, teacher):
    settings = {"afd_weight": 5.0, "kd_weight": 0.5, "temperature": 2.0, "qk_dim": 8}
    step, nets = toy_step(create_method("afd", **settings), data, student=student, teacher=teacher)
    batch = toy_batch(data)
    with torch.no_grad():
        terms = step(batch, toy_clock()).terms
        ours, theirs = nets.student(batch.images), nets.teacher(batch.images)
        weights = step.method.attention(ours.stages, theirs.stages)
        distances = attended_loss(ours.stages, theirs.stages, weights)
    assert weights.shape == (len(batch.targets), len(theirs.stages), len(ours.stages))
    expected = {
        "ce": F.cross_entropy(ours.logits, batch.targets),
        "kd": 0.5 * kd_loss(ours.logits, theirs.logits, 2.0),
        "afd": 5 * distances,
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)


def test_the_published_one_has_no_labels(data):
    step, nets = toy_step(create_method("afd", preset="published"), data)
    result = step(toy_batch(data), toy_clock())
    assert set(result.terms) == {"afd"}
    result.loss.backward()
    without = {name for name, parameter in nets.student.named_parameters() if parameter.grad is None}
    assert without == {"model.fc.weight", "model.fc.bias"}


def test_kd_can_be_left_out(data):
    step, _ = toy_step(create_method("afd", kd_weight=0), data)
    assert set(step(toy_batch(data), toy_clock()).terms) == {"ce", "afd"}
