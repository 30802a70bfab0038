"""Choice of few-shot subsets and normalisation constants against those of the research code."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import pytest
import torch

from parity.golden import arrays, cases, check
from tutelage.data import (
    CIFAR100_NORMALISATION,
    CIFAR100_OFA_NORMALISATION,
    IMAGENET_NORMALISATION,
    STL10_NORMALISATION,
    few_shot_split,
)

METHODS = {"few-shot selection", "normalisation constants"}
FEW_SHOT = [case for case in cases("data") if case["method"] == "few-shot selection"]
NORMALISATION = [case for case in cases("data") if case["method"] == "normalisation constants"]

# Linear evaluation has two data sets: 0 is STL-10, 1 TinyImageNet, which takes ImageNet's constants.
CONSTANTS = (
    (r"(PAT|OFAKD)_cifar", CIFAR100_OFA_NORMALISATION),
    (r"(HSAKD|DPCD|PACKD|RepDistiller|mdistiller)_cifar", CIFAR100_NORMALISATION),
    (r"\w+_imagenet", IMAGENET_NORMALISATION),
    (r"\w+_linear_eval_STL10_TinyImageNet\.0", STL10_NORMALISATION),
    (r"\w+_linear_eval_STL10_TinyImageNet\.1", IMAGENET_NORMALISATION),
)


def labels_of(case: dict[str, Any], given: dict[str, np.ndarray]) -> torch.Tensor:
    """Labels stored with the case, or made by its formula ``label_i = i mod C``."""
    if "in.labels" in given:
        return torch.from_numpy(given["in.labels"])
    formula = re.fullmatch(r"label_i = i mod (\d+)", case["formula"])
    assert formula, f"{case['id']}: the labels' formula {case['formula']!r} is not known to this test"
    return torch.arange(case["hyper"]["n"]) % int(formula[1])


@pytest.mark.parametrize("case", FEW_SHOT, ids=lambda case: case["id"])
def test_few_shot_selection(case: dict[str, Any]) -> None:
    given = arrays(case)
    labels = labels_of(case, given)
    kept, rest = few_shot_split(labels, case["hyper"]["few_ratio"], case["hyper"]["random_state"])
    digest = hashlib.sha256(kept.numpy().astype("<i8").tobytes()).digest()
    got = {
        "out.train_indices": kept,
        "out.valid_indices": rest,
        "out.train_count_per_class": labels[kept].bincount(minlength=int(labels.max()) + 1),
        "out.first64": kept[:64],
        "out.last64": kept[-64:],
        "out.count": torch.tensor(len(kept)),
        "out.sum": kept.sum(),
        "out.sha256": np.frombuffer(digest, np.uint8),
    }
    for name, expected in given.items():
        if name.startswith("out."):
            check(name, got[name], expected, case)


@pytest.mark.parametrize("case", NORMALISATION, ids=lambda case: case["id"])
def test_normalisation_constants(case: dict[str, Any]) -> None:
    for name, expected in arrays(case).items():
        project, _, statistic = name.removeprefix("out.").rpartition(".")
        known = [constants for pattern, constants in CONSTANTS if re.fullmatch(pattern, project)]
        assert len(known) == 1, f"{case['id']}: {name} is of no project known to this test"
        check(name, np.array(getattr(known[0], statistic)), expected, case)
