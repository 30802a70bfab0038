"""What holds for every exported loss: right gradients, compiled whole, blind to the order of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tutelage import losses
from tutelage.losses import (
    attended_loss,
    attention_loss,
    attention_map,
    binary_cross_entropy,
    bkd_loss,
    boundary_loss,
    ced_loss,
    ced_terms,
    cka_loss,
    congruence_loss,
    contrast_loss,
    cross_entropy,
    dist_loss,
    dist_terms,
    dkd_loss,
    dkd_terms,
    factor_loss,
    flow_loss,
    flow_matrix,
    hcl_loss,
    hint_loss,
    kd_loss,
    kdsvd_losses,
    log_normaliser,
    nst_loss,
    ofa_loss,
    packd_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_loss,
    vid_loss,
)

LABELS = torch.tensor([0, 2, 1, 4])
ACTIVE = torch.tensor([[0.5, -0.2, 0.0]]).double().expand(4, 3)
SOFT_LABELS = torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1]]).double().expand(4, 5)


class Sample(NamedTuple):
    """A loss of the student's and the teacher's tensor, and the shapes of these."""

    loss: Callable[[Tensor, Tensor], Tensor]
    student: tuple[int, ...]
    teacher: tuple[int, ...]


SAMPLES = {
    "cross_entropy": Sample(lambda s, t: cross_entropy(s, t.softmax(1), 0.1), (4, 5), (4, 5)),
    "cross_entropy, labels": Sample(lambda s, t: cross_entropy(s + t, LABELS, 0.1), (4, 5), (4, 5)),
    "binary_cross_entropy": Sample(lambda s, t: binary_cross_entropy(s, t.softmax(1), 0.1), (4, 5), (4, 5)),
    "binary_cross_entropy, labels": Sample(
        lambda s, t: binary_cross_entropy(s + t, LABELS, 0.1), (4, 5), (4, 5)
    ),
    "kd_loss": Sample(lambda s, t: kd_loss(s, t, 4.0), (4, 5), (4, 5)),
    "bkd_loss": Sample(bkd_loss, (4, 5), (4, 5)),
    "dkd_terms": Sample(lambda s, t: torch.stack(dkd_terms(s, t, LABELS, 4.0)), (4, 5), (4, 5)),
    "dkd_loss": Sample(lambda s, t: dkd_loss(s, t, SOFT_LABELS, 1.0, 8.0, 4.0), (4, 5), (4, 5)),
    "dist_terms": Sample(lambda s, t: torch.stack(dist_terms(s, t, 4.0)), (4, 5), (4, 5)),
    "dist_loss": Sample(lambda s, t: dist_loss(s, t, 2.0, 3.0, 4.0), (4, 5), (4, 5)),
    # NCKD and the agreement keep gradients back on purpose; tests/losses/test_dpcd.py has them.
    "ced_terms": Sample(lambda s, t: ced_terms(s, t, LABELS)[0], (4, 5), (4, 5)),
    "ced_loss": Sample(lambda s, t: ced_loss(s, t, SOFT_LABELS, alpha=2.0, beta=0.0), (4, 5), (4, 5)),
    "ofa_loss": Sample(lambda s, t: ofa_loss(s, t, LABELS, 1.5, 2.0), (4, 5), (4, 5)),
    "ofa_loss, paper": Sample(lambda s, t: ofa_loss(s, t, LABELS, 1.5, form="paper"), (4, 5), (4, 5)),
    "hint_loss": Sample(hint_loss, (2, 3, 2, 2), (2, 3, 2, 2)),
    "attention_map": Sample(lambda s, t: attention_map(s + t), (2, 3, 2, 2), (2, 3, 2, 2)),
    "attention_loss": Sample(attention_loss, (2, 3, 4, 4), (2, 2, 2, 2)),
    "attention_loss, odd sides": Sample(attention_loss, (2, 3, 3, 3), (2, 2, 5, 2)),
    "attended_loss": Sample(
        lambda s, t: attended_loss([s, s.exp()], [t], t.flatten(1)[:, :2].softmax(1).unsqueeze(1)),
        (4, 3, 3, 3),
        (4, 2, 2, 2),
    ),
    "cka_loss": Sample(cka_loss, (4, 2, 3), (4, 2, 5)),
    "cka_loss, joint": Sample(lambda s, t: cka_loss(s, t, joint=True), (4, 2, 3), (4, 2, 5)),
    "similarity_loss": Sample(similarity_loss, (3, 2, 2, 2), (3, 5)),
    "rkd_distance_loss": Sample(rkd_distance_loss, (4, 3), (4, 5)),
    "rkd_angle_loss": Sample(rkd_angle_loss, (4, 3), (4, 5)),
    "rkd_loss": Sample(rkd_loss, (4, 3), (4, 5)),
    "congruence_loss": Sample(congruence_loss, (4, 3), (4, 3)),
    # The plan keeps gradients back; with one positive it is constant.
    "packd_loss": Sample(lambda s, t: packd_loss(s, t, 0.1 * s.flatten(1)), (4, 1, 3), (4, 1, 3)),
    "pkt_loss": Sample(pkt_loss, (4, 3), (4, 5)),
    "nst_loss": Sample(nst_loss, (2, 3, 4, 4), (2, 2, 2, 2)),
    "vid_loss": Sample(lambda s, t: vid_loss(s, t, s.exp().mean((0, 2, 3))), (2, 3, 2, 2), (2, 3, 2, 2)),
    "hcl_loss": Sample(hcl_loss, (2, 2, 5, 5), (2, 2, 5, 5)),
    "kdsvd_losses": Sample(
        lambda s, t: kdsvd_losses([s, s.square()], [t, t.square()], 2), (2, 4, 3, 2), (2, 4, 3, 3)
    ),
    "boundary_loss": Sample(lambda s, t: boundary_loss(s + t, ACTIVE), (4, 3), (4, 3)),
    "factor_loss": Sample(factor_loss, (2, 3, 4, 4), (2, 2, 2, 2)),
    "flow_matrix": Sample(lambda s, t: flow_matrix(s, t).square().sum(), (2, 3, 4, 4), (2, 2, 2, 2)),
    "flow_loss": Sample(lambda s, t: flow_loss([s, s[:, :2]], [t, t[:, :2]]), (2, 3, 2, 2), (2, 3, 2, 2)),
    "contrast_loss": Sample(lambda s, t: contrast_loss(s + t, 30), (4, 5), (4, 5)),
    "log_normaliser": Sample(lambda s, t: log_normaliser(s + t, 30), (4, 5), (4, 5)),
}
every_loss = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def inputs(sample: Sample, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in (sample.student, sample.teacher)
    )
    return student, teacher


def test_every_export_has_a_sample() -> None:
    assert {name.partition(",")[0] for name in SAMPLES} == set(losses.__all__)


@every_loss
def test_gradients_in_student_and_teacher(sample: Sample) -> None:
    assert torch.autograd.gradcheck(sample.loss, inputs(sample))


@every_loss
def test_compiles_whole(sample: Sample) -> None:
    torch.compiler.reset()
    student, teacher = inputs(sample)
    compiled = torch.compile(sample.loss, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for loss in (sample.loss, compiled):
        value = loss(student, teacher)
        results.append((value, *torch.autograd.grad(value.sum(), (student, teacher))))
    torch.testing.assert_close(results[1], results[0])


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(sample: Sample, dtype: torch.dtype) -> None:
    value = sample.loss(*inputs(sample, dtype))
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), sample.loss(*inputs(sample)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SAMPLES if "map" not in name])
def test_the_order_of_the_batch_is_irrelevant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SAMPLES[name]
    student, teacher = inputs(sample)
    before = sample.loss(student, teacher)
    monkeypatch.setitem(globals(), "LABELS", LABELS.flip(0))
    torch.testing.assert_close(sample.loss(student.flip(0), teacher.flip(0)), before)
