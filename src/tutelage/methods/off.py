"""OFF, the predecessor of PAT: features in which the networks' families don't show, and decoders back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses import cka_loss, hint_loss, kd_loss
from tutelage.methods.alignment import Embedding, Expansion
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs, teacher_of
from tutelage.methods.choices import Presets, StageNumbers, SwitchConfig
from tutelage.methods.pairs import STAGES, chosen_pairs, form_pairs, stage_pairs
from tutelage.methods.projectors import Form, as_grid, initialise_projector
from tutelage.methods.ramps import ramp
from tutelage.methods.registry import register_method

Mixing = Literal["attention", "sum", "none"]
PRESETS: Presets = {
    "corrected": {"mixing": "attention", "cka": "stages"},
    "published": {"mixing": "sum", "cka": "joint"},
}
"""What each of these settings is where it isn't named."""


class OFFConfig(SwitchConfig):
    """Defaults of PAT's script; names in brackets are its flags."""

    presets: ClassVar[Presets] = PRESETS
    preset: Literal["corrected", "published"] = Field(
        "corrected",
        description="Sets mixing and cka where they aren't named: to what was meant, or to what the code "
        "does.",
    )
    kd_weight: float = Field(1.0, ge=0, description="Weight of KD (kd-loss-weight).")
    temperature: float = Field(1.0, gt=0, description="Softmax temperature T of KD (kd-temperature).")
    low_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the squared difference of the encoded features (off-pl-loss-weight).",
    )
    warmup_epochs: float = Field(
        20.0,
        ge=0,
        description="Epochs over which that weight ramps up linearly (off-warmup-epochs); 0 for no ramp.",
    )
    cka_weight: float = Field(
        1.0, ge=0, description="Weight of how unlike they tell samples apart (off-pc-loss-weight)."
    )
    reconstruction_weight: float = Field(
        1.0, ge=0, description="Weight of the decoders' errors on both networks' stages (off-rc-loss-weight)."
    )
    stages: StageNumbers = Field(
        (), description="Stages that take part, counted from 1 (off-stage); empty for all."
    )
    grid: int = Field(
        14, ge=1, description="Tokens a side that a stage is embedded in (off-embed-shape has its square)."
    )
    dim: int = Field(256, ge=1, description="Width of such a token (off-embed-shape).")
    heads: int = Field(
        4, ge=1, validate_default=True, description="Heads of encoder and decoder, a divisor of dim."
    )
    attention_dim: int = Field(
        512, ge=1, description="Width of queries and keys of the attention among stages (off-afd-dim)."
    )
    mixing: Mixing | None = Field(
        None,
        description="What of the student goes with the teacher's stage i: the sum of all stages weighed by "
        "attention; their plain sum, which the code comes down to; or stage i alone (none, without off-afd). "
        "None: by preset.",
    )
    cka: Literal["stages", "joint"] | None = Field(
        None,
        description="One similarity a stage and their mean, or a single one of all stages, divided by their "
        "number. None: by preset.",
    )

    @field_validator("heads")
    @classmethod
    def _divides(cls, heads: int, info: ValidationInfo) -> int:
        dim = info.data.get("dim", heads)
        if dim % heads:
            raise ValueError(f"Heads divide method.dim, which is {dim}")
        return heads


class Mixer(nn.Module):
    """For each of the teacher's stages a mean of the student's, weighed by how well they match.

    M_i = sum_j a_ij F_j, a_ij = softmax over j of (<q_i, k_j> + <p_t,i, p_s,j>) / sqrt(D): q and k are linear
    maps of the layer-normed embeddings of teacher and student, the product runs over tokens and width; p is a
    trained vector a stage.

    Args:
        count: S, number of stages.
        width: Of the embeddings.
        attention: D.

    Source:
        PAT ``distillers/off.py`` (``AFD``). Its sum runs over the stages and the attention's column
        separately, so the weights add up to one and M_i is the plain sum of all F_j; the attention learns
        nothing there. The map to values that it has beside is never used.
    """

    def __init__(self, count: int, width: int, attention: int) -> None:
        super().__init__()
        self.to_q = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, attention))
        self.to_k = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, attention))
        self.apply(initialise_projector)
        self.p_t = nn.Parameter(torch.empty(count, attention))
        self.p_s = nn.Parameter(torch.empty(count, attention))
        nn.init.xavier_normal_(self.p_t)
        nn.init.xavier_normal_(self.p_s)

    def forward(self, students: Tensor, teachers: Tensor) -> Tensor:
        """Embeddings `[B, S, L, E]` of both to M, the same shape."""
        return torch.einsum("bij,bjld->bild", self.attention(students, teachers), students)

    def attention(self, students: Tensor, teachers: Tensor) -> Tensor:
        """a `[B, S, S]`, rows adding up to 1."""
        queries, keys = self.to_q(teachers).flatten(2), self.to_k(students).flatten(2)
        scores = queries @ keys.transpose(1, 2) + self.p_t @ self.p_s.t()
        return (scores / math.sqrt(self.p_t.shape[1])).softmax(dim=2)


def summed(students: Tensor) -> Tensor:
    """What the published mixing comes down to: for every stage the sum of all `[B, S, L, E]`."""
    return students.sum(dim=1, keepdim=True).expand_as(students)


