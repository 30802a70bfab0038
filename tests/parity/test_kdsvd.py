"""KDSVD's losses and gradients against the official implementation, whatever signs the SVD gives.

The reference leaves the sides of the teacher's singular vectors to its linear algebra library. They are found
again here: of all choices for a sample, the one whose gradient is the noted one.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.golden import Case, arrays, cases, check_all
from tutelage.losses import kdsvd_losses

METHODS = {"KDSVD"}
CASES = [case for case in cases("loss") if case["method"] in METHODS]
SVD = torch.linalg.svd


class Answer(NamedTuple):
    """The losses of one sample `[L - 1]` and the gradients of their sum in the student's maps."""

    losses: Tensor
    gradients: tuple[Tensor, ...]


def answer(students: list[Tensor], teachers: list[Tensor], signs: np.ndarray) -> Answer:
    """For maps of one sample, with the teacher's vectors turned by ``signs`` `[L, k]`."""
    of_each_call = iter(np.repeat(signs, 2, axis=0))  # the student's vectors follow the teacher's anyway

    def turned(matrices: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
        left, values, rows = SVD(matrices, full_matrices=full_matrices)
        rows[:, : signs.shape[1]] *= torch.tensor(next(of_each_call))[:, None]
        return left, values, rows

    students = [maps.requires_grad_() for maps in students]
    with mock.patch("torch.linalg.svd", turned):
        losses = kdsvd_losses(students, teachers, signs.shape[1], fixed_signs=False)
    return Answer(losses.detach(), torch.autograd.grad(losses.sum(), students))


def distance(gradients: tuple[Tensor, ...], noted: list[np.ndarray]) -> float:
    return sum(np.square(got.numpy() - array).sum() for got, array in zip(gradients, noted, strict=True))


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_values_and_gradients(case: Case, precision: str) -> None:
    expected = arrays(case)
    layers = range(sum(name.startswith("in.f_s") for name in expected))
    students, teachers = (
        [torch.from_numpy(expected[f"in.f_{side}{layer}"]).to(getattr(torch, precision)) for layer in layers]
        for side in "st"
    )
    batch, components = len(students[0]), case["hyper"]["k"]
    signs = itertools.product((1.0, -1.0), repeat=len(layers) * components)
    choices = [np.array(choice, dtype=precision).reshape(len(layers), components) for choice in signs]
    table = torch.zeros(len(choices), len(layers) - 1, dtype=students[0].dtype)
    gradients = []
    for row in range(batch):
        sample = slice(row, row + 1)
        one = [[maps[sample].clone() for maps in side] for side in (students, teachers)]
        answers = [answer(*one, choice) for choice in choices]
        noted = [batch * expected[f"grad.f_s{layer}"][sample] for layer in layers]
        found = min(range(len(choices)), key=lambda i: distance(answers[i].gradients, noted))
        gradients.append(answers[found].gradients)
        # A choice's bits are its signs, so this turns what was found by every choice in turn.
        table += torch.stack([answers[found ^ turn].losses for turn in range(len(choices))]) / batch
    got = {"out.losses": table[0], "out.loss": table[0].sum(), "out.losses_all_sign_choices": table}
    got |= {f"grad.f_s{i}": torch.cat(parts) / batch for i, parts in enumerate(zip(*gradients, strict=True))}
    check_all(case, expected, got, precision)
