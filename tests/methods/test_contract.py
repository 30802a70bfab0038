"""The contract carries what the coming methods need: toy versions of them run through the real engine.

Each toy keeps one mechanism of a published method: HSAKD's rotations with a joint head, mutual learning
between two students, PACKD's memory bank with a first stage and a forward-only epoch, PAT's prompts
inside a frozen teacher with feedback from the step before.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toys import toy_batch, toy_clock, toy_data, toy_networks, toy_step
from tutelage.data.batch import Batch
from tutelage.losses import kd_loss
from tutelage.methods import Clock, Config, DataSpec, Method, Needs, Networks, Outs, Phase
from tutelage.models.network import Ask, probe
from tutelage.training.step import Step, relative_difference


class Rotations(Method):
    """Four rotations a sample, joint labels on a head of its own, KL on the upright rows."""

    @property
    def needs(self) -> Needs:
        return Needs(student=Ask(pooled=True), views=4)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        width = probe(nets.student, data.image_shape[-2:]).pooled[0]
        self.head = nn.Linear(width, 4 * data.num_classes)

    def views(self, batch: Batch, generator: torch.Generator) -> Batch:
        turned = torch.stack([torch.rot90(batch.images, k, (2, 3)) for k in range(4)], dim=1).flatten(0, 1)
        repeat = [part.repeat_interleave(4, dim=0) for part in (batch.targets, batch.index, batch.view)]
        return Batch(turned, *repeat)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        rows = torch.arange(len(batch.targets), device=batch.targets.device)
        joint = batch.targets * 4 + rows % 4
        return {
            "joint": F.cross_entropy(self.head(outs.student.pooled), joint),
            "kd": kd_loss(outs.student.logits[::4], outs.teacher.logits[::4], 3.0),
        }


class Mutual(Method):
    """Two students, each taught by the other's detached answer."""

    @property
    def needs(self) -> Needs:
        return Needs(teacher=None, students=2)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        first, second = (out.logits for out in outs.students)
        return {
            "ce_1": F.cross_entropy(first, batch.targets),
            "ce_2": F.cross_entropy(second, batch.targets),
            "kl_1": kd_loss(first, second.detach(), 3.0),
            "kl_2": kd_loss(second, first.detach(), 3.0),
        }


