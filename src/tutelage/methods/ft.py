"""Factor transfer: the teacher's features in other words, put into the student's."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses import factor_loss, hint_loss
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs, Phase, teacher_of
from tutelage.methods.first_stage import FirstStageConfig, first_and_main
from tutelage.methods.pairs import STAGES, form_pairs
from tutelage.methods.registry import register_method

_SLOPE = 0.1


class FTConfig(FirstStageConfig):
    """Defaults of RepDistiller's ``factor`` rows for ResNet and WRN students.

    The research code trains the paraphraser of other students at their own learning rate: unset ``first_lr``.
    """

    first_lr: float | None = Field(
        0.01,
        gt=0,
        description="Constant learning rate of the paraphraser's stage; unset for the recipe's schedule.",
    )
    factor_weight: float = Field(200.0, ge=0, description="Weight of the factors' distance (beta).")
    reconstruction_weight: float = Field(
        1.0, ge=0, description="Weight of the paraphraser's error in the first stage."
    )
    factor_ratio: float = Field(
        0.5, gt=0, le=1, description="Channels of the factors over those of the teacher's last stage."
    )


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's features whose middle is the factor.

    Three 3x3 convolutions with leaky ReLU, the second of which changes the width, and three transposed ones
    back. The state dict's keys are those of RepDistiller's Paraphraser (``models/util.py``), which has no
    batch norm by default either.

    Args:
        channels: C of the teacher's features.
        factors: M, channels of the factor.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *_layer(nn.Conv2d(channels, channels, 3, padding=1)),
            *_layer(nn.Conv2d(channels, factors, 3, padding=1)),
            *_layer(nn.Conv2d(factors, factors, 3, padding=1)),
        )
        self.decoder = nn.Sequential(
            *_layer(nn.ConvTranspose2d(factors, factors, 3, padding=1)),
            *_layer(nn.ConvTranspose2d(factors, channels, 3, padding=1)),
            *_layer(nn.ConvTranspose2d(channels, channels, 3, padding=1)),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, C, H, W]` to the factor `[B, M, H, W]` and to what it rebuilds, `[B, C, H, W]`."""
        factor = self.encoder(features)
        return factor, self.decoder(factor)


class Translator(nn.Module):
    """What makes the student's factor: three 3x3 convolutions with batch norm and leaky ReLU.

    The state dict's keys are those of RepDistiller's Translator (``models/util.py``).

    Args:
        channels: C of the student's features.
        factors: M, channels of the factor.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *_layer(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)),
            *_layer(nn.Conv2d(channels, factors, 3, padding=1), nn.BatchNorm2d(factors)),
            *_layer(nn.Conv2d(factors, factors, 3, padding=1), nn.BatchNorm2d(factors)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, C, H, W]` to the factor `[B, M, H, W]`."""
        factor: Tensor = self.encoder(features)
        return factor


@register_method(
    "ft",
    summary="compare the last stages through a paraphraser and a translator",
    source="Kim et al. 2018, arXiv 1802.04977",
)
class FT(Method):
    """First stage: L = w_r mean (P(F_t) - F_t)^2, the paraphraser alone; then L = w_ce CE + w_f D.

    D is the `factor_loss` of the last stages' factors: the translator's, trained with the student, and the
    paraphraser's, which stays as the first stage left it. RepDistiller's ``distiller_zoo/FT.py`` and
    ``helper/pretrain.py``; the paper compares the factors themselves, see `factor_loss`.
    """

    Config: ClassVar[type[Config]] = FTConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build paraphraser and translator.

        Raises:
            UserError: The last stages' maps have one position in common, whose share is always 1.
        """
        student, teacher = form_pairs(nets, data)[-1]
        if min(student.height, teacher.height) == min(student.width, teacher.width) == 1:
            raise UserError(
                "method 'ft' compares where the last stages look, but their maps have a single position in "
                f"common ({student.height}x{student.width} and {teacher.height}x{teacher.width}), so nothing "
                "would be learnt; give the networks larger images or choose another pair"
            )
        factors = max(1, int(self.config.factor_ratio * teacher.channels))
        self.paraphraser = Paraphraser(teacher.channels, factors)
        self.translator = Translator(student.channels, factors)

    def phases(self) -> tuple[Phase, Phase]:
        """The paraphraser's training, then the student's."""
        return first_and_main(self.config, "paraphraser", "paraphrase", trains="method")

    def paraphrase(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """The first stage, see the class."""
        features = teacher_of(outs).stages[-1]
        retold = self.paraphraser(features)[1]
        return {"reconstruction": self.config.reconstruction_weight * hint_loss(retold, features)}

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        with torch.no_grad():
            factor = self.paraphraser.encoder(teacher_of(outs).stages[-1])
        distance = factor_loss(self.translator(outs.student.stages[-1]), factor)
        return {"ce": self.supervised(batch, outs.student), "factor": self.config.factor_weight * distance}


def _layer(convolution: nn.Module, norm: nn.Module | None = None) -> tuple[nn.Module, ...]:
    return convolution, norm or nn.Identity(), nn.LeakyReLU(_SLOPE)
