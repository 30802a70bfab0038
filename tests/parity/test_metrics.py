"""Accuracy against the numbers of the research scripts."""

from __future__ import annotations

import re

import pytest
import torch

from parity.golden import Case, arrays, cases, check_all
from tutelage.training.metrics import topk_correct

METHODS = {"top-k accuracy"}
CASES = [case for case in cases("metric") if case["method"] in METHODS]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_topk(case: Case, precision: str) -> None:
    expected = arrays(case)
    logits = torch.from_numpy(expected["in.logits"]).to(getattr(torch, precision))
    targets = torch.from_numpy(expected["in.target"])
    ks = [int(match[1]) for name in expected if (match := re.fullmatch(r"out\.top(\d+)_percent", name))]
    # The reference counts in float32, whose rounding is larger than the tolerance.
    percent = topk_correct(logits, targets, ks).float() * (100.0 / len(targets))
    check_all(case, expected, {f"out.top{k}_percent": percent[[i]] for i, k in enumerate(ks)}, precision)
