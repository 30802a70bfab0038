"""Variational information distillation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses import vid_loss
from tutelage.losses.features import pooled_alike
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs
from tutelage.methods.pairs import STAGES, form_pairs, stage_pairs
from tutelage.methods.registry import register_method

FLOOR = 1e-5
"""Smallest variance, in squared units of the teacher's features."""


class VIDConfig(Config):
    """Defaults of RepDistiller's ``vid`` rows."""

    vid_weight: float = Field(1.0, ge=0, description="Weight of the sum over stages (beta).")
    initial_variance: float = Field(5.0, gt=FLOOR, description="Variance of every channel before training.")


class Guess(nn.Module):
    """A normal distribution for the teacher's map, guessed from the student's.

    The mean comes from three 1x1 convolutions without bias, ReLU between them; the variance is a trained
    number a channel, softplus(a) + 1e-5. The state dict's keys are those of RepDistiller's VIDLoss.

    Args:
        student: Channels C_s.
        hidden: Channels between the convolutions.
        teacher: Channels C_t.
        initial_variance: What the variances start from.
    """

    def __init__(self, student: int, hidden: int, teacher: int, initial_variance: float) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(student, hidden, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, teacher, 1, bias=False),
        )
        start = initial_variance - FLOOR
        self.log_scale = nn.Parameter(torch.full((teacher,), start + math.log(-math.expm1(-start))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """How unlikely the teacher's map `[B, C_t, H_t, W_t]` is, given the student's `[B, C_s, H_s, W_s]`.

        The larger one is average-pooled to the size of the other first.
        """
        student, teacher = pooled_alike(student, teacher)
        return vid_loss(self.regressor(student), teacher, F.softplus(self.log_scale) + FLOOR)


@register_method(
    "vid",
    summary="guess the teacher's maps with a trained variance a channel",
    source="Ahn et al. 2019, arXiv 1904.05835",
)
class VID(Method):
    """L = w_ce CE + w_vid sum over stages of mean 1/2 ((F_t - mu(F_s))^2 / v + log v).

    mu and v are trained with the student. Each map is averaged over, as in RepDistiller; the paper adds up
    its elements. Stages pair as `pairs.partners` says, tokens as the maps they make.
    """

    Config: ClassVar[type[Config]] = VIDConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build the guesses."""
        self.guesses = nn.ModuleList(
            Guess(student.channels, teacher.channels, teacher.channels, self.config.initial_variance)
            for student, teacher in form_pairs(nets, data)
        )

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        pairs = zip(self.guesses, stage_pairs(outs), strict=True)
        total = sum(guess(student, teacher) for guess, (student, teacher) in pairs)
        return {"ce": self.supervised(batch, outs.student), "vid": self.config.vid_weight * total}
