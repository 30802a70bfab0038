"""Methods that compare features: their parts, what they refuse, and how their terms come about."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toys import toy_batch, toy_clock, toy_data, toy_networks, toy_step
from tutelage.errors import UserError
from tutelage.losses import congruence_loss, hcl_loss, kdsvd_losses, nst_loss, pkt_loss
from tutelage.methods import Outs, create_method
from tutelage.methods.reviewkd import Fusion
from tutelage.methods.vid import Guess


@pytest.fixture(scope="module")
def data():
    return toy_data(per_class=2)


def answers(step, nets, batch):
    """The step's terms, and what the networks answered for the same batch."""
    terms = step(batch, toy_clock(epoch=1000.0)).terms
    with torch.no_grad():
        return terms, Outs((nets.student(batch.images),), nets.teacher(batch.images))


@pytest.mark.parametrize("name", ["cc", "pkt", "nst", "kdsvd"])
def test_the_term_is_the_weighted_loss_of_the_networks_answers(name, data):
    step, nets = toy_step(create_method(name), data)
    method, batch = step.method, toy_batch(data)
    terms, outs = answers(step, nets, batch)
    student, teacher = outs.student, outs.teacher
    expected = {
        "cc": lambda: 0.02 * congruence_loss(method.embed_s(student.pooled), method.embed_t(teacher.pooled)),
        "pkt": lambda: 30000 * pkt_loss(student.pooled, teacher.pooled),
        "nst": lambda: 50 * sum(map(nst_loss, student.stages, teacher.stages)),
        "kdsvd": lambda: kdsvd_losses(student.stages, teacher.stages).sum(),
    }
    with torch.no_grad():
        torch.testing.assert_close(terms[name], expected[name](), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cc", "vid", "pkt", "nst", "reviewkd"])
def test_networks_of_other_widths_and_sides_are_compared_too(name, data):
    step, _ = toy_step(create_method(name), data, student="wrn_16_1_cifar", teacher="resnet8x4_cifar")
    result = step(toy_batch(data), toy_clock())
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())


def test_singular_vectors_need_stages_that_pair_and_are_equally_wide(data):
    with pytest.raises(UserError, match="student has 3 and the teacher 4"):
        toy_step(create_method("kdsvd"), data, teacher="vgg8_cifar")
    with pytest.raises(UserError, match=r"\[16, 32, 64\] and the teacher's \[64, 128, 256\]"):
        toy_step(create_method("kdsvd"), data, teacher="resnet8x4_cifar")


def test_cc_embeds_both_networks_in_the_width_that_was_asked_for(data):
    step, _ = toy_step(create_method("cc", embedding_dim=7), data, teacher="resnet8x4_cifar")
    assert step.method.embed_s.weight.shape == (7, 64)
    assert step.method.embed_t.weight.shape == (7, 256)


def test_vid_adds_up_its_guesses_which_start_from_the_variance_that_was_asked_for(data):
    step, nets = toy_step(create_method("vid", vid_weight=2.0, initial_variance=0.3), data)
    for guess, width in zip(step.method.guesses, (16, 32, 64), strict=True):
        assert {conv.weight.shape[0] for conv in guess.regressor if isinstance(conv, nn.Conv2d)} == {width}
        variance = F.softplus(guess.log_scale) + 1e-5
        torch.testing.assert_close(variance, torch.full((width,), 0.3))
    terms, outs = answers(step, nets, toy_batch(data))
    expected = sum(
        guess(*pair)
        for guess, *pair in zip(step.method.guesses, outs.student.stages, outs.teacher.stages, strict=True)
    )
    torch.testing.assert_close(terms["vid"], 2 * expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [(8, 4), (4, 8), (6, 4)])
def test_a_guess_pools_the_larger_map(sides):
    guess = Guess(3, 5, 4, initial_variance=5.0)
    student, teacher = torch.randn(2, 3, sides[0], sides[0]), torch.randn(2, 4, sides[1], sides[1])
    pool = nn.AdaptiveAvgPool2d(min(sides))
    torch.testing.assert_close(guess(student, teacher), guess(pool(student), pool(teacher)))


def test_a_guess_gets_better_by_training():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3, 4, 4, generator=generator)
    teacher = student[:, :2] + 0.1 * torch.randn(4, 2, 4, 4, generator=generator)
    torch.manual_seed(0)
    guess = Guess(3, 8, 2, initial_variance=5.0)
    optimiser = torch.optim.Adam(guess.parameters(), lr=0.02)
    for _ in range(600):
        optimiser.zero_grad()
        guess(student, teacher).backward()
        optimiser.step()
    assert F.softplus(guess.log_scale).max() < 0.2