class Bank(Method):
    """A teacher head trained first, one forward-only epoch to fill a memory, then contrast against it."""

    @property
    def needs(self) -> Needs:
        return Needs(student=Ask(pooled=True), teacher=Ask(pooled=True))

    def setup(self, nets: Networks, data: DataSpec) -> None:
        s, t = (probe(net, data.image_shape[-2:]).pooled[0] for net in (nets.student, nets.teacher))
        self.student_head, self.teacher_head = nn.Linear(s, 8), nn.Linear(t, 8)
        self.classifier = nn.Linear(8, data.num_classes)
        self.register_buffer("bank", F.normalize(torch.randn(len(data.labels), 8), dim=1))
        self.register_buffer("updates", torch.zeros(()))

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("teacher head", epochs=1, objective="head", trains="method"),
            Phase("fill the bank", epochs=1, update=False),
            Phase("distil"),
        )

    def head(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        return {
            "head": F.cross_entropy(self.classifier(self.teacher_head(outs.teacher.pooled)), batch.targets)
        }

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        positive = F.normalize(self.teacher_head(outs.teacher.pooled), dim=1).detach()
        with torch.no_grad():
            self.bank.index_copy_(0, batch.index, positive)
            self.updates.add_(1)
        anchor = F.normalize(self.student_head(outs.student.pooled), dim=1)
        return {
            "ce": F.cross_entropy(outs.student.logits, batch.targets),
            "contrast": F.cross_entropy(anchor @ self.bank.clone().T / 0.1, batch.index),
        }


class Prompts(Method):
    """A trained prompt before each stage of the frozen teacher, fed by the gap of the step before."""

    @property
    def needs(self) -> Needs:
        return Needs(student=Ask(stages=True), teacher=Ask(stages=True))

    def setup(self, nets: Networks, data: DataSpec) -> None:
        inputs = probe(nets.teacher, data.image_shape[-2:]).inputs
        self.prompts = nn.ModuleList(nn.Conv2d(shape[0], shape[0], 1) for shape in inputs)
        for prompt in self.prompts:
            nn.init.dirac_(prompt.weight)
        self.register_buffer("gap", torch.zeros(len(inputs)))

    def inserts(self) -> nn.ModuleList:
        return self.prompts

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        pairs = list(zip(outs.student.stages, outs.prompted.stages, strict=True))
        gaps = torch.stack([F.mse_loss(s.mean((2, 3)), p.mean((2, 3))) for s, p in pairs])
        weighted = (gaps * (1 + self.gap)).sum()
        self.keep("gap", gaps)
        drift = F.kl_div(
            outs.prompted.logits.log_softmax(1), outs.teacher.logits.softmax(1), reduction="batchmean"
        )
        return {"ce": F.cross_entropy(outs.student.logits, batch.targets), "gap": weighted, "drift": drift}


TOYS = (Rotations, Mutual, Bank, Prompts)


@pytest.fixture(scope="module")
def data():
    return toy_data()


def expanded(method: Method, batch: Batch) -> Batch:
    return method.views(batch, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("toy", TOYS)
def test_the_engine_runs_and_compiles_it(toy, data):
    gradients = []
    for compile_it in (False, True):
        torch.manual_seed(5)
        step, nets = toy_step(toy(Config()), data)
        frozen = copy.deepcopy(nets.teacher.state_dict()) if nets.teacher else {}
        batch = expanded(step.method, toy_batch(data))
        call = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False) if compile_it else step
        result = call(batch, toy_clock())
        result.loss.backward()
        assert result.correct.shape == (2,) and int(result.correct[1]) <= 8
        gradients.append({n: p.grad for n, p in step.named_parameters() if p.grad is not None})
        step.method.commit(batch)
        if nets.teacher:
            assert all(torch.equal(frozen[k], v) for k, v in nets.teacher.state_dict().items())
            assert all(p.grad is None for p in nets.teacher.parameters())
    assert relative_difference(gradients[1], gradients[0]) < 1e-4
    torch._dynamo.reset()


def test_rotations_are_sample_major_and_accuracy_counts_upright_rows(data):
    method = Rotations(Config())
    batch = toy_batch(data)
    rows = expanded(method, batch)
    assert torch.equal(rows.images[::4], batch.images)
    assert torch.equal(rows.images[5], torch.rot90(batch.images[1], 1, (1, 2)))
    assert rows.targets.tolist() == [label for label in batch.targets.tolist() for _ in range(4)]


def test_mutual_terms_reach_one_network_each(data):
    step, nets = toy_step(Mutual(Config()), data)
    terms, _ = step.terms(toy_batch(data), toy_clock())
    for name, reached, untouched in (("kl_1", 0, 1), ("kl_2", 1, 0)):
        parameters = [list(net.parameters()) for net in nets.students]
        grads = torch.autograd.grad(terms[name], parameters[untouched], retain_graph=True, allow_unused=True)
        assert all(g is None for g in grads)
        grads = torch.autograd.grad(terms[name], parameters[reached], retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads)


def test_prompts_learn_inside_the_frozen_teacher(data):
    step, _ = toy_step(Prompts(Config()), data)
    step(toy_batch(data), toy_clock()).loss.backward()
    assert all(p.weight.grad.abs().sum() > 0 for p in step.method.prompts)
    assert step.method.gap.abs().sum() == 0
    step.method.commit(toy_batch(data))
    assert step.method.gap.abs().sum() > 0


def test_state_of_a_method_is_in_its_checkpoint(data):
    step, _ = toy_step(Bank(Config()), data)
    step(toy_batch(data), toy_clock())
    saved = copy.deepcopy(step.method.state_dict())
    assert saved["updates"] == 1
    other = Bank(Config())
    other.setup(
        toy_networks(other, data),
        DataSpec(data.info.num_classes, (3, 32, 32), data.train_labels, data.take, 1),
    )
    other.load_state_dict(saved)
    assert torch.equal(other.bank, step.method.bank)


def test_objectives_of_phases_are_separate(data):
    method = Bank(Config())
    _, nets = toy_step(method, data)
    assert [phase.name for phase in method.phases()] == ["teacher head", "fill the bank", "distil"]
    head = Step(nets, method, "head").train()
    head(toy_batch(data), toy_clock()).loss.backward()
    assert all(p.grad is None for p in nets.student.parameters())
    assert method.classifier.weight.grad.abs().sum() > 0
