"""Knowledge review: deep student features help to explain the teacher's shallow ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses import hcl_loss
from tutelage.methods.base import (
    Clock,
    Config,
    DataSpec,
    Method,
    Needs,
    Networks,
    Outs,
    teacher_of,
)
from tutelage.methods.pairs import partners
from tutelage.methods.ramps import ramp
from tutelage.methods.registry import register_method
from tutelage.models.network import Ask, Outputs, Shapes, probe

T = TypeVar("T")


class ReviewKDConfig(Config):
    """Defaults of mdistiller's CIFAR-100 configuration; the weight differs by pair (0.6 to 8)."""

    review_weight: float = Field(1.0, ge=0, description="Weight of the sum over levels.")
    warmup_epochs: float = Field(
        20.0, ge=0, description="Epochs over which that weight ramps up linearly; 0 for no ramp."
    )
    max_hidden: int = Field(
        512, ge=1, description="Levels are fused in the width of the student's last one, at most in this one."
    )
    teacher_preact: bool = Field(
        True,
        description="Take the teacher's stages before their activation, where it tells them (the zoo); the "
        "stages of others are taken as they end, most of them without an activation anyway.",
    )
    student_preact: bool = Field(False, description="The same of the student's stages.")


class Fusion(nn.Module):
    """Attention-based fusion of one level with what the deeper levels left.

    The level goes through a 1x1 convolution with batch norm; the deeper levels' residual, nearest-resized to
    its size, is mixed in by two attention maps in (0, 1), a sigmoid of a 1x1 convolution of both. The
    mixture, nearest-resized to the teacher's size, is the residual for the next level, and a 3x3 convolution
    with batch norm makes this level's answer of it. The state dict's keys are those of mdistiller's ABF.

    Args:
        student: Channels C_s of the level.
        hidden: Channels M of the residual.
        teacher_shape: `[C_t, H_t, W_t]` of the answer.
        fuse: False for the deepest level, which has no residual to mix in.
    """

    def __init__(self, student: int, hidden: int, teacher_shape: Sequence[int], fuse: bool) -> None:
        super().__init__()
        teacher, *sides = teacher_shape
        self.conv1 = _conv_norm(student, hidden, 1)
        self.conv2 = _conv_norm(hidden, teacher, 3)
        self.att_conv = nn.Sequential(nn.Conv2d(2 * hidden, 2, 1), nn.Sigmoid()) if fuse else None
        self.sides = tuple(sides)

    def forward(self, features: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse `[B, C_s, H, W]` with a residual `[B, M, ., .]`.

        Returns:
            The answer `[B, C_t, H_t, W_t]` and the next residual `[B, M, H_t, W_t]`.
        """
        mixture = self.conv1(features)
        if self.att_conv is not None and residual is not None:
            residual = F.interpolate(residual, mixture.shape[2:])
            shares = self.att_conv(torch.cat([mixture, residual], dim=1))
            mixture = mixture * shares[:, :1] + residual * shares[:, 1:]
        if mixture.shape[2:] != self.sides:
            mixture = F.interpolate(mixture, self.sides)
        return self.conv2(mixture), mixture


@register_method(
    "reviewkd",
    summary="fuse levels from deep to shallow and match the teacher's",
    source="Chen et al. 2021, arXiv 2104.09044",
)
class ReviewKD(Method):
    """L = w_ce CE + g w_r sum over levels of HCL(fused F_s, F_t), with g = min((epoch + 1) / warmup, 1).

    The levels are the stages, paired as `pairs.partners` says, and the pooled vector as a 1 x 1 map; HCL is
    `hcl_loss`. The fusions are trained with the student. Batches need two samples or more, for the pooled
    level's batch norm. The ramp counts epochs from 1, as mdistiller does; that one's configured sizes of the
    maps are measured here.
    """

    Config: ClassVar[type[Config]] = ReviewKDConfig

    @property
    def needs(self) -> Needs:
        """Stages and pooled features of both networks."""
        student, teacher = (
            Ask(pooled=True, stages=True, preact="if told" if wanted else False)
            for wanted in (self.config.student_preact, self.config.teacher_preact)
        )
        return Needs(student, teacher)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build a fusion a level."""
        assert nets.teacher is not None
        students, teachers = _paired(
            *(_level_shapes(probe(net, data.image_shape)) for net in (nets.student, nets.teacher))
        )
        hidden = min(self.config.max_hidden, students[-1][0])
        last = len(students) - 1
        self.fusions = nn.ModuleList(
            Fusion(student[0], hidden, teacher, fuse=level < last)
            for level, (student, teacher) in enumerate(zip(students, teachers, strict=True))
        )

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config = self.config
        levels = _paired(_levels(outs.student), _levels(teacher_of(outs)))
        total = torch.stack(self.review(*levels)).sum()
        weight = ramp(clock, config.warmup_epochs) * config.review_weight
        return {"ce": self.supervised(batch, outs.student), "review": weight * total}

    def review(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[Tensor]:
        """The loss of each level, deepest first, for maps given from shallow to deep."""
        losses, residual = [], None
        for level in reversed(range(len(self.fusions))):
            answer, residual = self.fusions[level](students[level], residual)
            losses.append(hcl_loss(answer, teachers[level]))
        return losses


def _levels(out: Outputs) -> list[Tensor]:
    """The stages and the pooled vector as maps."""
    assert out.pooled is not None
    return [*out.stages, out.pooled[:, :, None, None]]


def _level_shapes(shapes: Shapes) -> list[tuple[int, ...]]:
    """`[C, H, W]` of what `_levels` gives."""
    assert shapes.pooled is not None
    return [*shapes.stages, (*shapes.pooled, 1, 1)]


def _paired(students: Sequence[T], teachers: Sequence[T]) -> tuple[list[T], list[T]]:
    """Those levels of both networks that have partners; the pooled vectors, the last ones, have."""
    chosen = partners(len(students) - 1, len(teachers) - 1)
    ours, theirs = zip(*((students[i], teachers[j]) for i, j in chosen), strict=True)
    return [*ours, students[-1]], [*theirs, teachers[-1]]


def _conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
