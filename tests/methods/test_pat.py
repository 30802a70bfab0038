"""PAT: the pairs it takes, what its gradients reach, what it remembers, what it refuses."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toys import toy_clock, toy_data, toy_step
from tutelage.errors import UserError
from tutelage.losses import hcl_loss
from tutelage.methods import create_method, method_config
from tutelage.methods.pat_prompts import Entrance, FedPrompt, PromptBlock
from tutelage.training.step import relative_difference

SMALL = {"dim": 16, "heads": 4, "regions": 4}
CNN = "test_resnet"
PAIRS = [("vit", "convnext"), (CNN, "swin"), (CNN, "vit"), ("resnet8_cifar", "resnet14_cifar")]
"""(student, teacher)."""

every_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS)


@pytest.fixture(scope="module")
def data():
    return toy_data(per_class=2)


def small(**settings):
    return create_method("pat", **{**SMALL, **settings})


def batches(data, method, size=4):
    """The first two batches of an epoch, in the method's views."""
    found = data.train_batches(0, 0, size)
    return [method.views(next(found), torch.Generator()) for _ in range(2)]


def switch_on(method, beta=0.3):
    """Give the prompts something to say."""
    with torch.no_grad():
        for prompt in method.prompt_blocks.values():
            prompt.block.beta.fill_(beta)


# -- what is remembered -----------------------------------------------------------------------------


def test_a_prompt_remembers_as_many_samples_as_the_largest_batch():
    torch.manual_seed(0)
    prompt = FedPrompt(PromptBlock(Entrance(8, (4, 4)), (8, 4, 4)), (8, 4, 4))
    prompt.block.beta.data.fill_(0.5)
    x, gap = torch.randn(4, 8, 4, 4), torch.randn(4, 8, 4, 4)
    with pytest.raises(UserError, match="the batch has 4; hand every batch to the method's views"):
        prompt(x)
    prompt.make_room(4)
    assert prompt.known.tolist() == [False] * 4
    torch.testing.assert_close(prompt(x), prompt.block(x))
    prompt.write(gap)
    torch.testing.assert_close(prompt(x[:3]), prompt.block(x[:3], gap[:3]))
    prompt.write(-gap[:2])
    prompt.make_room(5)
    assert prompt.known.tolist() == [True] * 4 + [False]
    assert torch.equal(prompt.gap[:4], torch.cat([-gap[:2], gap[2:]]))
    other = FedPrompt(PromptBlock(Entrance(8, (4, 4)), (8, 4, 4)), (8, 4, 4))
    other.load_state_dict(prompt.state_dict())
    assert torch.equal(other(x), prompt(x)) and len(other.gap) == 5


def test_the_gap_of_a_step_feeds_the_next(data):
    step, nets = toy_step(small(), data, student="vit", teacher="convnext")
    method = step.method
    switch_on(method)
    first, second = batches(data, method)
    step(first, toy_clock())
    assert all(not prompt.known.any() for prompt in method.prompt_blocks.values())
    method.commit(first)
    with torch.no_grad():
        aligned = method.align(nets.student(first.images))
        fresh = copy.deepcopy(method)
        for prompt in fresh.prompt_blocks.values():
            prompt.known.zero_()
        targets = nets.teacher(first.images, inserts=fresh.prompt_blocks).stages
        for number, prompt in enumerate(method.prompt_blocks.values()):
            torch.testing.assert_close(prompt.gap, aligned[number] - targets[number], rtol=1e-3, atol=1e-4)
        assert all(prompt.known.all() for prompt in method.prompt_blocks.values())
        fed, hungry = (nets.teacher(second.images, inserts=m.prompt_blocks).logits for m in (method, fresh))
    assert not torch.allclose(fed, hungry)


def test_a_saved_state_goes_on_as_if_nothing_happened(data):
    def train(step, rounds):
        optimiser = torch.optim.SGD(step.parameters(), lr=0.05)
        for batch in rounds:
            result = step(batch, toy_clock())
            result.loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            step.method.commit(batch)
        return step.state_dict()

    step, _ = toy_step(small(), data, student="vit", teacher="convnext")
    rounds = [*batches(data, step.method), *batches(data, step.method)]
    train(step, rounds[:2])
    file = io.BytesIO()
    torch.save(step.state_dict(), file)
    file.seek(0)
    other, _ = toy_step(small(), data, student="vit", teacher="convnext")
    other.load_state_dict(torch.load(file, weights_only=True))
    expected, got = train(step, rounds[2:]), train(other, rounds[2:])
    assert expected.keys() == got.keys()
    assert all(torch.equal(value, got[key]) for key, value in expected.items())
    assert any(key.endswith("gap") for key in got)


