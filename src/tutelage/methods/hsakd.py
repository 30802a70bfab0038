"""Hierarchical self-supervised augmented knowledge distillation: its teacher and its student."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.views import ROTATIONS
from tutelage.losses import kd_loss
from tutelage.methods.base import (
    Clock,
    Config,
    DataSpec,
    Needs,
    Networks,
    Outs,
    check_paired_branches,
    teacher_of,
)
from tutelage.methods.registry import register_method
from tutelage.methods.rotated import RotatedMethod, branch_kd
from tutelage.models.network import Ask, Role


class HSAKDTeacherConfig(Config):
    """Defaults of HSAKD's joint teacher ("Teacher*" in its tables)."""

    joint_weight: float = Field(1.0, ge=0, description="Weight of the branches' cross entropy.")
    frozen: bool = Field(
        False,
        description="Train the branches alone, on a backbone that keeps its weights and batch-norm "
        '("Teacher" without star).',
    )


@register_method(
    "hsakd_teacher",
    summary="a teacher whose branches tell class and rotation",
    source="Yang et al. 2021, arXiv 2107.13715",
)
class HSAKDTeacher(RotatedMethod):
    """L = w_ce CE(z, y) + w_joint sum_l CE(a_l, joint label); CE of z on upright rows, of a_l on all.

    Equation 1 of the paper; ``train_teacher_cifar.py``. On a frozen backbone the first term is a constant.
    """

    Config: ClassVar[type[Config]] = HSAKDTeacherConfig

    @property
    def needs(self) -> Needs:
        """Joint branches on the one network that is trained, or whose branches are."""
        role: Role = "branches" if self.config.frozen else "trained"
        return Needs(student_branches=ROTATIONS, student_role=role, teacher=None, views=ROTATIONS)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        return {
            "ce": self.config.ce_weight * self.upright_loss(batch, outs.student),
            "joint": self.config.joint_weight * self.joint_loss(batch, outs.student.branches),
        }


class HSAKDConfig(Config):
    """Defaults of HSAKD, with switches for the ablations of its paper."""

    kd_weight: float = Field(1.0, ge=0, description="Weight of the KL between the backbones.")
    branch_weight: float = Field(1.0, ge=0, description="Weight of the KL between the branches.")
    temperature: float = Field(3.0, gt=0, description="Softmax temperature T of both KL terms.")
    upright_kd: bool = Field(
        False, description="Compare the backbones on the upright rows alone, not on all rotations."
    )
    joint_labels: bool = Field(
        False,
        description="Give the student's branches the joint labels too (lowers accuracy in the paper); the "
        "term has the cross entropy's weight.",
    )
    branches: tuple[int, ...] = Field(
        (), description="Branches that both networks have, counted from 1 (the shallowest); empty: all."
    )

    @field_validator("branches")
    @classmethod
    def _counted_from_one(cls, chosen: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(chosen)) < len(chosen) or any(number < 1 for number in chosen):
            raise ValueError("Branches are counted from 1 and named once each")
        return chosen


@register_method(
    "hsakd",
    summary="KL between backbones and between joint branches, over four rotations",
    source="Yang et al. 2021, arXiv 2107.13715",
)
class HSAKD(RotatedMethod):
    """L = w_ce CE(z, y) + w_kd KL_T(z_t || z) + w_branch sum_l KL_T(a_l,t || a_l).

    CE on the upright rows, both KL terms on all rotations. The labels never reach the student's branches,
    unless ``joint_labels`` says so. Equations 2 to 5 of the paper; ``train_student_cifar.py``.
    """

    Config: ClassVar[type[Config]] = HSAKDConfig
    teacher_method = HSAKDTeacher.name

    @property
    def needs(self) -> Needs:
        """Joint branches of both networks."""
        ask = Ask(chosen=self.config.branches)
        return Needs(ask, ask, student_branches=ROTATIONS, teacher_branches=ROTATIONS, views=ROTATIONS)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Check that the branches have partners."""
        check_paired_branches(nets, self.name)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config, student, teacher = self.config, outs.student, teacher_of(outs)
        every = ROTATIONS if config.upright_kd else 1
        kd = kd_loss(student.logits[::every], teacher.logits[::every], config.temperature)
        branches = branch_kd(student.branches, teacher.branches, config.temperature)
        terms = {
            "ce": config.ce_weight * self.upright_loss(batch, student),
            "kd": config.kd_weight * kd,
            "branch_kd": config.branch_weight * branches,
        }
        if config.joint_labels:
            terms["joint"] = config.ce_weight * self.joint_loss(batch, student.branches)
        return terms
