"""Counting hits, against a sort in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.training.metrics import topk_correct


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 8), st.sampled_from([2, 5, 10**6]))
def test_counts_like_a_stable_sort(seed: int, batch: int, classes: int, levels: int) -> None:
    """``levels`` few makes many ties: equal logits rank by class index."""
    random = np.random.RandomState(seed)
    logits = random.randint(levels, size=(batch, classes)).astype(np.float32)
    targets = random.randint(classes, size=batch)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [sum(targets[b] in order[b, :k] for b in range(batch)) for k in (1, 5, 3)]
    got = topk_correct(torch.from_numpy(logits), torch.from_numpy(targets), ks=(1, 5, 3))
    assert got.dtype == torch.int64
    assert got.tolist() == expected


def test_an_undecided_network_earns_its_share() -> None:
    assert topk_correct(torch.zeros(20, 10), torch.arange(20) % 10).tolist() == [2, 10]


@pytest.mark.parametrize("classes", [2, 10])
def test_nan_is_never_a_hit(classes: int) -> None:
    targets = torch.arange(20) % classes
    assert topk_correct(torch.full((20, classes), float("nan")), targets).tolist() == [0, 0]
    logits = torch.nn.functional.one_hot(targets, classes).float()
    logits[torch.arange(20), (targets + 1) % classes] = float("nan")
    assert topk_correct(logits, targets, ks=(1, 2)).tolist() == [0, 20]


def test_soft_labels_count_by_their_largest() -> None:
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.4, 0.5]])
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]])
    assert topk_correct(logits, soft, ks=(1, 2)).tolist() == [1, 2]


def test_compiles_whole() -> None:
    logits, targets = torch.randn(6, 10), torch.arange(6)
    compiled = torch.compile(topk_correct, backend="aot_eager", fullgraph=True)
    assert compiled(logits, targets).tolist() == topk_correct(logits, targets).tolist()
