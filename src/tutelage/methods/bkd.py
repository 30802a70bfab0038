"""Binary distillation: one yes-or-no question a class."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import bkd_loss
from tutelage.methods.base import Clock, Config, Method, Outs, teacher_of
from tutelage.methods.registry import register_method


class BKDConfig(Config):
    """Defaults of OFAKD's script."""

    kd_weight: float = Field(
        1.0, ge=0, description="Weight of the binary cross entropy with the teacher (kd-loss-weight)."
    )


@register_method(
    "bkd",
    summary="binary cross entropy with the teacher's probabilities",
    source="Hao et al. 2023, arXiv 2310.19444 (code)",
)
class BKD(Method):
    """L = w_ce CE(z, y) + w_kd BCE(z, softmax(z_t)), the mean over batch and classes, see `bkd_loss`.

    Meant for students that learn from labels by binary cross entropy too, which ``criterion: bce`` does. No
    paper describes it; OFAKD's and PAT's code has it beside KD.
    """

    Config: ClassVar[type[Config]] = BKDConfig

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        term = bkd_loss(outs.student.logits, teacher_of(outs).logits)
        return {"ce": self.supervised(batch, outs.student), "kd": self.config.kd_weight * term}
