"""OFF: its mixing, encoder and decoders, its terms, what the published code makes of them, and its size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toys import toy_batch, toy_clock, toy_data, toy_method, toy_step
from tutelage.errors import UserError
from tutelage.losses import cka_loss, kd_loss
from tutelage.methods import create_method, method_config
from tutelage.methods.off import Decoder, Mixer
from tutelage.methods.projectors import Form


@pytest.fixture(scope="module")
def data():
    return toy_data(per_class=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_stages_are_mixed_by_how_well_they_match():
    torch.manual_seed(0)
    mixer = Mixer(3, 6, 5).double()
    students, teachers = normal(2, 3, 4, 6), normal(2, 3, 4, 6, seed=1)
    got = mixer(students, teachers)

    def mapped(layers, tokens):
        centred = tokens - tokens.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return normed @ layers[1].weight.t() + layers[1].bias

    for b in range(2):
        for i in range(3):
            query = mapped(mixer.to_q, teachers[b, i])
            scores = [
                ((query * mapped(mixer.to_k, students[b, j])).sum() + mixer.p_t[i] @ mixer.p_s[j])
                / math.sqrt(5)
                for j in range(3)
            ]
            weights = torch.stack(scores).softmax(0)
            expected = sum(weight * students[b, j] for j, weight in enumerate(weights))
            torch.testing.assert_close(got[b, i], expected)


@pytest.mark.parametrize("mixing", ["attention", "sum", "none"])
@pytest.mark.parametrize(("student", "teacher"), [("resnet8_cifar", "vit"), ("swin", "convnext")])
def test_the_terms_are_those_of_the_code(data, student, teacher, mixing):
    weights = {"kd_weight": 2.0, "low_weight": 3.0, "cka_weight": 4.0, "reconstruction_weight": 5.0}
    method = toy_method("off", mixing=mixing, temperature=2.0, **weights)
    step, nets = toy_step(method, data, student=student, teacher=teacher)
    batch = toy_batch(data)
    with torch.no_grad():
        terms = step(batch, toy_clock(epoch=4.0)).terms
        ours, theirs = nets.student(batch.images), nets.teacher(batch.images)
        stages = ours.stages, theirs.stages[-len(ours.stages) :]
        encoded = method.encode(*stages)
        embedded = [
            torch.stack([method.embeddings[n](s) for n, s in zip(names, maps, strict=True)], dim=1)
            for names, maps in zip(method.names, stages, strict=True)
        ]
        if mixing == "attention":
            embedded[0] = method.mixer(*embedded)
        elif mixing == "sum":
            embedded[0] = embedded[0].sum(1, keepdim=True).repeat(1, len(ours.stages), 1, 1)
        for got, tokens in zip(encoded, embedded, strict=True):
            expected = torch.stack([method.encoder(stage) for stage in tokens.unbind(1)], dim=1)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        decoders = method.student_decoder, method.teacher_decoder
        errors = [
            F.mse_loss(rebuilt, stage)
            for decoder, tokens, maps in zip(decoders, encoded, stages, strict=True)
            for rebuilt, stage in zip(decoder(tokens), maps, strict=True)
        ]
    expected = {
        "ce": F.cross_entropy(ours.logits, batch.targets),
        "kd": 2 * kd_loss(ours.logits, theirs.logits, 2.0),
        "low": 3 * 5 / 20 * F.mse_loss(*encoded),
        "cka": 4 * cka_loss(*encoded),
        "reconstruction": 5 * sum(errors),
    }
    assert set(terms) == set(expected) and len(errors) == 2 * len(ours.stages)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)


def test_each_network_is_decoded_in_the_manner_of_the_others_family(data):
    for student, teacher, manners in (
        ("resnet8_cifar", "vit", (True, False)),
        ("vit", "convnext", (False, True)),
        ("resnet8_cifar", "resnet14_cifar", (False, False)),
        ("mlp", "swin", (True, True)),
    ):
        step, _ = toy_step(toy_method("off"), data, student=student, teacher=teacher)
        decoders = step.method.student_decoder, step.method.teacher_decoder
        assert tuple(decoder.by_tokens for decoder in decoders) == manners


def test_a_decoder_runs_its_body_and_leads_to_each_stage():
    torch.manual_seed(0)
    forms = [Form(3, 4, 4), Form(5, 2, 2), Form(3, 4, 4)]
    decoder = Decoder(forms, 2, 6, 2, by_tokens=False).double().eval()
    encoded = normal(2, 3, 4, 6)
    assert len(decoder.expansions) == 2
    norm, depthwise, pointwise, relu = decoder.body
    assert isinstance(norm, nn.BatchNorm2d) and depthwise.groups == 6 and isinstance(relu, nn.ReLU)
    for form, tokens, got in zip(forms, encoded.unbind(1), decoder(encoded), strict=True):
        image = tokens.transpose(1, 2).reshape(2, 6, 2, 2)
        image = F.conv2d(image / math.sqrt(1 + 1e-5), depthwise.weight, padding=1, groups=6)
        image = F.conv2d(image, pointwise.weight).clamp(min=0)
        expansion = decoder.expansions[f"map_{form.channels}x{form.height}x{form.width}"]
        torch.testing.assert_close(got, expansion(image))
        assert got.shape == (2, *form.shape)


def test_the_published_one_sums_and_compares_all_stages_at_once(data):
    step, nets = toy_step(toy_method("off", preset="published", cka_weight=1.0), data)
    method, batch = step.method, toy_batch(data)
    assert method.mixer is None and not any("mixer" in name for name, _ in method.named_parameters())
    with torch.no_grad():
        terms = step(batch, toy_clock()).terms
        encoded = method.encode(nets.student(batch.images).stages, nets.teacher(batch.images).stages)
    torch.testing.assert_close(terms["cka"], cka_loss(*encoded, joint=True), rtol=1e-4, atol=1e-6)
    config = method_config("off", {"preset": "published", "cka": "stages"})
    assert [config.switch(name) for name in ("mixing", "cka")] == ["sum", "stages"]


def test_both_networks_reconstructions_train_the_student_and_the_attention(data):
    step, _ = toy_step(toy_method("off"), data)
    terms, _ = step.terms(toy_batch(data), toy_clock())
    terms["low"].backward()
    trained = {
        name.split(".")[1] for name, p in step.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"mixer", "encoder", "embeddings"} <= trained
    assert any(p.grad is not None and p.grad.any() for n, p in step.named_parameters() if "students" in n)


def test_stages_can_be_chosen_and_wrong_settings_are_refused(data):
    step, _ = toy_step(toy_method("off", stages=(3, 1)), data)
    assert [len(names) for names in step.method.names] == [2, 2]
    with pytest.raises(UserError, match="names stage 4, but there are 3 pairs"):
        toy_step(toy_method("off", stages=4), data)
    with pytest.raises(UserError, match=r"method\.heads.*divide method\.dim, which is 250"):
        create_method("off", dim=250)


CONVOLUTIONAL = [Form(64, 56, 56), Form(128, 28, 28), Form(256, 14, 14), Form(512, 7, 7)]
ISOTROPIC = [Form(384, 14, 14, True)] * 4
BLOCK, CONVOLUTIONS, ATTENTION = 788_992, 512 + 2304 + 65_536, 2 * (512 + 256 * 512 + 512) + 2 * 4 * 512


def test_parts_are_of_the_published_size():
    method = create_method("off")
    with torch.device("meta"):
        method.build(list(zip(CONVOLUTIONAL, ISOTROPIC, strict=True)))
    patches = sum(
        256 * form.channels * p * p + 256 for form, p in zip(CONVOLUTIONAL, (4, 2, 1, 1), strict=True)
    )
    tokens = 2 * 196 + 256 * 384 + 256 + 2 * 256 + 196 * 196 + 196
    back_to_maps = sum(512 + 256 * form.channels for form in CONVOLUTIONAL)
    back_to_tokens = 256 * 384 + 384
    expected = {
        "embeddings": patches + tokens,
        "mixer": ATTENTION,
        "encoder": BLOCK,
        "student_decoder": BLOCK + back_to_maps,
        "teacher_decoder": CONVOLUTIONS + back_to_tokens,
    }
    assert {
        name: sum(p.numel() for p in part.parameters()) for name, part in method.named_children()
    } == expected
