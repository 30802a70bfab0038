"""Dual-path collaborative distillation: its teacher and its student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import ced_loss, dkd_terms
from tutelage.losses.dpcd import DynamicWeights, dynamic_weights, true_class_confidence
from tutelage.methods.base import Clock, Config, Method, Needs, Outs, teacher_of
from tutelage.methods.confidence import ConfidenceHistory, Confidences, ConfidenceSchedule
from tutelage.methods.registry import register_method
from tutelage.models.network import Role

UNPUBLISHED = "DPCD, github.com/wsh081/DPCD (no paper)"


class SupervisedBranches(Method):
    """What teacher and student share: the labels reach the backbone and every branch."""

    def branch_loss(self, batch: Batch, branches: Sequence[Tensor]) -> Tensor:
        """`label_loss`, summed over ``branches``: a scalar."""
        return torch.stack([self.label_loss(branch, batch.targets) for branch in branches]).sum()


class DPCDTeacherConfig(Config):
    """Defaults of DPCD's teacher, trained jointly with its branches."""

    branch_weight: float = Field(1.0, ge=0, description="Weight of the branches' cross entropy.")
    frozen: bool = Field(
        False, description="Train the branches alone, on a backbone that keeps its weights and batch-norm."
    )


@register_method("dpcd_teacher", summary="a teacher with supervised branches", source=UNPUBLISHED)
class DPCDTeacher(SupervisedBranches):
    """L = w_ce CE(z, y) + w_branch sum_l CE(a_l, y); ``dpcd/train_teacher_cifar.py``."""

    Config: ClassVar[type[Config]] = DPCDTeacherConfig

    @property
    def needs(self) -> Needs:
        """Class branches on the one network that is trained, or whose branches are."""
        role: Role = "branches" if self.config.frozen else "trained"
        return Needs(student_branches=1, student_role=role, teacher=None)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        return {
            "ce": self.supervised(batch, outs.student),
            "branch_ce": self.config.branch_weight * self.branch_loss(batch, outs.student.branches),
        }


