"""Attention transfer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import attention_loss
from tutelage.methods.base import Clock, Config, Method, Needs, Outs
from tutelage.methods.pairs import STAGES, stage_pairs
from tutelage.methods.registry import register_method


class ATConfig(Config):
    """Defaults of RepDistiller's ``attention`` rows."""

    at_weight: float = Field(1000.0, ge=0, description="Weight of the sum over stages (beta).")


@register_method(
    "at",
    summary="squared difference of spatial attention maps",
    source="Zagoruyko et al. 2017, arXiv 1612.03928",
)
class AT(Method):
    """L = w_ce CE + w_at sum over stages of mean (A(F_s) - A(F_t))^2, A the `attention_map`.

    Networks of any families: tokens count as the maps they make, the larger map is pooled to the smaller's
    sides, and stages pair as `pairs.partners` says.
    """

    Config: ClassVar[type[Config]] = ATConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        total = sum(attention_loss(student, teacher) for student, teacher in stage_pairs(outs))
        return {"ce": self.supervised(batch, outs.student), "at": self.config.at_weight * total}
