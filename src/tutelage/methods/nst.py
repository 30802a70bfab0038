"""Neuron selectivity transfer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import nst_loss
from tutelage.methods.base import Clock, Config, Method, Needs, Outs
from tutelage.methods.pairs import STAGES, stage_pairs
from tutelage.methods.registry import register_method


class NSTConfig(Config):
    """Defaults of RepDistiller's ``nst`` rows."""

    nst_weight: float = Field(50.0, ge=0, description="Weight of the sum over stages (beta).")


@register_method(
    "nst",
    summary="match the channels' spatial patterns as sets",
    source="Huang and Wang 2017, arXiv 1707.01219",
)
class NST(Method):
    """L = w_ce CE + w_nst sum over stages of MMD^2 between the channels' maps, see `nst_loss`.

    All stages count, as in RepDistiller; the paper compares the last one. They pair as `pairs.partners` says,
    tokens as the maps they make.
    """

    Config: ClassVar[type[Config]] = NSTConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        total = sum(nst_loss(student, teacher) for student, teacher in stage_pairs(outs))
        return {"ce": self.supervised(batch, outs.student), "nst": self.config.nst_weight * total}
