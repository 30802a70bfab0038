"""Activation boundaries, transferred before training."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses import boundary_loss
from tutelage.losses.boundaries import boundary_weights
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs, Phase
from tutelage.methods.first_stage import FirstStageConfig, first_and_main
from tutelage.methods.pairs import form_pairs, stage_pairs
from tutelage.methods.projectors import ConvRegressor, Form
from tutelage.methods.registry import register_method
from tutelage.models.network import Ask


class ABConfig(FirstStageConfig):
    """Defaults of RepDistiller's ``abound`` rows."""

    ab_weight: float = Field(1.0, ge=0, description="Weight of the first stage's loss.")
    margin: float = Field(1.0, ge=0, description="How far neurons are pushed over the boundary.")


@register_method(
    "ab",
    summary="first learn which neurons the teacher activates, then the labels",
    source="Heo et al. 2019, arXiv 1811.03233",
)
class AB(Method):
    """First stage: L = w_ab sum_l 2^(l - L) B(c_l(F_s,l), F_t,l) over stages 1 to L; then L = w_ce CE.

    B is `boundary_loss` on features before the activation, c_l a convolution with batch norm where the shapes
    of the two features differ; stages pair as `pairs.partners` says. The connectors are trained in the first
    stage together with the student, whose classifier gets no gradient there, and have no part in the second.
    Networks outside the zoo are refused: most have no activation at the ends of their stages, and so no
    boundary. RepDistiller's beta weighs the second stage's term, which is zero; the first stage has no weight
    there.
    """

    Config: ClassVar[type[Config]] = ABConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks before the activation."""
        ask = Ask(stages=True, preact=True)
        return Needs(student=ask, teacher=ask)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build the connectors."""
        self.connectors = nn.ModuleList(_connector(*pair) for pair in form_pairs(nets, data))

    def phases(self) -> tuple[Phase, Phase]:
        """The transfer, then training from labels."""
        return first_and_main(self.config, "activation boundaries", "transfer")

    def transfer(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """The first stage, see the class."""
        pairs, config = stage_pairs(outs), self.config
        losses = [
            weight * boundary_loss(connector(student), teacher, config.margin)
            for weight, connector, (student, teacher) in zip(
                boundary_weights(len(pairs)), self.connectors, pairs, strict=True
            )
        ]
        return {"ab": config.ab_weight * torch.stack(losses).sum()}


def _connector(student: Form, teacher: Form) -> nn.Module:
    return nn.Identity() if student == teacher else ConvRegressor(student.shape, teacher.shape, relu=False)
