"""Similarity-preserving distillation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import similarity_loss
from tutelage.methods.base import Clock, Config, Method, Needs, Outs, teacher_of
from tutelage.methods.pairs import STAGES
from tutelage.methods.registry import register_method


class SPConfig(Config):
    """Defaults of RepDistiller's ``similarity`` rows."""

    sp_weight: float = Field(3000.0, ge=0, description="Weight of the similarity term (beta).")


@register_method(
    "sp",
    summary="match the batch's similarity matrix at the last stage",
    source="Tung and Mori 2019, arXiv 1907.09682",
)
class SP(Method):
    """L = w_ce CE + w_sp ||G_s - G_t||_F^2 / B^2, G the row-normalised Gram matrix of the last stage."""

    Config: ClassVar[type[Config]] = SPConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        term = similarity_loss(outs.student.stages[-1], teacher_of(outs).stages[-1])
        return {"ce": self.supervised(batch, outs.student), "sp": self.config.sp_weight * term}