# -- the step ---------------------------------------------------------------------------------------


@every_pair
@pytest.mark.parametrize("preset", ["corrected", "published"])
def test_student_prompts_and_attention_learn_and_nothing_else_does(student, teacher, preset, data):
    step, nets = toy_step(small(preset=preset), data, student=student, teacher=teacher)
    method = step.method
    switch_on(method)
    before = copy.deepcopy(nets.teacher.state_dict())
    for batch in batches(data, method):
        step.zero_grad()
        result = step(batch, toy_clock())
        result.loss.backward()
        method.commit(batch)
        assert set(result.terms) == {"ce", "kd", "features", "drift"}
        assert torch.isfinite(result.loss)
        unmoved = [n for n, p in step.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert unmoved == []
        assert all(p.grad is None for p in nets.teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in nets.teacher.state_dict().items())
    for name, parameter in method.named_parameters():
        in_prompt = name.startswith("prompt_blocks") and not name.endswith("beta")
        shut = preset == "published" and in_prompt  # by the ReLU of a gate with one unit, behind it all
        if name.endswith(("beta", "to_q.weight", "proj.weight", "0.weight", "1.weight")) and not shut:
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("pair", "preset"),
    [*zip(PAIRS, ("corrected", "corrected", "published", "published"), strict=True)],
)
def test_two_compiled_steps_give_the_eager_gradients(pair, preset, data):
    found = []
    for compiled in (False, True):
        step, _ = toy_step(small(preset=preset), data, student=pair[0], teacher=pair[1])
        switch_on(step.method)
        first, second = batches(data, step.method)
        call = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False) if compiled else step
        call(first, toy_clock()).loss.backward()
        step.method.commit(first)
        with torch.compiler.set_stance("fail_on_recompile" if compiled else "default"):
            call(second, toy_clock()).loss.backward()
        step.method.commit(second)
        found.append({name: p.grad for name, p in step.named_parameters()})
        found[-1] |= {name: b.detach() for name, b in step.named_buffers() if name.endswith("gap")}
    assert relative_difference(found[1], found[0]) < 1e-4
    torch._dynamo.reset()


@every_pair
def test_under_autocast_prompts_that_say_nothing_change_nothing(student, teacher, data):
    step, _ = toy_step(small(), data, student=student, teacher=teacher)
    step.amp = torch.bfloat16
    for batch in batches(data, step.method):
        result = step(batch, toy_clock())
        result.loss.backward()
        step.method.commit(batch)
        assert torch.isfinite(result.loss)
        assert float(result.terms["drift"]) == pytest.approx(0, abs=1e-6)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())


def test_terms_reach_what_they_should(data):
    step, nets = toy_step(small(), data, student="vit", teacher="convnext")
    method = step.method
    switch_on(method)
    first, second = batches(data, method)
    step(first, toy_clock())
    method.commit(first)
    terms, _ = step.terms(second, toy_clock())
    parts = {
        "student": nets.student,
        "attention": method.attention_blending,
        "aligners": method.aligners,
        "prompts": method.prompt_blocks,
    }

    def reaches(term, module):
        grads = torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)
        return any(grad is not None and grad.abs().sum() > 0 for grad in grads)

    def reached(term):
        return {part for part, module in parts.items() if reaches(term, module)}

    assert {name: reached(term) for name, term in terms.items()} == {
        "ce": {"student"},
        "kd": {"student"},
        "features": set(parts),
        "drift": {"prompts"},
    }
    method.discard()
    method.config = method_config("pat", {**SMALL, "detach_target": True})
    assert reached(step.terms(second, toy_clock())[0]["features"]) == {"student", "attention", "aligners"}


def test_the_terms_are_the_formulas(data):
    settings = {"kd_weight": 0.5, "temperature": 2.0, "feature_weight": 3.0, "drift_weight": 0.2}
    step, nets = toy_step(small(**settings), data, student="vit", teacher="convnext")
    method = step.method
    switch_on(method)
    batch, _ = batches(data, method)
    terms = step(batch, toy_clock()).terms
    with torch.no_grad():
        student, plain = nets.student(batch.images), nets.teacher(batch.images).logits.double()
        prompted = nets.teacher(batch.images, inserts=method.prompt_blocks)
        aligned = method.align(student)

    def divergence(p, q):
        return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum() / len(p)

    features = sum(hcl_loss(a, g) for a, g in zip(aligned, prompted.stages, strict=True))
    expected = {
        "ce": F.cross_entropy(student.logits, batch.targets),
        "kd": 0.5 * 4 * divergence(plain / 2, student.logits.double() / 2),
        "features": 3.0 * features,
        "drift": 0.2 * divergence(plain, prompted.logits.double()),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].double(), value.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("teacher", ["vit", "swin", "mlp", "convnext"])
