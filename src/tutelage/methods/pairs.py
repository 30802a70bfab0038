"""What student and teacher have in common position, for methods that compare the two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tutelage.errors import UserError
from tutelage.methods.base import DataSpec, Needs, Networks, Outs, teacher_of
from tutelage.methods.projectors import Form
from tutelage.models.network import Ask, Network, Shapes, probe

STAGES = Needs(student=Ask(stages=True), teacher=Ask(stages=True))
"""Needs of a method that compares stages, see `partners`."""

POOLED = Needs(student=Ask(pooled=True), teacher=Ask(pooled=True))
"""Needs of a method that compares the vectors before the last linear layer."""


def partners(student: int, teacher: int) -> list[tuple[int, int]]:
    """Which of the student's stages goes with which of the teacher's, as positions from 0.

    Equal counts pair one to one. Otherwise every stage of the network with fewer goes with that one of the
    other's which ends at the same share of its depth or next behind it: of 3 and 4 stages the first with the
    second, the second with the third, the last with the last.

    Args:
        student: How many stages the student has.
        teacher: How many the teacher has.
    """
    fewer = min(student, teacher)

    def place(number: int, count: int) -> int:
        return math.ceil(number * count / fewer) - 1

    return [(place(number, student), place(number, teacher)) for number in range(1, fewer + 1)]


def stage_pairs(outs: Outs) -> list[tuple[Tensor, Tensor]]:
    """(student, teacher) for each pair of stages in order, `[B, C, H, W]` each."""
    students, teachers = outs.student.stages, teacher_of(outs).stages
    return [(students[i], teachers[j]) for i, j in partners(len(students), len(teachers))]


def form_pairs(nets: Networks, data: DataSpec) -> list[tuple[Form, Form]]:
    """What the stages of `stage_pairs` are."""
    assert nets.teacher is not None
    students, teachers = (stage_forms(net, data) for net in (nets.student, nets.teacher))
    return [(students[i], teachers[j]) for i, j in partners(len(students), len(teachers))]


def stage_forms(network: Network, data: DataSpec) -> list[Form]:
    """What the stages that ``network`` hands over are, class tokens left out."""
    shapes = probe(network, data.image_shape)
    tokens = on_tokens(network, shapes)
    return [
        Form(channels, height, width, tokens)
        for channels, height, width in shapes.stages[: len(network.taps.stages)]
    ]


def chosen_pairs(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    """Positions from 0 of the pairs that ``method.stages`` names from 1, in its order; all for none named.

    Raises:
        UserError: A number is above ``count``.
    """
    if max(numbers, default=1) > count:
        raise UserError(
            f"method.stages names stage {max(numbers)}, but there are {count} pairs of stages; choose among "
            f"1 to {count}"
        )
    return tuple(number - 1 for number in numbers) or tuple(range(count))


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
