"""Decoupled knowledge distillation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import dkd_terms
from tutelage.methods.base import Clock, Config, Method, Outs, teacher_of
from tutelage.methods.ramps import ramp
from tutelage.methods.registry import register_method


class DKDConfig(Config):
    """Defaults of mdistiller's CIFAR-100 configuration; beta differs by pair (2 to 8 there)."""

    alpha: float = Field(1.0, ge=0, description="Weight of the target-class term TCKD.")
    beta: float = Field(8.0, ge=0, description="Weight of the non-target-class term NCKD.")
    temperature: float = Field(4.0, gt=0, description="Softmax temperature T of both terms.")
    warmup_epochs: float = Field(
        20.0, ge=0, description="Epochs over which both terms ramp up linearly; 0 for no ramp."
    )


@register_method(
    "dkd", summary="target and non-target KL, weighted apart", source="Zhao et al. 2022, arXiv 2203.08679"
)
class DKD(Method):
    """L = w_ce CE + g (alpha TCKD + beta NCKD), with g = min((epoch + 1) / warmup, 1).

    The ramp counts epochs from 1, as mdistiller does (``mdistiller/distillers/DKD.py``).
    """

    Config: ClassVar[type[Config]] = DKDConfig

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config = self.config
        tckd, nckd = dkd_terms(
            outs.student.logits, teacher_of(outs).logits, batch.targets, config.temperature
        )
        share = ramp(clock, config.warmup_epochs)
        return {
            "ce": self.supervised(batch, outs.student),
            "tckd": share * config.alpha * tckd,
            "nckd": share * config.beta * nckd,
        }
