"""Flow of solution procedure, transferred before training."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses import flow_loss
from tutelage.methods.base import (
    Clock,
    Config,
    DataSpec,
    Method,
    Needs,
    Networks,
    Outs,
    Phase,
    paired_stages,
    teacher_of,
)
from tutelage.methods.first_stage import FirstStageConfig, first_and_main
from tutelage.methods.registry import register_method
from tutelage.models.network import Ask, probe


class FSPConfig(FirstStageConfig):
    """Defaults of RepDistiller's ``fsp`` rows."""

    fsp_weight: float = Field(1.0, ge=0, description="Weight of the first stage's loss.")


@register_method(
    "fsp",
    summary="first learn how the teacher's stages follow from each other, then the labels",
    source="Yim et al. 2017, CVPR 2017",
)
class FSP(Method):
    """First stage: L = w_fsp sum_l mean (G_s,l - G_t,l)^2; then L = w_ce CE.

    G_l is the `flow_matrix` of two consecutive features, from the stem's to the last stage's, so both
    networks need equal widths. The classifier gets no gradient in the first stage. RepDistiller's beta of 50
    weighs the second stage's term, which is zero; the first stage has no weight there.
    """

    Config: ClassVar[type[Config]] = FSPConfig

    @property
    def needs(self) -> Needs:
        """Stem and stages of both networks."""
        ask = Ask(stages=True, stem=True)
        return Needs(student=ask, teacher=ask)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Only checks that the stages pair and are equally wide."""
        assert nets.teacher is not None
        paired_stages(nets, self.name)
        student, teacher = (
            [shape[0] for shape in probe(net, data.image_shape).stages]
            for net in (nets.student, nets.teacher)
        )
        if student != teacher:
            raise UserError(
                f"method '{self.name}' compares channels one to one, but the student's stem and stages have "
                f"{_listed(student)} of them and the teacher's {_listed(teacher)}; choose a pair of one width"
            )

    def phases(self) -> tuple[Phase, Phase]:
        """The transfer, then training from labels."""
        return first_and_main(self.config, "flow matrices", "transfer")

    def transfer(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """The first stage, see the class."""
        return {"fsp": self.config.fsp_weight * flow_loss(outs.student.stages, teacher_of(outs).stages)}


def _listed(widths: list[int]) -> str:
    return ", ".join(map(str, widths))