def test_before_anything_is_learnt_only_the_published_layout_changes_the_teacher(teacher, data):
    for preset in ("corrected", "published"):
        step, nets = toy_step(small(preset=preset), data, student=CNN, teacher=teacher)
        batch, _ = batches(data, step.method)
        with torch.no_grad():
            plain = nets.teacher(batch.images)
            prompted = nets.teacher(batch.images, inserts=step.method.prompt_blocks)
        same = all(torch.equal(a, b) for a, b in zip(plain.stages, prompted.stages, strict=True))
        assert same == (preset == "corrected" or teacher == "convnext")
        assert not same or torch.equal(plain.logits, prompted.logits)


def test_entrances_are_read_off_the_probed_shapes(data):
    expected = {
        "vit": (Entrance(24, (4, 4), "tokens", 1),) * 4,
        "mlp": (Entrance(16, (4, 4), "tokens"),) * 4,
        "swin": tuple(Entrance(8 * 2**i, (8 // 2**i,) * 2, "grid") for i in range(4)),
        "convnext": tuple(
            Entrance(c, (side, side)) for c, side in zip((8, 8, 12, 16), (8, 8, 4, 2), strict=True)
        ),
    }
    for teacher, entrances in expected.items():
        step, _ = toy_step(small(), data, student=CNN, teacher=teacher)
        blocks = [prompt.block for prompt in step.method.prompt_blocks.values()]
        assert tuple(block.entrance for block in blocks) == entrances
        assert isinstance(blocks[0].fb_aligner, nn.Identity)


def test_prompts_stand_where_they_are_asked_for(data):
    step, _ = toy_step(small(prompt_stages=(3, 1)), data, student="vit", teacher="convnext")
    assert list(step.method.prompt_blocks) == ["0", "2"]
    batch, _ = batches(data, step.method)
    step(batch, toy_clock()).loss.backward()
    step.method.commit(batch)
    with pytest.raises(UserError, match="front of the teacher's stage 5, because it isn't there"):
        toy_step(small(prompt_stages=5), data, student="vit", teacher="convnext")
    method = small()
    with pytest.raises(UserError, match="stage 2, because it has no single entrance"):
        method.build([(3, 4, 4)] * 2, [(3, 4, 4)] * 2, [Entrance(3, (4, 4)), None], tokens=False)


def test_the_last_three_of_four_stages_are_the_partners_of_three(data):
    step, nets = toy_step(small(), data, student="resnet8_cifar", teacher="vit")
    method, (batch, _) = step.method, batches(data, step.method)
    assert list(method.prompt_blocks) == ["1", "2", "3"]
    assert method.inserts() == [None, *method.prompt_blocks.values()]
    prompted = nets.teacher(batch.images, inserts=method.inserts())
    for got, expected in zip(method.stages(prompted), prompted.stages[1:], strict=True):
        assert torch.equal(got, expected)
    aligned = method.align(nets.student(batch.images))
    step(batch, toy_clock())
    method.commit(batch)
    gaps = [prompt.gap for prompt in method.prompt_blocks.values()]
    assert [gap.shape for gap in gaps] == [stage.shape for stage in aligned] and all(map(torch.any, gaps))
    with pytest.raises(UserError, match="stage 1, because it has no partner among the student's; name other"):
        toy_step(small(prompt_stages=1), data, student="resnet8_cifar", teacher="vit")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"regions": 10}, "method.regions.*form a square grid"),
        ({"dim": 100}, "method.heads.*divide method.dim, which is 100"),
        ({"prompt_stages": [1, 1]}, "name a stage once"),
        ({"preset": "publishd"}, "method.preset"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        method_config("pat", settings)


def test_a_setting_goes_before_the_preset():
    names = ("se", "token_layout", "class_token", "position")
    published = method_config("pat", {"preset": "published", "position": "none"})
    assert [published.switch(name) for name in names] == ["gate", "scrambled", "last", "none"]
    corrected = method_config("pat", {"se": "gate"})
    assert [corrected.switch(name) for name in names] == ["gate", "correct", "first", "token"]
    assert not published.detach_target and not corrected.detach_target
