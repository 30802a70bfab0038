"""FitNet: a hint from one stage of the teacher."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses import hint_loss
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
from tutelage.methods.projectors import ConvRegressor
from tutelage.methods.registry import register_method
from tutelage.models.network import probe


class FitNetConfig(Config):
    """Defaults of RepDistiller's ``hint`` rows."""

    hint_weight: float = Field(100.0, ge=0, description="Weight of the mean squared error (beta).")
    stage: int = Field(2, ge=1, description="Which stage gives the hint, counted from 1.")


@register_method(
    "fitnet", summary="MSE to one stage's features", source="Romero et al. 2015, arXiv 1412.6550"
)
class FitNet(Method):
    """L = w_ce CE + w_hint MSE(regressor(F_s), F_t) at one stage; the regressor is trained with the student.

    Both losses act together, as in RepDistiller; the paper trains the hint in a stage of its own.
    """

    Config: ClassVar[type[Config]] = FitNetConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build the regressor from the student's to the teacher's shape."""
        assert nets.teacher is not None
        count = paired_stages(nets, self.name)
        if self.config.stage > count:
            raise UserError(
                f"method.stage is {self.config.stage}, but there are {count} stages; choose 1 to {count}"
            )
        chosen = self.config.stage - 1
        shapes = [probe(net, data.image_shape[-2:]).stages[chosen] for net in (nets.student, nets.teacher)]
        self.regressor = ConvRegressor(shapes[0], shapes[1])

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        chosen = self.config.stage - 1
        hint = hint_loss(self.regressor(outs.student.stages[chosen]), teacher_of(outs).stages[chosen])
        return {"ce": self.supervised(batch, outs.student), "hint": self.config.hint_weight * hint}
