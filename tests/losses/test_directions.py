"""Vectors of unit length, and the losses that are made of them where there is nothing to scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tutelage.losses import (
    attended_loss,
    attention_loss,
    cka_loss,
    nst_loss,
    rkd_angle_loss,
    similarity_loss,
)
from tutelage.losses.directions import directions

Loss = Callable[[Tensor, Tensor], Tensor]


def attended(student: Tensor, teacher: Tensor) -> Tensor:
    return attended_loss([student], [teacher], student.new_ones(len(student), 1, 1))


LOSSES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "similarity": (similarity_loss, (5, 6)),
    "angle": (rkd_angle_loss, (5, 6)),
    "cka": (cka_loss, (5, 2, 6)),
    "attention": (attention_loss, (5, 3, 4, 4)),
    "attention, odd": (lambda student, teacher: attention_loss(student, teacher, p=1), (5, 3, 4, 4)),
    "attended": (attended, (5, 3, 4, 4)),
    "nst": (nst_loss, (5, 3, 4, 4)),
}


def test_lengths_are_one() -> None:
    vectors = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(directions(vectors, 1), vectors / (vectors**2).sum(1, keepdim=True).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-30])
def test_nothing_has_no_direction(length: float, dtype: torch.dtype) -> None:
    vectors = torch.full((2, 3), length, dtype=dtype, requires_grad=True)
    scaled = directions(vectors, 1)
    assert not scaled.any()
    (gradient,) = torch.autograd.grad(scaled.sum(), vectors)
    assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_of_zeros_leaves_gradients_of_ordinary_size(name: str) -> None:
    loss, shape = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, *shape, generator=generator)
    student[0] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 10