class DPCDConfig(Config):
    """Defaults of DPCD's CIFAR script.

    ImageNet: ``temperature`` 1, ``base_beta`` 0.5, ``beta_range`` 0.4 to 1, ``ced_beta`` 2,
    ``warmup_epochs`` 0, ``history_size`` 20000, ``threshold_steps`` 20000 and 50000, ``sensitivity_steps``
    100000. On CIFAR the author changed ``base_beta`` and ``beta_range`` by pair.
    """

    branch_weight: float = Field(1.0, ge=0, description="Weight of the branches' cross entropy.")
    dynamic_weight: float = Field(1.0, ge=0, description="Weight of the dynamic DKD with the teacher.")
    ced_weight: float = Field(1.0, ge=0, description="Weight of the consensus DKD between the heads.")
    temperature: float = Field(3.0, gt=0, description="Softmax temperature T of the dynamic DKD.")
    base_alpha: float = Field(1.0, ge=0, description="TCKD's weight for a confident teacher.")
    base_beta: float = Field(6.0, ge=0, description="NCKD's weight for a confident teacher.")
    alpha_range: tuple[float, float] = Field((0.5, 2.0), description="Smallest and largest weight of TCKD.")
    beta_range: tuple[float, float] = Field((5.0, 8.0), description="Smallest and largest weight of NCKD.")
    warmup_epochs: float = Field(
        20.0, ge=0, description="Epochs over which the dynamic DKD ramps up from nothing; 0 for no ramp."
    )
    history_size: int = Field(2000, ge=1, description="How many of the teacher's confidences are remembered.")
    schedule: Literal["corrected", "published"] = Field(
        "corrected",
        description="Whether threshold and sensitivity follow the step; the published code never passes it "
        "on, so that there they keep their first values.",
    )
    threshold_steps: tuple[int, int] = Field(
        (200, 500), description="Steps at which the second and third tier of the threshold begin."
    )
    sensitivity_steps: int = Field(
        1000, ge=1, description="Steps over which the sensitivity falls from 18 to 6."
    )
    ced_temperature: float = Field(3.0, gt=0, description="Softmax temperature of the consensus DKD.")
    ced_gamma: float = Field(2.0, ge=0, description="Exponent of the agreement between two heads.")
    ced_alpha: float = Field(1.0, ge=0, description="TCKD's weight in the consensus DKD.")
    ced_beta: float = Field(8.0, ge=0, description="NCKD's weight in the consensus DKD.")

    @field_validator("alpha_range", "beta_range", "threshold_steps")
    @classmethod
    def _in_order(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= pair[0] <= pair[1]:
            raise ValueError("The first number must be at least 0 and at most the second")
        return pair


class DynamicState(NamedTuple):
    """What a batch makes of the dynamic DKD's weights, all on the device.

    Attributes:
        confidences: The history with the batch in it.
        threshold: Confidence from which the teacher counts as sure; scalar.
        weights: alpha of TCKD and beta of NCKD.
    """

    confidences: Confidences
    threshold: Tensor
    weights: DynamicWeights


@register_method(
    "dpcd", summary="DKD weighted by the teacher's confidence, and DKD between heads", source=UNPUBLISHED
)
class DPCD(SupervisedBranches):
    """L = w_ce CE(z, y) + w_branch sum_l CE(a_l, y) + w_dynamic L_dyn + w_ced L_ced.

    L_dyn = g (alpha TCKD + beta NCKD) of the backbones, where g = min(epoch / warmup, 1) counts epochs from 0
    and alpha and beta follow the teacher's confidence, see `losses.dynamic_weights`. L_ced is the sum of
    `losses.ced_loss` over all pairs of the student's heads, the backbone being the deepest: the shallower
    teaches the deeper. The reference adds pairs of a branch with itself, which are zero.
    ``dpcd/train_student_cifar.py``; the teacher's branches are not used there and not computed here.
    """

    Config: ClassVar[type[Config]] = DPCDConfig
    teacher_method = DPCDTeacher.name

    def __init__(self, config: DPCDConfig) -> None:
        super().__init__(config)
        self.history = ConfidenceHistory(self.config.history_size)
        self.schedule = ConfidenceSchedule(self.config.threshold_steps, self.config.sensitivity_steps)

    @property
    def needs(self) -> Needs:
        """Class branches of the student alone."""
        return Needs(student_branches=1)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config, student, teacher = self.config, outs.student, teacher_of(outs).logits
        state = self.weigh(teacher, batch.targets, clock)
        self.keep("history.values", state.confidences.values)
        self.keep("history.average", state.confidences.average)
        _, alpha, beta = state.weights
        tckd, nckd = dkd_terms(student.logits, teacher, batch.targets, config.temperature)
        ramp = (clock.epoch / config.warmup_epochs).clamp(max=1.0) if config.warmup_epochs else 1.0
        return {
            "ce": self.supervised(batch, student),
            "branch_ce": config.branch_weight * self.branch_loss(batch, student.branches),
            "dynamic": config.dynamic_weight * ramp * (alpha * tckd + beta * nckd),
            "ced": config.ced_weight * self.consensus((*student.branches, student.logits), batch.targets),
        }

    @torch.no_grad()
    def weigh(self, teacher_logits: Tensor, targets: Tensor, clock: Clock) -> DynamicState:
        """Take the batch into the history (without writing it) and weigh the terms of the dynamic DKD."""
        config = self.config
        step = clock.step if config.schedule == "corrected" else torch.zeros_like(clock.step)
        confidences = self.history.after(self.everyones(true_class_confidence(teacher_logits, targets)))
        start, q = self.schedule.start(step), self.schedule.quantile(step)
        threshold = self.history.threshold(confidences.values, start, q)
        weights = dynamic_weights(
            threshold,
            confidences.average,
            self.schedule.sensitivity(step),
            config.base_alpha,
            config.base_beta,
            config.alpha_range,
            config.beta_range,
        )
        return DynamicState(confidences, threshold, weights)

    def consensus(self, heads: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Sum of `ced_loss` over all pairs of ``heads``, given from shallow to deep: a scalar."""
        config = self.config
        pairs = [(i, j) for j in range(len(heads)) for i in range(j)]
        learners = torch.cat([heads[j] for _, j in pairs])
        guides = torch.cat([heads[i] for i, _ in pairs])
        mean = ced_loss(
            learners,
            guides,
            torch.cat([targets] * len(pairs)),
            config.ced_temperature,
            config.ced_gamma,
            config.ced_alpha,
            config.ced_beta,
        )
        return len(pairs) * mean