def test_reviewkd_ramps_up_over_its_warm_up(data):
    step, _ = toy_step(create_method("reviewkd", warmup_epochs=20), data)
    full, _ = toy_step(create_method("reviewkd", warmup_epochs=0), data)
    full.load_state_dict(step.state_dict())
    batch = toy_batch(data)
    expected = full(batch, toy_clock()).terms["review"]
    for epoch, share in ((0, 1 / 20), (9, 10 / 20), (19, 1.0), (200, 1.0)):
        got = step(batch, toy_clock(epoch=float(epoch))).terms["review"]
        torch.testing.assert_close(got, share * expected, rtol=1e-3, atol=1e-6)


def test_reviewkd_fuses_in_the_students_last_width_up_to_a_bound(data):
    for bound, hidden in ((512, 64), (24, 24)):
        step, _ = toy_step(create_method("reviewkd", max_hidden=bound), data, teacher="resnet8x4_cifar")
        fusions = step.method.fusions
        assert [fusion.conv1[0].weight.shape[:2] for fusion in fusions] == [
            (hidden, width) for width in (16, 32, 64, 64)
        ]
        assert [fusion.conv2[0].weight.shape[0] for fusion in fusions] == [64, 128, 256, 256]
        assert [fusion.att_conv is None for fusion in fusions] == [False, False, False, True]
        assert [fusion.sides for fusion in fusions] == [(32, 32), (16, 16), (8, 8), (1, 1)]


def test_reviewkd_pairs_stages_of_other_counts(data):
    step, _ = toy_step(create_method("reviewkd"), data, student="resnet8_cifar", teacher="convnext")
    fusions = step.method.fusions
    assert [fusion.conv1[0].weight.shape[1] for fusion in fusions] == [16, 32, 64, 64]
    assert [fusion.conv2[0].weight.shape[0] for fusion in fusions] == [12, 16, 24, 24]
    step(toy_batch(data), toy_clock()).loss.backward()


def test_reviewkd_compares_with_the_teacher_before_its_activation(data):
    for preact in (True, False):
        method = create_method("reviewkd", teacher_preact=preact, student_preact=not preact)
        nets = toy_networks(method, data)
        images = toy_batch(data).images
        teacher, student = (net.eval()(images) for net in (nets.teacher, nets.student))
        for stages, before in ((teacher.stages, preact), (student.stages, not preact)):
            assert all((stage.min() < 0) == before for stage in stages)


def test_reviewkd_passes_the_deeper_levels_on_to_the_shallower(data):
    step, _ = toy_step(create_method("reviewkd"), data)
    method = step.method
    teachers = [torch.randn(4, *shape) for shape in ((16, 8, 8), (32, 4, 4), (64, 2, 2), (64, 1, 1))]
    students = [torch.randn_like(level, requires_grad=True) for level in teachers]
    for fusion, level in zip(method.fusions, teachers, strict=True):
        fusion.sides = tuple(level.shape[2:])
    deep, *_, shallow = method.review(students, teachers)
    reached = torch.autograd.grad(shallow, students, retain_graph=True)
    assert all(gradient.abs().max() > 0 for gradient in reached)
    alone = torch.autograd.grad(deep, students, allow_unused=True)
    assert [gradient is None for gradient in alone] == [True, True, True, False]
    answer, _ = method.fusions[-1](students[-1])
    torch.testing.assert_close(deep, hcl_loss(answer, teachers[-1]))


def test_a_fusion_mixes_by_two_shares_and_resizes_by_copying():
    torch.manual_seed(0)
    fusion = Fusion(3, 4, (5, 8, 8), fuse=True).eval()
    features, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)
    answer, mixture = fusion(features, residual)
    assert answer.shape == (2, 5, 8, 8)
    own = fusion.conv1(features)
    spread = residual.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    conv = fusion.att_conv[0]
    score = torch.einsum("kc,bchw->bkhw", conv.weight[:, :, 0, 0], torch.cat([own, spread], 1))
    share = 1 / (1 + torch.exp(-score - conv.bias[:, None, None]))
    expected = own * share[:, 0, None] + spread * share[:, 1, None]
    torch.testing.assert_close(mixture[:, :, ::2, ::2], expected)
    torch.testing.assert_close(mixture[:, :, 1::2, 1::2], expected)
