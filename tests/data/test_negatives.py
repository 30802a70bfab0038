"""Negatives of other classes, and draws by weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data.class_table import ClassTable
from tutelage.data.negatives import alias_table, check_negatives, draw_negatives, draw_rows
from tutelage.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(rows: torch.Tensor, size: int) -> torch.Tensor:
    """How often each row was drawn, as a share."""
    return torch.bincount(rows.flatten(), minlength=size).double() / rows.numel()


def test_the_table_lists_the_rows_of_each_class() -> None:
    table = ClassTable.of(torch.tensor([2, 0, 2, 3, 0, 2]), 5)
    parts = [
        table.rows[start : start + size].tolist()
        for start, size in zip(table.starts.tolist(), table.sizes.tolist(), strict=True)
    ]
    assert parts == [[1, 4], [], [0, 2, 5], [3], []]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(0, 2**31))
def test_negatives_are_of_other_classes_whatever_the_sizes(labels: list[int], seed: int) -> None:
    classes = torch.tensor(labels)
    table = ClassTable.of(classes, 5)
    if len(set(labels)) < 2:
        with pytest.raises(UserError, match="all training images are of one class"):
            check_negatives(table)
        return
    check_negatives(table)
    drawn = draw_negatives(classes, table, 7, seeded(seed))
    assert drawn.shape == (len(labels), 7) and drawn.dtype == torch.int64
    assert (classes[drawn] != classes.unsqueeze(1)).all()


def test_negatives_are_uniform_over_the_other_classes() -> None:
    labels = torch.tensor([1, 0, 2, 1, 1, 0, 2, 2, 2, 0])
    table = ClassTable.of(labels, 3)
    drawn = draw_negatives(torch.tensor([0, 1, 2]), table, 60_000, seeded())
    for anchor in range(3):
        allowed = labels != anchor
        expected = allowed.double() / allowed.sum()
        assert (shares(drawn[anchor], len(labels)) - expected).abs().max() < 0.01


def test_anchors_and_seeds_are_independent_and_a_seed_repeats() -> None:
    labels = torch.arange(40) % 4
    table = ClassTable.of(labels, 4)
    anchors = torch.zeros(2, dtype=torch.int64)
    first = draw_negatives(anchors, table, 50, seeded(1))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, draw_negatives(anchors, table, 50, seeded(1)))
    assert not torch.equal(first, draw_negatives(anchors, table, 50, seeded(2)))


def test_a_row_may_come_twice() -> None:
    table = ClassTable.of(torch.tensor([0, 1, 1]), 2)
    assert draw_negatives(torch.tensor([0]), table, 9, seeded()).unique().tolist() == [1, 2]


@pytest.mark.parametrize("weights", [[1.0, 2.0, 3.0, 4.0], [0.0, 5.0, 0.5], [2.0], [0.1, 0.1, 0.1, 0.7, 0.0]])
def test_an_alias_table_holds_the_weights_and_draws_by_them(weights: list[float]) -> None:
    table = alias_table(weights)
    size = len(weights)
    held = table.keep.double().clone()
    held.index_add_(0, table.other, 1 - table.keep.double())
    target = torch.tensor(weights).double() / sum(weights)
    torch.testing.assert_close(held / size, target, rtol=0, atol=1e-7)
    drawn = draw_rows(table, (40, 3000), seeded())
    assert drawn.shape == (40, 3000)
    assert (shares(drawn, size) - target).abs().max() < 0.006
    assert torch.equal(drawn, draw_rows(table, (40, 3000), seeded()))


def test_equal_weights_leave_nothing_to_the_alias() -> None:
    assert (alias_table(torch.full((50,), 0.3)).keep == 1).all()


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], []])
def test_weights_that_say_nothing_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights to draw by"):
        alias_table(weights)
