"""PACKD: noted values, the views it makes, its two memories over time, its switches."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toys import toy_batch, toy_clock, toy_data, toy_networks, toy_step
from tutelage.data import ResidentData
from tutelage.data.batch import Batch
from tutelage.data.class_table import ClassTable
from tutelage.errors import UserError
from tutelage.losses import kd_loss
from tutelage.methods import DataSpec, Method, Outs, create_method
from tutelage.methods.packd_memory import BankMemory, QueueMemory
from tutelage.models.network import Outputs
from tutelage.training.step import Step, relative_difference

SMALL: dict[str, Any] = {"negatives": 12, "embedding_dim": 8}
QUEUE: dict[str, Any] = {"memory": "queue", "negatives": 12, "queue_size": 24, "mixes": 1}
SIDE = 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data() -> ResidentData:
    return toy_data()


def circle(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def pooled(student: Tensor, teacher: Tensor) -> Outs:
    blank = torch.empty(0)
    return Outs((Outputs(blank, student, (), ()),), Outputs(blank, teacher, (), ()))


# -- noted values -----------------------------------------------------------------------------------


def test_the_values_noted_for_the_official_implementation() -> None:
    method = create_method("packd", mixes=1, negatives=2, embedding_dim=2)
    labels = torch.arange(4)
    method.know(labels, 4)
    method.build_contrast(2, 2)
    method.head = nn.Identity()
    method.double()
    with torch.no_grad():
        nn.init.eye_(method.embed_s.linear.weight)
        nn.init.zeros_(method.embed_s.linear.bias)
        method.memory.rows.copy_(circle(0, 90, 180, 270))
    lengths = torch.arange(1, 5).double().unsqueeze(1)
    rows = torch.tensor([0, 0, 2, 2])
    chosen = torch.tensor([[0, 1, 2], [2, 3, 1]])
    noted = (
        ((10, 40, 120, 60), 1.821379, (10, 90, 120, -90),
         (0, 0.145557, 0.194740, -0.337299, -0.613142, -0.108113, 0.016778, 0.014079)),
        ((20, 40, 100, 60), 2.186551, (15, 90, 110, -90),
         (0, -0.172561, 0.233183, -0.403885, -0.715914, -0.126235, -0.145011, -0.121679)),
    )  # fmt: skip
    for teacher, loss, bank, gradient in noted:
        student = (lengths * circle(0, 30, 100, 130)).requires_grad_()
        batch = Batch(student, rows, rows, rows, chosen)
        value = method.contrast(batch, pooled(student, circle(*teacher)))
        assert value.item() == pytest.approx(loss, abs=3e-6)  # noted from float32
        angles = torch.rad2deg(torch.atan2(method.memory.rows[:, 1], method.memory.rows[:, 0]))
        assert angles.tolist() == pytest.approx(list(bank), abs=1e-6)
        got = torch.autograd.grad(value, student)[0].flatten()
        assert got.tolist() == pytest.approx(list(gradient), abs=1e-6)


# -- views ------------------------------------------------------------------------------------------


def marked(method: Method, labels: Tensor) -> Method:
    """``method`` on images of which row i has only pixel i lit, in a shade that tells the view."""

    def take(index: Tensor, view: Tensor) -> Batch:
        images = torch.zeros(len(index), 3, SIDE * SIDE)
        images[torch.arange(len(index)), :, index] = 1.0 + view[:, None].float()
        return Batch(images.unflatten(2, (SIDE, SIDE)), labels[index], index, view)

    classes = int(labels.max()) + 1
    method.know(labels, classes)
    method.data = DataSpec(classes, (3, SIDE, SIDE), labels, take, 5)
    method.build_contrast(4, 4)
    return method


LABELS = torch.arange(SIDE * SIDE) % 4


def views_of(seed: int = 0, **settings: Any) -> tuple[Batch, Batch]:
    method = marked(create_method("packd", **{"negatives": 7, "turn": False, **settings}), LABELS)
    index = torch.tensor([0, 5, 30])
    plain = method.data.take(index, torch.tensor([0, 0, 2]))
    return plain, method.views(plain, seeded(seed))


def test_rows_are_sample_major_with_the_plain_image_first() -> None:
    plain, rows = views_of(mixes=3)
    assert len(rows.images) == 12 and torch.equal(rows.images[::4], plain.images)
    for got, given in zip(rows[1:4], plain[1:4], strict=True):
        assert torch.equal(got, given.repeat_interleave(4))
    assert rows.negatives is not None and rows.negatives.shape == (3, 8)
    assert torch.equal(rows.negatives[:, 0], plain.index)
    assert (LABELS[rows.negatives[:, 1:]] != plain.targets[:, None]).all()


def test_mixes_are_of_the_own_class_with_fresh_views_of_both() -> None:
    plain, rows = views_of(mixes=40, smallest_share=0.25)
    lit = rows.images[:, 0].flatten(1).unflatten(0, (3, 41))[:, 1:]
    partners, shades = set(), set()
    for anchor, mixes in zip(plain.index.tolist(), lit, strict=True):
        for mix in mixes:
            (places,) = mix.nonzero(as_tuple=True)
            others = [place for place in places.tolist() if place != anchor]
            assert mix[anchor] >= 0.25 and len(others) <= 1
            assert all(LABELS[place] == LABELS[anchor] for place in others)
            partners.update(others)
            if others:
                shades.add(round(mix[anchor].item(), 3))
    assert len(partners) > 20 and max(shades) > 2 and len(shades) > 100


def test_mixes_share_the_anchors_plain_view_on_request() -> None:
    plain, rows = views_of(mixes=30, fresh_anchor=False)
    lit = rows.images[:, 0].flatten(1).unflatten(0, (3, 31))[:, 1:]
    at_anchor = lit[torch.arange(3), :, plain.index]
    alone = (lit > 0).sum(2) == 1  # the anchor drew itself as partner
    assert (at_anchor <= 1.0 + plain.view[:, None] + 1e-6)[~alone].all()


def test_partners_alone_are_shown_without_mixing() -> None:
    plain, rows = views_of(mixes=20, mix=False)
    lit = rows.images[:, 0].flatten(1).unflatten(0, (3, 21))[:, 1:]
    assert ((lit > 0).sum(2) == 1).all()
    assert (LABELS[lit.argmax(2)] == plain.targets[:, None]).all()
    assert set(lit.amax(2).flatten().tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_turning_moves_the_partner_by_quarters() -> None:
    plain, rows = views_of(mixes=60, mix=False, turn=True)
    lit = rows.images[:, 0].unflatten(0, (3, 61))[:, 1:].flatten(0, 1)
    straight = LABELS[lit.flatten(1).argmax(1)] == plain.targets.repeat_interleave(60)
    assert 0.2 < straight.float().mean() < 0.8
    turned = torch.stack([lit.rot90(-k, (1, 2)).flatten(1).argmax(1) for k in range(4)])
    assert (LABELS[turned] == plain.targets.repeat_interleave(60)).any(0).all()


def test_one_mix_in_place_of_the_image_and_none_at_all() -> None:
    plain, single = views_of(mixes=-1)
    assert single.images.shape == plain.images.shape and not torch.equal(single.images, plain.images)
    plain, none = views_of(mixes=0)
    assert torch.equal(none.images, plain.images)


def test_views_follow_from_the_generator() -> None:
    first, again, other = (views_of(seed, mixes=2, turn=True)[1] for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.negatives, other.negatives)


@pytest.mark.parametrize(("first", "columns"), [("own", 8), ("class", 8), ("none", 7)])
def test_what_stands_before_the_negatives(first: str, columns: int) -> None:
    plain, rows = views_of(mixes=0, first_negative=first)
    chosen = rows.negatives
    assert chosen.shape == (3, columns)
    assert (LABELS[chosen[:, -7:]] != plain.targets[:, None]).all()
    if first == "own":
        assert torch.equal(chosen[:, 0], plain.index)
    if first == "class":
        drawn = {
            tuple(views_of(s, mixes=0, first_negative="class")[1].negatives[:, 0].tolist()) for s in range(5)
        }
        assert len(drawn) > 1 and all((LABELS[list(rows)] == plain.targets).all() for rows in drawn)


def test_images_that_are_not_square_are_not_turned(data) -> None:
    method = create_method("packd", **SMALL)
    spec = DataSpec(data.info.num_classes, (3, 32, 24), data.train_labels, data.take, 1)
    with pytest.raises(UserError, match=r"32 x 24 pixels.*method\.turn=false"):
        method.setup(toy_networks(method, data), spec)


# -- memories ---------------------------------------------------------------------------------------


def test_a_row_is_replaced_at_first_and_moved_later() -> None:
    memory = BankMemory(ClassTable.of(LABELS, 4), 2, 3, "own", 0.5).double()
    memory.take_in(torch.tensor([4, 2]), LABELS[:2], 3 * circle(10, 20))
    torch.testing.assert_close(memory.rows[[4, 2]], circle(10, 20))
    memory.take_in(torch.tensor([4, 7]), LABELS[:2], circle(50, 70))
    torch.testing.assert_close(memory.rows[[4, 2, 7]], circle(30, 20, 70))


def test_an_epoch_writes_every_row_as_it_is(data) -> None:
    step, nets = toy_step(create_method("packd", **SMALL), data)
    generator, seen = seeded(), {}
    for batch in data.train_batches(0, 0, 7):
        shown = step.method.views(batch, generator)
        step(shown, toy_clock())
        with torch.no_grad():
            embedded = step.method.teacher_embeddings(nets.teacher(shown.images).pooled)
        seen |= dict(zip(batch.index.tolist(), embedded[:: step.rows], strict=True))
    assert step.method.memory.written.all()
    expected = torch.stack([seen[row] for row in range(data.train_size)])
    torch.testing.assert_close(step.method.memory.rows, expected, rtol=1e-3, atol=1e-4)


def test_the_own_row_counts_as_it_is_after_the_update(data) -> None:
    settings = {**SMALL, "mixes": 0, "negatives": 1}
    scores = {}
    for first in ("own", "none"):
        step, nets = toy_step(create_method("packd", **settings, first_negative=first), data)
        batch = step.method.views(next(iter(data.train_batches(0, 0, 8))), seeded())
        student, teacher = (net(batch.images).pooled for net in (nets.student, nets.teacher))
        anchors = step.method.embed_s(student).unsqueeze(1)
        guides = step.method.teacher_embeddings(teacher)
        step.method.memory.take_in(batch.index, batch.targets, guides)
        scores[first] = step.method.memory.similarities(anchors, batch.targets, batch.negatives)
        if first == "own":
            torch.testing.assert_close(scores[first][:, 0], (anchors.squeeze(1) * guides).sum(1))
    assert scores["own"].shape == (8, 2) and scores["none"].shape == (8, 1)


def queue(size: int = 6, negatives: int = 2000, classes: int = 3) -> QueueMemory:
    return QueueMemory(size, 2, negatives, classes).double()


def test_the_queue_overwrites_the_oldest_and_draws_from_what_it_will_hold() -> None:
    memory, generator = queue(), seeded()
    for number, labels in enumerate(([0, 1], [1, 2], [2, 2], [0, 0], [1, 0, 2])):
        given = torch.tensor(labels)
        drawn = memory.draw(given, given, 2, generator)
        memory.take_in(given, given, circle(*(10.0 * number + i for i in range(len(labels)))))
        assert drawn.shape == (2 * len(labels), 2000)
        for row, label in zip(drawn, given.repeat_interleave(2), strict=True):
            allowed = (memory.labels >= 0) & (memory.labels != label)
            shares = torch.bincount(row, minlength=6) / 2000
            assert (shares - allowed / allowed.sum()).abs().max() < 0.06
    assert memory.labels.tolist() == [0, 0, 1, 0, 2, 2]
    assert int(memory.cursor) == 5
    torch.testing.assert_close(memory.rows, circle(30, 31, 40, 41, 42, 21))


def test_a_queue_of_one_class_has_no_negatives_and_a_loss_of_nothing(data) -> None:
    step, _ = toy_step(create_method("packd", **QUEUE), data)
    rows = (data.train_labels == 1).nonzero().flatten()[:4]
    batch = step.method.views(data.take(rows, torch.zeros_like(rows)), seeded())
    result = step(batch, toy_clock())
    result.loss.backward()
    assert result.terms["contrast"] == 0
    assert all(torch.isfinite(p.grad).all() for p in step.parameters() if p.grad is not None)


def test_a_batch_larger_than_the_queue_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch of 7 images.*queue of 6"):
        queue().draw(torch.arange(7), torch.zeros(7, dtype=torch.int64), 1, seeded())


@pytest.mark.parametrize("settings", [SMALL, QUEUE], ids=["bank", "queue"])
def test_a_restored_method_goes_on_as_if_nothing_had_happened(data, settings) -> None:
    losses: list[list[float]] = [[], []]
    steps = [toy_step(create_method("packd", **settings), data)[0] for _ in range(2)]
    generators = [seeded(), seeded(9)]
    for number, batch in enumerate(data.train_batches(0, 0, 6)):
        if number == 2:
            steps[1].load_state_dict(copy.deepcopy(steps[0].state_dict()))
            generators[1].set_state(generators[0].get_state())
        for step, generator, seen in zip(steps, generators, losses, strict=True):
            shown = step.method.views(batch, generator)
            seen.append(step(shown, toy_clock()).loss.item())
            step.method.commit(shown)
    assert losses[0][:2] != losses[1][:2] and losses[0][2:] == losses[1][2:]
    assert len(losses[0]) > 4


# -- terms and switches -----------------------------------------------------------------------------


def terms_with(data, state=None, **settings: Any) -> dict[str, Tensor]:
    step, _ = toy_step(create_method("packd", **{**SMALL, **settings}), data)
    if state is not None:
        step.load_state_dict(state)
    return step(toy_batch(data, method=step.method), toy_clock()).terms


@pytest.mark.parametrize("plain_ce", [False, True])
def test_terms_are_taken_over_the_views_they_are_of(data, plain_ce: bool) -> None:
    step, nets = toy_step(create_method("packd", **SMALL, mixes=2, ce_weight=0.5, plain_ce=plain_ce), data)
    batch = toy_batch(data, method=step.method)
    got = step(batch, toy_clock()).terms
    student, teacher = (net(batch.images).logits.double() for net in (nets.student, nets.teacher))
    plain = torch.arange(len(student)) % 3 == 0
    ce = -student.log_softmax(1)[torch.arange(len(student)), batch.targets]
    ce = ce[plain].mean() if plain_ce else ce.mean()
    expected = {
        "ce": 0.5 * ce,
        "kd": kd_loss(student[plain], teacher[plain], 4.0),
        "mix_kd": kd_loss(student[~plain], teacher[~plain], 4.0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(got[name].double(), value.detach(), rtol=1e-3, atol=1e-5)


def test_the_papers_sum_counts_each_mix(data) -> None:
    mean, total = (terms_with(data, sum_mixes=choice)["mix_kd"] for choice in (False, True))
    torch.testing.assert_close(total, 3 * mean)


def test_without_mixes_there_is_no_term_of_them_and_no_nan(data) -> None:
    for mixes in (0, -1):
        terms = terms_with(data, mixes=mixes)
        assert set(terms) == {"ce", "kd", "contrast"}
        assert all(math.isfinite(term) for term in terms.values())


def test_a_queue_has_one_kd_term_over_all_views_and_no_first_stages(data) -> None:
    step, nets = toy_step(create_method("packd", **QUEUE), data)
    batch = toy_batch(data, method=step.method)
    terms = step(batch, toy_clock()).terms
    assert set(terms) == {"ce", "kd", "contrast"}
    student, teacher = (net(batch.images).logits for net in (nets.student, nets.teacher))
    torch.testing.assert_close(terms["kd"], kd_loss(student, teacher, 4.0).detach(), rtol=1e-3, atol=1e-5)
    assert [phase.name for phase in step.method.phases()] == ["distil"]
    assert not hasattr(step.method, "head")


def test_the_stages() -> None:
    head, fill, main = create_method("packd").phases()
    assert (head.epochs, head.lr, head.trains, head.objective) == (60, 0.05, "method", "classify")
    assert (fill.epochs, fill.update, fill.objective) == (1, False, "forward")
    assert (main.epochs, main.update, main.lr) == (None, True, None)
    assert len(create_method("packd", fill_epochs=0).phases()) == 2


def test_without_contrast_nothing_of_it_is_built(data) -> None:
    step, _ = toy_step(create_method("packd", contrast_weight=0.0), data)
    assert list(step.method.parameters()) == [] and len(step.method.phases()) == 1
    batch = toy_batch(data, method=step.method)
    assert batch.negatives is None
    assert set(step(batch, toy_clock()).terms) == {"ce", "kd", "mix_kd"}


def test_each_switch_of_the_contrast_changes_it_alone(data) -> None:
    step, _ = toy_step(create_method("packd", **SMALL), data)
    state = copy.deepcopy(step.state_dict())
    base = terms_with(data, state)
    converged = {"transport_threshold": 0.0, "transport_rounds": 100}
    for change in (
        {"transport_cost": "cosine"},
        converged,
        {"transport_epsilon": 0.5},
        {"contrast_temperature": 1.0},
    ):
        other = terms_with(data, state, **change)
        moved = {name for name in base if not torch.equal(base[name], other[name])}
        assert moved == {"contrast"}, change


def test_the_head_learns_alone_and_the_student_stage_leaves_it(data) -> None:
    step, nets = toy_step(create_method("packd", **SMALL), data)
    batch = toy_batch(data, method=step.method)
    Step(nets, step.method, "classify", students=False)(batch, toy_clock()).loss.backward()
    trained = {name for name, p in step.named_parameters() if p.grad is not None}
    heads = {name for name, _ in step.named_parameters() if name.startswith("method.head")}
    assert trained == heads and len(heads) == 6
    step.zero_grad(set_to_none=True)
    step(batch, toy_clock()).loss.backward()
    assert {name for name, p in step.named_parameters() if p.grad is None} == heads


def test_the_head_begins_the_same_whoever_the_student_is(data) -> None:
    states = []
    for student in ("resnet8_cifar", "resnet14_cifar"):
        method = create_method("packd", **SMALL)
        nets = toy_networks(method, data, student=student)
        torch.manual_seed(3)
        torch.rand(len(states))
        spec = DataSpec(data.info.num_classes, (3, 32, 32), data.train_labels, data.take, 162)
        method.setup(nets, spec)
        states.append(method.head.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    head = create_method("packd", **SMALL).phases()[0]
    assert head.part == "head"
    assert "embedding_dim" in head.settings and "contrast_weight" not in head.settings


@pytest.mark.parametrize(
    "settings",
    [QUEUE, {**SMALL, "mixes": 0, "transport_cost": "cosine", "first_negative": "none"}],
    ids=["queue", "bank"],
)
def test_every_variant_compiles_whole_and_follows_its_state(data, settings) -> None:
    results = []
    for compile_it in (False, True):
        step, _ = toy_step(create_method("packd", **settings, transport_rounds=3), data)
        call = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False) if compile_it else step
        generator, gradients = seeded(), {}
        for number, batch in enumerate(data.train_batches(0, 0, 20)):
            shown = step.method.views(batch, generator)
            call(shown, toy_clock()).loss.backward()
            step.method.commit(shown)
            gradients |= {
                f"{number} {n}": p.grad.clone() for n, p in step.named_parameters() if p.grad is not None
            }
            step.zero_grad(set_to_none=True)
        results.append((gradients, dict(step.method.named_buffers())))
    assert relative_difference(results[1][0], results[0][0]) < 1e-3
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()
