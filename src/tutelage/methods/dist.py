"""DIST: relations between and within classes instead of exact probabilities."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import dist_terms
from tutelage.methods.base import Clock, Config, Method, Outs, teacher_of
from tutelage.methods.registry import register_method


class DISTConfig(Config):
    """Defaults of the paper's CIFAR-100 runs; its ImageNet runs use 1, 1 and T = 1."""

    inter_weight: float = Field(2.0, ge=0, description="Weight of the relation between classes (beta).")
    intra_weight: float = Field(2.0, ge=0, description="Weight of the relation within a class (gamma).")
    temperature: float = Field(4.0, gt=0, description="Softmax temperature T (tau).")


@register_method(
    "dist", summary="Pearson correlation of rows and columns", source="Huang et al. 2022, arXiv 2205.10536"
)
class DIST(Method):
    """L = w_ce CE + beta T^2 (1 - mean row correlation) + gamma T^2 (1 - mean column correlation)."""

    Config: ClassVar[type[Config]] = DISTConfig

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        inter, intra = dist_terms(outs.student.logits, teacher_of(outs).logits, self.config.temperature)
        return {
            "ce": self.supervised(batch, outs.student),
            "inter": self.config.inter_weight * inter,
            "intra": self.config.intra_weight * intra,
        }