class Decoder(nn.Module):
    """From encoded features back to the stages of one network, in the manner of the other's family.

    In a convolutional manner: batch norm, a depthwise 3x3 and a 1x1 convolution without bias, ReLU, on the
    map that the tokens make. In a token's manner: a ViT's block. Then an `Expansion` a stage; stages of one
    form share it.

    Args:
        forms: What the stages are.
        grid: G, tokens a side.
        width: Of a token.
        heads: Of the block.
        by_tokens: Which manner.
    """

    def __init__(self, forms: Sequence[Form], grid: int, width: int, heads: int, by_tokens: bool) -> None:
        super().__init__()
        self.grid, self.by_tokens, self.names = grid, by_tokens, [_name(form) for form in forms]
        self.body: nn.Module = _block(width, heads) if by_tokens else _convolutions(width)
        self.expansions = nn.ModuleDict(
            {_name(form): Expansion(form, grid, width, from_map=not by_tokens) for form in forms}
        )

    def forward(self, encoded: Tensor) -> list[Tensor]:
        """`[B, S, G * G, D]` to the S stages' maps."""
        stages = encoded.unbind(dim=1)
        inputs = stages if self.by_tokens else [as_grid(stage, (self.grid, self.grid)) for stage in stages]
        return [
            self.expansions[name](self.body(stage)) for name, stage in zip(self.names, inputs, strict=True)
        ]


@register_method(
    "off",
    summary="match both networks' features behind a shared encoder, decode them in the other's manner",
    source="jimmylin0979/PAT (code), the predecessor of Lin et al. 2025",
)
class OFF(Method):
    """L = w_ce CE + w_kd KD + g w_low MSE(E_s, E_t) + w_cka CKA(E_s, E_t) + w_rec (R_s + R_t).

    - Every stage of both networks is embedded as G x G tokens (`Embedding`; stages of one form share one,
      those of the two networks too). Those of the student are mixed for each stage of the teacher, see
      `Mixer`.
    - A ViT's block, the same for both networks, encodes them: E `[B, S, G * G, D]`, in which the family is
      meant to show less. MSE is the mean over all numbers, CKA the `cka_loss`; g = min((epoch + 1) / warmup,
      1).
    - R_s is the sum over stages of the mean squared error of the student's stages decoded from E_s in the
      manner of the teacher's family, R_t that of the teacher's stages from E_t in the manner of the
      student's (`Decoder`). The student's stages aren't detached as targets, in the code neither.

    Everything is trained with the student and dropped at the end. Stages pair as `pairs.partners` says and
    are numbered among the pairs. Batches need two samples or more, for the batch norms.

    No paper describes it; this follows PAT ``distillers/off.py``. What is evidently not meant there is the
    preset ``published``: the attention cancels (`Mixer`), so none is built; and the CKA that its comments
    have for each stage is a single one. Deviations: any numbers of stages and sides, and no checks for values
    that aren't finite in every step.
    """

    Config: ClassVar[type[Config]] = OFFConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks."""
        return STAGES

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build embeddings, attention, encoder and decoders."""
        self.build(form_pairs(nets, data))

    def build(self, pairs: Sequence[tuple[Form, Form]]) -> None:
        """Build the parts from plain numbers.

        Args:
            pairs: What the student's and the teacher's stages are.

        Raises:
            UserError: A stage isn't there.
        """
        config = self.config
        self.chosen = chosen_pairs(config.stages, len(pairs))
        students, teachers = ([pairs[place][side] for place in self.chosen] for side in (0, 1))
        self.names = [_name(form) for form in students], [_name(form) for form in teachers]
        self.embeddings = nn.ModuleDict(
            {_name(form): Embedding(form, config.grid, config.dim) for form in (*students, *teachers)}
        )
        self.mixer = None
        if config.switch("mixing") == "attention":
            self.mixer = Mixer(len(students), config.dim, config.attention_dim)
        self.encoder = _block(config.dim, config.heads)
        size = (config.grid, config.dim, config.heads)
        self.student_decoder = Decoder(students, *size, by_tokens=teachers[0].tokens)
        self.teacher_decoder = Decoder(teachers, *size, by_tokens=students[0].tokens)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config, pairs = self.config, stage_pairs(outs)
        students, teachers = ([pairs[place][side] for place in self.chosen] for side in (0, 1))
        ours, theirs = self.encode(students, teachers)
        low, cka = hint_loss(ours, theirs), cka_loss(ours, theirs, joint=config.switch("cka") == "joint")
        errors = [
            hint_loss(*pair)
            for decoder, encoded, stages in (
                (self.student_decoder, ours, students),
                (self.teacher_decoder, theirs, teachers),
            )
            for pair in zip(decoder(encoded), stages, strict=True)
        ]
        kd = kd_loss(outs.student.logits, teacher_of(outs).logits, config.temperature)
        return {
            "ce": self.supervised(batch, outs.student),
            "kd": config.kd_weight * kd,
            "low": ramp(clock, config.warmup_epochs) * config.low_weight * low,
            "cka": config.cka_weight * cka,
            "reconstruction": config.reconstruction_weight * torch.stack(errors).sum(),
        }

    def encode(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """E_s and E_t `[B, S, G * G, D]` of the chosen stages' maps."""
        ours, theirs = (
            torch.stack([self.embeddings[name](stage) for name, stage in zip(names, stages, strict=True)], 1)
            for names, stages in zip(self.names, (students, teachers), strict=True)
        )
        mixed = ours
        if self.mixer is not None:
            mixed = self.mixer(ours, theirs)
        elif self.config.switch("mixing") == "sum":
            mixed = summed(ours)
        both = torch.stack([mixed, theirs])
        encoded = self.encoder(both.flatten(0, 2)).unflatten(0, both.shape[:3])
        return encoded[0], encoded[1]


def _name(form: Form) -> str:
    """A form's name among modules."""
    return f"{'tokens' if form.tokens else 'map'}_{form.channels}x{form.height}x{form.width}"


def _block(width: int, heads: int) -> nn.Module:
    return Block(width, heads, norm_layer=nn.LayerNorm).apply(initialise_projector)


def _convolutions(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.ReLU(),
    ).apply(initialise_projector)
