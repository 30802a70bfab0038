"""Knowledge distillation by softened logits."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import kd_loss
from tutelage.methods.base import Clock, Config, Method, Outs, teacher_of
from tutelage.methods.registry import register_method


class KDConfig(Config):
    """Defaults of RepDistiller's KD rows (0.1 CE + 0.9 KD, T = 4)."""

    ce_weight: float = Field(0.1, ge=0, description="Weight of the cross entropy (RepDistiller's gamma).")
    kd_weight: float = Field(0.9, ge=0, description="Weight of the KL term (RepDistiller's alpha).")
    temperature: float = Field(4.0, gt=0, description="Softmax temperature T of both networks.")


@register_method("kd", summary="KL between softened logits", source="Hinton et al. 2015, arXiv 1503.02531")
class KD(Method):
    """L = w_ce CE(z, y) + w_kd T^2 KL(softmax(z_t / T) || softmax(z / T))."""

    Config: ClassVar[type[Config]] = KDConfig

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        student, teacher = outs.student.logits, teacher_of(outs).logits
        return {
            "ce": self.supervised(batch, outs.student),
            "kd": self.config.kd_weight * kd_loss(student, teacher, self.config.temperature),
        }
