"""Distillation by singular value decomposition."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses import kdsvd_losses
from tutelage.methods.base import (
    Clock,
    Config,
    DataSpec,
    Method,
    Needs,
    Networks,
    Outs,
    paired_stages,
    teacher_of,
)
from tutelage.methods.pairs import STAGES
from tutelage.methods.registry import register_method
from tutelage.models.network import probe


class KDSVDConfig(Config):
    """RepDistiller's k; the weight is mdistiller's, as RepDistiller's script has no row of it."""

    kdsvd_weight: float = Field(1.0, ge=0, description="Weight of the sum over pairs of stages.")
    components: int = Field(1, ge=1, description="Singular vectors k of the teacher; the student gets k + 3.")
    fixed_signs: bool = Field(
        True,
        description="Turn singular vectors to a positive sum; off leaves the side to the library.",
    )


@register_method(
    "kdsvd",
    summary="match how the main directions of consecutive stages relate",
    source="Lee et al. 2018, arXiv 1807.06819",
)
class KDSVD(Method):
    """L = w_ce CE + w_svd sum over consecutive stages of ||R_s - R_t||^2 / B, see `kdsvd_losses`.

    Deviations from RepDistiller: the signs of the singular vectors are fixed, which it leaves to chance, and
    the gradient is finite where its own is not. Student and teacher need equal channel counts, as there.
    """

    Config: ClassVar[type[Config]] = KDSVDConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Only checks that the stages pair and have equally many channels."""
        assert nets.teacher is not None
        count = paired_stages(nets, self.name)
        student, teacher = (
            [shape[0] for shape in probe(net, data.image_shape).stages]
            for net in (nets.student, nets.teacher)
        )
        if student != teacher or count < 2:
            raise UserError(
                f"method 'kdsvd' needs two stages or more with equally many channels, but the student's have "
                f"{student} and the teacher's {teacher}; choose a pair of one width, such as resnet20_cifar "
                "and resnet56_cifar"
            )

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config = self.config
        losses = kdsvd_losses(
            outs.student.stages, teacher_of(outs).stages, config.components, config.fixed_signs
        )
        return {"ce": self.supervised(batch, outs.student), "kdsvd": config.kdsvd_weight * losses.sum()}
