"""CRD: its state over steps, its draws, and the values noted from RepDistiller."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from toys import toy_batch, toy_clock, toy_data, toy_networks, toy_step
from tutelage.data import ResidentData, make_shapes
from tutelage.errors import UserError
from tutelage.methods import DataSpec, create_method
from tutelage.methods.crd import Contrast

SMALL = {"negatives": 12, "embedding_dim": 8}


@pytest.fixture(scope="module")
def data() -> ResidentData:
    return toy_data()


def batches(data, method, count=3, size=8):
    generator = torch.Generator().manual_seed(3)
    order = data.train_batches(0, 0, size)
    return [method.views(next(order), generator) for _ in range(count)]


def test_the_values_noted_for_the_official_implementation() -> None:
    contrast = Contrast(4, 4, 4, 6, 0.07, 0.5).double()
    numbers = torch.arange(24, dtype=torch.float64)
    with torch.no_grad():
        for head in (contrast.embed_s, contrast.embed_t):
            torch.nn.init.eye_(head.linear.weight)
            torch.nn.init.zeros_(head.linear.bias)
    contrast.memory_s.rows.copy_(0.5 * numbers.sin().view(6, 4))
    contrast.memory_t.rows.copy_(0.5 * numbers.cos().view(6, 4))
    student, teacher = (0.3 * numbers[:8]).sin().view(2, 4), (0.2 * numbers[:8]).cos().view(2, 4)
    chosen = torch.tensor([[1, 0, 2, 3], [4, 5, 3, 0]])
    losses = []
    for _ in range(2):
        loss, state = contrast(student, teacher, chosen)
        contrast.write(torch.tensor([1, 4]), state)
        losses.append(loss.item())
    assert losses == pytest.approx([17.451408, 2.254708], abs=1e-6)
    assert contrast.log_z.exp().tolist() == pytest.approx([4161.137, 1869.064], abs=1e-3)


def test_the_first_batch_fixes_the_constants_and_every_batch_moves_its_rows(data) -> None:
    step, _ = toy_step(create_method("crd", **SMALL), data)
    contrast = step.method.contrast
    assert contrast.log_z.isneginf().all()
    constants, before = [], contrast.memory_t.rows.clone()
    for batch in batches(data, step.method):
        step(batch, toy_clock()).loss.backward()
        rows = contrast.memory_s.rows.clone()
        step.method.commit(batch)
        constants.append(contrast.log_z.tolist())
        moved = (contrast.memory_s.rows != rows).any(dim=1)
        assert moved.nonzero().flatten().tolist() == sorted(batch.index.tolist())
    assert constants[0] == constants[1] == constants[2] and math.isfinite(constants[0][0])
    assert (contrast.memory_t.rows != before).any()


def test_a_pass_that_is_dropped_leaves_no_trace(data) -> None:
    step, _ = toy_step(create_method("crd", **SMALL), data)
    before = copy.deepcopy(step.method.state_dict())
    step(batches(data, step.method)[0], toy_clock()).loss.backward()
    step.method.discard()
    after = step.method.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_compiled_steps_follow_the_state_as_eager_ones_do(data) -> None:
    results = []
    for compile_it in (False, True):
        step, _ = toy_step(create_method("crd", **SMALL), data)
        call = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False) if compile_it else step
        seen = []
        for batch in batches(data, step.method):
            result = call(batch, toy_clock())
            result.loss.backward()
            step.method.commit(batch)
            gradient = step.method.contrast.embed_s.linear.weight.grad.clone()
            seen += [result.terms["crd"], gradient, step.method.contrast.memory_s.rows.clone()]
            step.zero_grad(set_to_none=True)
        results.append(seen)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_memories_and_constants_are_in_the_checkpoint(data) -> None:
    step, _ = toy_step(create_method("crd", **SMALL), data)
    first, second, _ = batches(data, step.method)
    step(first, toy_clock())
    step.method.commit(first)
    other, _ = toy_step(create_method("crd", **SMALL), data)
    other.load_state_dict(step.state_dict())
    assert torch.equal(other(second, toy_clock()).loss, step(second, toy_clock()).loss)


def test_negatives_are_of_other_classes_and_follow_the_generator(data) -> None:
    step, _ = toy_step(create_method("crd", **SMALL), data)
    batch = next(iter(data.train_batches(0, 0, 8)))
    drawn = [step.method.views(batch, torch.Generator().manual_seed(seed)).negatives for seed in (0, 0, 1)]
    assert drawn[0].shape == (8, 12)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert (data.train_labels[drawn[0]] != batch.targets.unsqueeze(1)).all()


@pytest.mark.parametrize("draw", ["any", "balanced"])
def test_other_ways_to_draw(draw: str) -> None:
    data = ResidentData(make_shapes(train_per_class=6, test_per_class=1), "cpu")
    labels = data.train_labels
    kept = torch.cat([(labels == 0).nonzero().flatten()[:2], (labels == 1).nonzero().flatten()])
    uneven = ResidentData(make_shapes(train_per_class=6, test_per_class=1), "cpu", train_indices=kept)
    step, _ = toy_step(create_method("crd", negatives=4000, draw=draw), uneven)
    drawn = toy_batch(uneven, 4, step.method).negatives
    share = float((uneven.train_labels[drawn] == 0).float().mean())
    assert share == pytest.approx({"any": 2 / 8, "balanced": 1 / 2}[draw], abs=0.02)
    assert drawn.unique().tolist() == list(range(8))


def test_kd_beside_it_is_a_term_of_its_own(data) -> None:
    plain, _ = toy_step(create_method("crd", **SMALL), data)
    both, _ = toy_step(create_method("crd", kd_weight=1.0, **SMALL), data)
    reference, _ = toy_step(create_method("kd", kd_weight=1.0, temperature=4.0), data)
    batch = toy_batch(data, method=plain.method)
    assert list(plain(batch, toy_clock()).terms) == ["ce", "crd"]
    terms = both(batch, toy_clock()).terms
    assert list(terms) == ["ce", "crd", "kd"]
    torch.testing.assert_close(terms["kd"], reference(batch, toy_clock()).terms["kd"])


def test_data_of_one_class_are_refused(data) -> None:
    method = create_method("crd")
    nets = toy_networks(method, data)
    labels = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(UserError, match="all training images are of one class"):
        method.setup(nets, DataSpec(data.info.num_classes, (3, 32, 32), labels, data.take, 1))
