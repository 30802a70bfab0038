"""Few-shot subsets and validation splits."""

from __future__ import annotations

import hashlib

import pytest
import torch

from tutelage.data import few_shot_indices, few_shot_split, validation_split
from tutelage.errors import UserError

CIFAR_LIKE = torch.arange(50000) % 100


@pytest.mark.parametrize(
    ("ratio", "count", "md5"),
    [
        (0.25, 12500, "8d6dec2dda55b1e3a30167dfea7d3493"),
        (0.50, 25000, "928a06aedb09a9ea120fa7eccb28acb8"),
        (0.75, 37500, "7e792698133f3cbb4c2b01b21c2e188a"),
    ],
)
def test_published_subsets(ratio: float, count: int, md5: str) -> None:
    rows = few_shot_indices(CIFAR_LIKE, ratio)
    assert rows.dtype == torch.int64
    assert hashlib.md5(rows.numpy().astype("<i8").tobytes(), usedforsecurity=False).hexdigest() == md5
    assert CIFAR_LIKE[rows].bincount().tolist() == [count // 100] * 100


def test_first_rows_of_a_quarter() -> None:
    first = few_shot_indices(CIFAR_LIKE, 0.25)[:8]
    assert first.tolist() == [16719, 27754, 17514, 2748, 11967, 25343, 23742, 32582]


def test_seventy_percent_is_ragged_as_published() -> None:
    counts = CIFAR_LIKE[few_shot_indices(CIFAR_LIKE, 0.7)].bincount()
    assert counts.sum() == 34999
    assert sorted(counts.tolist()) == [349] + [350] * 99


def test_kept_and_rest_make_the_whole() -> None:
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    kept, rest = few_shot_split(labels, 0.5, seed=4)
    assert sorted([*kept.tolist(), *rest.tolist()]) == list(range(12))
    assert not torch.equal(kept, few_shot_split(labels, 0.5, seed=5)[0])


def test_ratio_one_keeps_everything_in_order() -> None:
    assert few_shot_indices([1, 0, 1], 1.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan")])
def test_impossible_few_shot_ratios(ratio: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        few_shot_indices(CIFAR_LIKE, ratio)


@pytest.mark.parametrize(
    ("labels", "ratio", "sentence"),
    [
        ([0, 0, 0, 1], 0.5, "each class needs 2"),
        (list(range(10)) * 4, 0.1, "into 4 and 36"),
        (list(range(10)) * 4, 0.9, "into 36 and 4"),
        ([0] * 98 + [1] * 2, 0.05, "no image of class 1 to train on"),
        ([], 0.5, "class numbers"),
        ([[0, 1]], 0.5, "class numbers"),
        ([0.5, 1.5], 0.5, "class numbers"),
    ],
)
def test_too_few_images_of_a_class(labels: list[int], ratio: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        few_shot_indices(labels, ratio)


def test_validation_split_is_stratified_sorted_and_repeatable() -> None:
    labels = torch.arange(1000) % 10
    train, val = validation_split(labels, 0.1)
    assert labels[val].bincount().tolist() == [10] * 10
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(1000))
    for rows in (train, val):
        assert torch.equal(rows, rows.sort().values)
    assert torch.equal(val, validation_split(labels, 0.1)[1])
    assert not torch.equal(val, validation_split(labels, 0.1, seed=1)[1])


def test_no_validation() -> None:
    train, val = validation_split([0, 1, 0], 0)
    assert train.tolist() == [0, 1, 2] and val.tolist() == []


@pytest.mark.parametrize("fraction", [-0.1, 1, 2])
def test_impossible_validation_fractions(fraction: float) -> None:
    with pytest.raises(UserError, match="at least 0 and below 1"):
        validation_split([0, 1] * 10, fraction)


def test_validation_without_an_image_of_a_class() -> None:
    with pytest.raises(UserError, match="no image of class 1"):
        validation_split([0] * 98 + [1] * 2, 0.05)
