"""FitNet: hints from stages of the teacher."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses import hint_loss, kd_loss
from tutelage.methods.alignment import StageAligner
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs, teacher_of
from tutelage.methods.choices import StageNumbers
from tutelage.methods.pairs import STAGES, chosen_pairs, form_pairs, stage_pairs
from tutelage.methods.projectors import ConvRegressor, Form
from tutelage.methods.registry import register_method
from tutelage.models.zoo import CifarNet


class FitNetConfig(Config):
    """Defaults of RepDistiller's ``hint`` rows.

    PAT's script has ``hint_weight`` 1, ``stages`` 1 to 4, ``kd_weight`` 1 and ``temperature`` 1; OFA-KD's,
    for convolutional networks alone, the same without KD.
    """

    hint_weight: float = Field(
        100.0, ge=0, description="Weight of the sum of mean squared errors (beta; fitnet-loss-weight)."
    )
    stage: int = Field(2, ge=1, description="Which stage gives the hint, counted from 1.")
    stages: StageNumbers = Field(
        (), description="Several stages that give hints instead (fitnet-stages); empty for `stage` alone."
    )
    projector: Literal["auto", "regressor", "family"] = Field(
        "auto",
        description="What leads from the student's stage to the teacher's: RepDistiller's convolution with "
        "batch norm and ReLU (regressor), or what the families of both networks ask for, without either "
        "(family, as OFA-KD and PAT have it). auto takes the first for two networks of the zoo.",
    )
    token_layout: Literal["correct", "scrambled"] = Field(
        "correct",
        description="How a token becomes several of the teacher's: at the place where it stood, or cut as "
        "the numbers lie, as published.",
    )
    kd_weight: float = Field(
        0.0, ge=0, description="Weight of KD beside the hints (kd-loss-weight); 0 leaves KD out."
    )
    temperature: float = Field(4.0, gt=0, description="Softmax temperature T of KD.")


class Regressed(nn.Module):
    """A `ConvRegressor` on the student's stage; the teacher's stays as it is.

    Args:
        student: What the student's stage is.
        teacher: What the teacher's is.
    """

    def __init__(self, student: Form, teacher: Form) -> None:
        super().__init__()
        self.regressor = ConvRegressor(student.shape, teacher.shape)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[B, C_s, H_s, W_s]` and `[B, C_t, H_t, W_t]` to two of the latter shape."""
        return self.regressor(student), teacher


@register_method(
    "fitnet",
    summary="MSE to the features of one stage or several",
    source="Romero et al. 2015, arXiv 1412.6550",
)
class FitNet(Method):
    """L = w_ce CE + w_hint sum over stages of MSE(project(F_s), F_t) + w_kd KD(z_s, z_t).

    The projectors are trained with the student. Between two networks of the zoo they are RepDistiller's
    `ConvRegressor`; between any others a `StageAligner`, which knows maps and tokens. Networks of different
    stage counts pair as `pairs.partners` says, and stages are numbered among the pairs.

    All losses act together, as in RepDistiller, OFAKD and PAT; the paper trains the hint in a stage of its
    own.
    """

    Config: ClassVar[type[Config]] = FitNetConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build a projector a stage from the student's to the teacher's shape."""
        assert nets.teacher is not None
        of_the_zoo = all(isinstance(net.model, CifarNet) for net in (nets.student, nets.teacher))
        self.build(form_pairs(nets, data), of_the_zoo)

    def build(self, pairs: list[tuple[Form, Form]], of_the_zoo: bool = False) -> None:
        """Build the projectors from plain numbers.

        Args:
            pairs: What the student's and the teacher's stages are.
            of_the_zoo: Whether both networks are of the zoo.

        Raises:
            UserError: A stage isn't there.
        """
        config, count = self.config, len(pairs)
        if not config.stages and config.stage > count:
            raise UserError(
                f"method.stage is {config.stage}, but there are {count} stages; choose 1 to {count}"
            )
        self.chosen = chosen_pairs(config.stages or (config.stage,), count)
        regress = config.projector == "regressor" or (config.projector == "auto" and of_the_zoo)
        scrambled = config.token_layout == "scrambled"
        self.projectors = nn.ModuleList(
            Regressed(*pairs[place]) if regress else StageAligner(*pairs[place], scrambled)
            for place in self.chosen
        )

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config, pairs = self.config, stage_pairs(outs)
        hints = [
            hint_loss(*projector(*pairs[place]))
            for place, projector in zip(self.chosen, self.projectors, strict=True)
        ]
        terms = {
            "ce": self.supervised(batch, outs.student),
            "hint": config.hint_weight * torch.stack(hints).sum(),
        }
        if config.kd_weight:
            kd = kd_loss(outs.student.logits, teacher_of(outs).logits, config.temperature)
            terms["kd"] = config.kd_weight * kd
        return terms
