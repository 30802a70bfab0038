"""Activation boundaries, transferred before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses import boundary_loss
from tutelage.losses.boundaries import boundary_weights
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs, Phase, paired_stages
from tutelage.methods.first_stage import FirstStageConfig, first_and_main
from tutelage.methods.pairs import stage_pairs
from tutelage.methods.projectors import ConvRegressor
from tutelage.methods.registry import register_method
from tutelage.models.network import Ask, probe


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
    of the two features differ. The connectors are trained in the first stage together with the student, whose
    classifier gets no gradient there, and have no part in the second. RepDistiller's beta weighs the second
    stage's term, which is zero; the first stage has no weight there.
    """

    Config: ClassVar[type[Config]] = ABConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks before the activation."""
        ask = Ask(stages=True, preact=True)
        return Needs(student=ask, teacher=ask)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build the connectors."""
        assert nets.teacher is not None
        paired_stages(nets, self.name)
        shapes = [probe(net, data.image_shape).stages for net in (nets.student, nets.teacher)]
        self.connectors = nn.ModuleList(_connector(*pair) for pair in zip(*shapes, strict=True))

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


def _connector(student_shape: Sequence[int], teacher_shape: Sequence[int]) -> nn.Module:
    if tuple(student_shape) == tuple(teacher_shape):
        return nn.Identity()
    return ConvRegressor(student_shape, teacher_shape, relu=False)
