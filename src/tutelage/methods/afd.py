"""AFD: which of the student's stages learns from which of the teacher's is learnt too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses import attended_loss, kd_loss
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs, teacher_of
from tutelage.methods.pairs import STAGES, stage_forms
from tutelage.methods.registry import register_method


class AFDConfig(Config):
    """Defaults of NAVER's script (CE + 0.9 KD at T = 4 + 200 AFD)."""

    preset: Literal["corrected", "published"] = Field(
        "corrected",
        description="published is what PAT's repository has under this name: the distances alone, without "
        "labels and KD, so that the student's classifier learns nothing.",
    )
    afd_weight: float = Field(200.0, ge=0, description="Weight of the distances (beta).")
    kd_weight: float = Field(0.9, ge=0, description="Weight of KD beside them (alpha); 0 leaves KD out.")
    temperature: float = Field(4.0, gt=0, description="Softmax temperature T of KD.")
    qk_dim: int = Field(128, ge=1, description="Width of queries and keys.")


class LinearNorm(nn.Module):
    """A linear layer and batch norm.

    The state dict's keys are those of NAVER's AFD.

    Args:
        inputs: Width of what comes in.
        outputs: Width of what goes out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, inputs]` to `[B, outputs]`."""
        normed: Tensor = self.bn(self.linear(features))
        return normed


class StageAttention(nn.Module):
    """How well each of the student's stages matches each of the teacher's, sample by sample.

    a_bts = softmax over s of (<q_bt, k_bts> + <p_t, p_s>) / sqrt(D): q_t a linear map of the mean of the
    teacher's stage t over positions, k_ts a bilinear one of the student's stage s for t, p a trained vector a
    stage. All maps have a batch norm, the keys' first one a ReLU.

    Args:
        students: Channels of the student's S stages.
        teachers: Channels of the teacher's T stages.
        width: D.

    Source:
        Ji et al. 2021, arXiv 2102.02973, equations 2 to 4; NAVER's ``distill/AFD.py``.
    """

    def __init__(self, students: Sequence[int], teachers: Sequence[int], width: int) -> None:
        super().__init__()
        self.width, self.count = width, len(teachers)
        self.query_layer = nn.ModuleList(LinearNorm(channels, width) for channels in teachers)
        self.key_layer = nn.ModuleList(LinearNorm(channels, width) for channels in students)
        self.bilinear = LinearNorm(width, width * len(teachers))
        self.p_t = nn.Parameter(torch.empty(len(teachers), width))
        self.p_s = nn.Parameter(torch.empty(len(students), width))
        nn.init.xavier_normal_(self.p_t)
        nn.init.xavier_normal_(self.p_s)

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """S maps `[B, C_s, ., .]` and T maps `[B, C_t, ., .]` to a `[B, T, S]`, rows adding up to 1."""
        queries = torch.stack(_of_means(self.query_layer, teachers), dim=1)
        keys = torch.stack(_of_means(self.key_layer, students), dim=1).relu()
        bilinear = self.bilinear(keys.flatten(0, 1)).view(*keys.shape[:2], self.count, self.width)
        scores = torch.einsum("bstq,btq->bts", bilinear, queries) + self.p_t @ self.p_s.t()
        return (scores / math.sqrt(self.width)).softmax(dim=2)


@register_method(
    "afd",
    summary="attention over all pairs of stages decides which attention maps are compared",
    source="Ji et al. 2021, arXiv 2102.02973",
)
class AFD(Method):
    """L = w_ce CE + w_kd KD(z_s, z_t) + w_afd sum_t mean_b sum_s a_bts mean (v_s - v_t)^2.

    v are attention maps, see `attended_loss`; a matches every stage of the student with every one of the
    teacher, see `StageAttention`, so that neither their numbers nor their shapes have to agree. Tokens count
    as the maps they make. The attention is trained with the student. Batches need two samples or more, for
    the batch norms.

    Deviations: the stages are the ends of the networks' stages, not, as in NAVER's script, every block. PAT's
    repository, whose file nothing imports, returns zero for the labels' loss (``preset: published``).
    """

    Config: ClassVar[type[Config]] = AFDConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build the attention."""
        assert nets.teacher is not None
        students, teachers = (
            [form.channels for form in stage_forms(net, data)] for net in (nets.student, nets.teacher)
        )
        self.attention = StageAttention(students, teachers, self.config.qk_dim)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config, student, teacher = self.config, outs.student, teacher_of(outs)
        attention = self.attention(student.stages, teacher.stages)
        distances = attended_loss(student.stages, teacher.stages, attention)
        terms = {"afd": config.afd_weight * distances}
        if config.preset == "published":
            return terms
        if config.kd_weight:
            terms["kd"] = config.kd_weight * kd_loss(student.logits, teacher.logits, config.temperature)
        return {"ce": self.supervised(batch, student), **terms}


def _of_means(layers: nn.ModuleList, stages: Sequence[Tensor]) -> list[Tensor]:
    """Each layer's answer to the mean of its stage over the positions."""
    return [layer(stage.mean(dim=(2, 3))) for layer, stage in zip(layers, stages, strict=True)]
