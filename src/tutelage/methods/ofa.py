"""OFA-KD: every stage of the student answers in the space of logits, whatever family it is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses import ofa_loss
from tutelage.losses.ofa import TargetForm
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs, teacher_of
from tutelage.methods.choices import StageNumbers
from tutelage.methods.ofa_branches import TokenBranch, conv_branch
from tutelage.methods.pairs import on_tokens, pooled_widths
from tutelage.methods.projectors import initialise_projector
from tutelage.methods.registry import register_method
from tutelage.models.network import Ask, Outputs, probe


class OFAConfig(Config):
    """Defaults of OFAKD's script; names in brackets are its flags.

    Published: exponent 1 on CIFAR-100; 1.5 for DeiT-T to ResNet-18 on ImageNet, where the paper finds 1.1 to
    1.4 best, larger ones for weaker teachers. The authors' CIFAR runs with CNN students had `ofa_weight` 0.1
    and a learning rate of 0.1 on eight GPUs (Hao840/OFAKD, issue 14).
    """

    kd_weight: float = Field(
        1.0, ge=0, description="Weight of the term on the student's own logits (kd-loss-weight)."
    )
    ofa_weight: float = Field(1.0, ge=0, description="Weight of the sum over the branches (ofa-loss-weight).")
    eps: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="Exponent that enhances the target (ofa-eps; gamma in the paper): one number for all, or "
        "one a branch and a last one for the student's own logits.",
    )
    temperature: float = Field(1.0, gt=0, description="Softmax temperature T (ofa-temperature).")
    stages: StageNumbers = Field(
        (), description="Stages with a branch, counted from 1 (ofa-stage); empty for all."
    )
    stage_weights: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="Weight of a branch within their sum: one number for all, or one a branch.",
    )
    target: TargetForm = Field(
        "code",
        description="Weights of the classes: code raises every one to the exponent, as the published tables "
        "were made; paper raises the target's alone and counts the label's cross entropy once more.",
    )

    @field_validator("eps", "stage_weights", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("eps")
    @classmethod
    def _above_nothing(cls, eps: tuple[float, ...]) -> tuple[float, ...]:
        if min(eps) <= 0:
            raise ValueError("An exponent is above 0")
        return eps

    @field_validator("stage_weights")
    @classmethod
    def _nothing_or_more(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if min(weights) < 0:
            raise ValueError("A weight is 0 or more")
        return weights


@register_method(
    "ofa",
    summary="branches into the space of logits, with the target class enhanced",
    source="Hao et al. 2023, arXiv 2310.19444",
)
class OFA(Method):
    """L = w_ce CE(z, y) + w_kd OFA(z; eps) + w_ofa sum over stages i of w_i OFA(branch_i(F_i); eps_i).

    OFA is `ofa_loss` with the teacher's logits. The teacher shows nothing else, so it may be of any family;
    branches depend on the student's:

    - a convolutional network's are `conv_branch`, of the width of the wider pooled vector of both networks;
    - those of a network on tokens (ViT, Swin, Mixer) are `TokenBranch`, of its own pooled width.

    Student and branches are trained together; the branches are dropped at the end. See ``distillers/ofa.py``.

    Deviations: class tokens are found with every timm (there, students of the DeiT kind crash with the timm
    that is asked for); networks with other than four stages, and tokens that aren't merged though their width
    differs, as small images make them, are taken too (there is one block for each stage that remains, and a
    linear layer); sides of tokens that can't be halved are padded; see `ofa_loss` for the logarithm.
    """

    Config: ClassVar[type[Config]] = OFAConfig

    @property
    def needs(self) -> Needs:
        """Stages of the student with its class tokens; of the teacher the width of its pooled vector."""
        return Needs(student=Ask(pooled=True, stages=True, prefix=True), teacher=Ask(pooled=True))

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build a branch a stage."""
        shapes = probe(nets.student, data.image_shape)
        count = len(nets.student.taps.stages)
        self.build(
            shapes.stages[:count],
            pooled_widths(nets, data),
            data.num_classes,
            tokens=on_tokens(nets.student, shapes),
            class_token=len(shapes.stages) > count,
        )

    def build(
        self,
        shapes: Sequence[tuple[int, ...]],
        widths: tuple[int, int],
        classes: int,
        tokens: bool,
        class_token: bool = False,
    ) -> None:
        """Build the branches from plain numbers.

        Args:
            shapes: `[C, H, W]` of the student's stages.
            widths: Of the student's and the teacher's pooled vectors.
            classes: Number of classes.
            tokens: Whether the maps are tokens laid out.
            class_token: Whether a class token comes with them.

        Raises:
            UserError: A stage isn't there, or there are too few or too many numbers for the stages.
        """
        self.count = len(shapes)
        self.numbers = self.config.stages or tuple(range(1, self.count + 1))
        if max(self.numbers) > self.count:
            raise UserError(
                f"method.stages names stage {max(self.numbers)}, but the student has {self.count}; choose "
                f"among 1 to {self.count}"
            )
        self.exponents = _spread("eps", self.config.eps, len(self.numbers) + 1)
        self.shares = _spread("stage_weights", self.config.stage_weights, len(self.numbers))

        def branch(number: int) -> nn.Module:
            channels, *sides = shapes[number - 1]
            remaining = self.count - number
            if not tokens:
                return conv_branch(channels, max(widths), classes, remaining)
            width = channels if class_token else widths[0]
            return TokenBranch(channels, width, classes, min(sides), max(remaining, 1))

        self.branches = nn.ModuleList(branch(number) for number in self.numbers)
        self.branches.apply(initialise_projector)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config, teacher = self.config, teacher_of(outs).logits

        def loss(logits: Tensor, eps: float) -> Tensor:
            return ofa_loss(logits, teacher, batch.targets, eps, config.temperature, config.target)

        of_branches = [
            share * loss(scores, eps)
            for scores, eps, share in zip(
                self.scores(outs.student), self.exponents[:-1], self.shares, strict=True
            )
        ]
        return {
            "ce": self.supervised(batch, outs.student),
            "kd": config.kd_weight * loss(outs.student.logits, self.exponents[-1]),
            "ofa": config.ofa_weight * torch.stack(of_branches).sum(),
        }

    def scores(self, student: Outputs) -> list[Tensor]:
        """The branches' class scores `[B, N]`, in the order of ``method.stages``."""
        # A stage's map and, a whole round of stages later, its class token where there is one.
        return [
            branch(*student.stages[number - 1 :: self.count])
            for number, branch in zip(self.numbers, self.branches, strict=True)
        ]


def _spread(name: str, values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """``values``, or the only one of them, for each of ``count``.

    Raises:
        UserError: They are neither one nor as many as needed.
    """
    if len(values) not in {1, count}:
        raise UserError(
            f"method.{name} has {len(values)} numbers; give one for all, or {count}, one for each"
        )
    return values if len(values) == count else values * count
