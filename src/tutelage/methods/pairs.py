"""What student and teacher have in common position, for methods that compare the two."""

from __future__ import annotations

from torch import Tensor

from tutelage.methods.base import DataSpec, Needs, Networks, Outs, teacher_of
from tutelage.models.network import Ask, Network, Shapes, probe

STAGES = Needs(student=Ask(stages=True), teacher=Ask(stages=True))
"""Needs of a method that compares stages; `base.paired_stages` checks in `setup` that these pair."""

POOLED = Needs(student=Ask(pooled=True), teacher=Ask(pooled=True))
"""Needs of a method that compares the vectors before the last linear layer."""


def stage_pairs(outs: Outs) -> list[tuple[Tensor, Tensor]]:
    """(student, teacher) for each stage in order, `[B, C, H, W]` each."""
    return list(zip(outs.student.stages, teacher_of(outs).stages, strict=True))


def pooled_pair(outs: Outs) -> tuple[Tensor, Tensor]:
    """The pooled vectors of student `[B, D_s]` and teacher `[B, D_t]`."""
    student, teacher = outs.student.pooled, teacher_of(outs).pooled
    assert student is not None and teacher is not None
    return student, teacher


def pooled_widths(nets: Networks, data: DataSpec) -> tuple[int, int]:
    """D_s and D_t, the widths of `pooled_pair`."""
    assert nets.teacher is not None
    student, teacher = (probe(net, data.image_shape).pooled for net in (nets.student, nets.teacher))
    assert student is not None and teacher is not None
    return student[0], teacher[0]


def on_tokens(network: Network, shapes: Shapes) -> bool:
    """Whether the stages of ``network`` pass on tokens, or maps with the channels last, rather than maps."""
    taps = network.taps
    return taps.channels_last or taps.prefix_tokens > 0 or any(len(s) == 2 for s in shapes.inputs if s)
