"""Relational knowledge distillation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import rkd_angle_loss, rkd_distance_loss
from tutelage.methods.base import Clock, Config, Method, Needs, Outs
from tutelage.methods.pairs import POOLED, pooled_pair
from tutelage.methods.registry import register_method


class RKDConfig(Config):
    """Defaults of RepDistiller's ``rkd`` rows."""

    distance_weight: float = Field(25.0, ge=0, description="Weight of the pairwise-distance term.")
    angle_weight: float = Field(50.0, ge=0, description="Weight of the triplet-angle term.")


@register_method(
    "rkd", summary="match distances and angles within the batch", source="Park et al. 2019, arXiv 1904.05068"
)
class RKD(Method):
    """L = w_ce CE + w_d D(f_s, f_t) + w_a A(f_s, f_t) on the pooled features; memory grows with B^3."""

    Config: ClassVar[type[Config]] = RKDConfig

    @property
    def needs(self) -> Needs:
        """Pooled features of both networks."""
        return POOLED

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        student, teacher = pooled_pair(outs)
        return {
            "ce": self.supervised(batch, outs.student),
            "distance": self.config.distance_weight * rkd_distance_loss(student, teacher),
            "angle": self.config.angle_weight * rkd_angle_loss(student, teacher),
        }
