"""Counting the hits of branches, against loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutelage.training.metrics import branch_correct


@pytest.mark.parametrize("rotations", [1, 4])
def test_joint_and_collapsed_hits(rotations: int) -> None:
    random, images, classes, branches = np.random.RandomState(0), 6, 3, 2
    logits = random.standard_normal((branches, rotations * images, rotations * classes))
    targets = random.randint(classes, size=images)
    joint, collapsed = np.zeros((branches, 2), int), np.zeros((branches, 2), int)
    for branch in range(branches):
        for row, scores in enumerate(logits[branch]):
            label, turn = targets[row // rotations], row % rotations
            sums = [scores[rotations * c : rotations * c + rotations].sum() for c in range(classes)]
            for place, k in enumerate((1, 2)):
                joint[branch, place] += label * rotations + turn in np.argsort(-scores)[:k]
                collapsed[branch, place] += label in np.argsort(sums)[::-1][:k]
    got = branch_correct(torch.from_numpy(logits).unbind(), torch.from_numpy(targets), rotations, ks=(1, 2))
    assert got.joint.tolist() == joint.tolist()
    assert got.classes.tolist() == collapsed.tolist()
    assert joint.max() <= rotations * images and (rotations > 1 or (joint == collapsed).all())
