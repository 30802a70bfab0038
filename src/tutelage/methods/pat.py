"""PAT: a student seen from the teacher's perspective, and a teacher that is prompted towards the student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses import hcl_loss, kd_loss
from tutelage.methods.base import (
    Clock,
    Config,
    DataSpec,
    Method,
    Needs,
    Networks,
    Outs,
    teacher_of,
)
from tutelage.methods.choices import Presets, StageNumbers, SwitchConfig
from tutelage.methods.pairs import on_tokens, partners
from tutelage.methods.pat_modules import Position, RegionAttention, class_token_last
from tutelage.methods.pat_prompts import Entrance, FedPrompt, PromptBlock, PromptSwitches
from tutelage.methods.projectors import MapAligner, TokenAligner, as_grid
from tutelage.methods.registry import register_method
from tutelage.models.network import Ask, Outputs, probe

PRESETS: Presets = {
    "corrected": {"se": "rescale", "token_layout": "correct", "class_token": "first", "position": "token"},
    "published": {"se": "gate", "token_layout": "scrambled", "class_token": "last", "position": "batch"},
}
"""What each of these settings is where it isn't named."""


class PATConfig(SwitchConfig):
    """Defaults of PAT's script, with its mistakes corrected; names in brackets are its flags.

    All published commands have weights of 1 and a temperature of 1.
    """

    presets: ClassVar[Presets] = PRESETS
    preset: Literal["corrected", "published"] = Field(
        "corrected",
        description="Sets se, token_layout, class_token and position where they aren't named: to what was "
        "meant, or to what the code of the published tables does.",
    )
    kd_weight: float = Field(
        1.0, ge=0, description="Weight of KD with the plain teacher (kd-loss-weight; alpha in the paper)."
    )
    temperature: float = Field(1.0, gt=0, description="Softmax temperature T of KD (kd-temperature).")
    feature_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the distance to the prompted teacher's stages (pat-mse-loss-weight; beta).",
    )
    drift_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of what the prompts change in the teacher's answer (pat-reg-loss-weight; gamma).",
    )
    prompt_stages: StageNumbers = Field(
        (),
        description="Teacher's stages with a prompt in front, counted from 1 (pat-afp-stage); empty for all.",
    )
    regions: int = Field(
        16,
        ge=1,
        description="Regions of each of the student's stages, a square number; times the stages this is "
        "pat-raa-num-queries.",
    )
    dim: int = Field(512, ge=2, description="Width of a region's token (pat-raa-dim).")
    heads: int = Field(
        8, ge=1, validate_default=True, description="Heads of the attention, a divisor of dim."
    )
    se: Literal["rescale", "gate"] | None = Field(
        None,
        description="The prompts' squeeze and excitation answers with its input times the gate, or with the "
        "gate alone, which makes a prompt constant over the image. None: by preset.",
    )
    token_layout: Literal["correct", "scrambled"] | None = Field(
        None,
        description="How a prompt turns its map into tokens again: position by position, or as the numbers "
        "lie, which mixes positions and channels of a ViT, Swin or Mixer even before anything is learnt. "
        "None: by preset.",
    )
    class_token: Literal["first", "last"] | None = Field(
        None,
        description="Which token is taken for the class token; networks have it first. None: by preset.",
    )
    position: Position | None = Field(
        None,
        description="What the attention's sinusoids tell apart: tokens; samples of a batch; or none. "
        "None: by preset.",
    )
    detach_target: bool = Field(
        False,
        description="Keep the features' distance from training the prompts. They start as nothing, and the "
        "drift alone leaves them so; neither paper nor code detach.",
    )

    @field_validator("regions")
    @classmethod
    def _square(cls, regions: int) -> int:
        if math.isqrt(regions) ** 2 != regions:
            raise ValueError("Regions form a square grid; choose 1, 4, 9, 16, 25, 36, ...")
        return regions

    @field_validator("heads")
    @classmethod
    def _divides(cls, heads: int, info: ValidationInfo) -> int:
        dim = info.data.get("dim", heads)
        if dim % heads:
            raise ValueError(f"Heads divide method.dim, which is {dim}")
        return heads


@register_method(
    "pat",
    summary="attention over all the student's regions, and prompts inside the teacher",
    source="Lin et al. 2025, arXiv 2501.08885",
)
class PAT(Method):
    """L = w_ce CE + w_kd KD(z_s, z_t) + w_f sum over stages of HCL(A_i, G_i) + w_d KL(z_t, z_p).

    z_t is the plain teacher's answer, z_p and G_i answer and stages of the prompted one; the KL has T = 1.

    - A_i: regions of all the student's stages attend to each other (`RegionAttention`); what comes back to
      stage i is brought to the shape of G_i by an aligner.
    - In front of the teacher's stages stand prompts (`FedPrompt`), fed with A_i - G_i of the step before. The
      teacher itself is frozen; its gradient is needed all the same, to reach the prompts. HCL trains them
      too, so the target moves towards what the student can reach; the KL holds it back.

    Stages pair one to one, those of networks with different counts as `pairs.partners` says; stages without a
    partner have no part in it. Attention, aligners and prompts are trained with the student and dropped at
    the end. Batches need two samples or more, for the batch norms.

    The code of the published tables (PAT ``distillers/pat.py``) departs from its paper; each departure is a
    setting (``se``, ``token_layout``, ``class_token``, ``position``) but one: there the plain teacher of
    each epoch's first step is in training mode, so that its drop path acts and its batch norms drift; a
    teacher here is frozen. In the code a last batch that isn't full is dropped; here it counts, see
    `FedPrompt`. In the first step, for want of a gap, the fusions are idle; their gradients are zeros then.
    """

    Config: ClassVar[type[Config]] = PATConfig

    @property
    def needs(self) -> Needs:
        """Stages of both networks, with the class tokens where these are taken for patches."""
        ask = Ask(stages=True, prefix=self.config.switch("class_token") == "last")
        return Needs(student=ask, teacher=ask)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build attention, aligners and prompts."""
        assert nets.teacher is not None
        student, teacher = (probe(net, data.image_shape) for net in (nets.student, nets.teacher))
        counts = [len(net.taps.stages) for net in (nets.student, nets.teacher)]
        taps = nets.teacher.taps
        entrances = [None if shape is None else Entrance.of(shape, taps) for shape in teacher.inputs]
        tokens = on_tokens(nets.teacher, teacher)
        self.build(student.stages[: counts[0]], teacher.stages[: counts[1]], entrances, tokens)

    def build(
        self,
        students: Sequence[tuple[int, ...]],
        teachers: Sequence[tuple[int, ...]],
        entrances: Sequence[Entrance | None],
        tokens: bool,
    ) -> None:
        """Build the parts from plain numbers.

        Args:
            students: `[C, H, W]` of the student's stages.
            teachers: `[C, H, W]` of the teacher's; numbers that differ pair as `pairs.partners` says.
            entrances: What the teacher's stages receive; None where they have no single entrance.
            tokens: Whether the teacher's stages pass on tokens rather than maps.

        Raises:
            UserError: A prompt is asked for where there is no stage or no entrance.
        """
        config = self.config
        self.counts = len(students), len(teachers)
        self.ours, self.theirs = map(list, zip(*partners(*self.counts), strict=True))
        self.shapes, self.tokens = [teachers[stage] for stage in self.theirs], tokens
        taking_part = [students[stage] for stage in self.ours]
        self.attention_blending = RegionAttention(
            taking_part, config.regions, config.dim, config.heads, config.switch("position")
        )
        self.aligners = nn.ModuleList(self._aligner(shape) for shape in self.shapes)
        switches = PromptSwitches(
            rescale=config.switch("se") == "rescale",
            scrambled=config.switch("token_layout") == "scrambled",
            class_token_last=config.switch("class_token") == "last",
        )
        self.prompt_blocks = nn.ModuleDict()
        for stage in sorted(number - 1 for number in config.prompt_stages) or self.theirs:
            entrance = entrances[stage] if stage in self.theirs else None
            if entrance is None:
                why = "has no partner among the student's" if stage < len(teachers) else "isn't there"
                why = "has no single entrance" if stage in self.theirs else why
                raise UserError(
                    f"no prompt can stand in front of the teacher's stage {stage + 1}, because it {why}; "
                    "name other stages in method.prompt_stages or choose another teacher"
                )
            block = PromptBlock(entrance, teachers[stage], switches)
            self.prompt_blocks[str(stage)] = FedPrompt(block, teachers[stage])

    def _aligner(self, shape: tuple[int, ...]) -> nn.Module:
        regions, width = self.config.regions, self.config.dim
        if self.tokens:
            return TokenAligner(regions, width, shape[1] * shape[2], shape[0])
        return MapAligner(width, shape)

    def inserts(self) -> list[nn.Module | None]:
        """The prompt in front of each stage."""
        prompts = self._prompts()
        return [prompts.get(str(stage)) for stage in range(self.counts[1])]

    def views(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing changes; the prompts make room for as many gaps as the batch has rows."""
        for prompt in self._prompts().values():
            prompt.make_room(len(batch.targets))
        return batch

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config = self.config
        teacher, prompted = teacher_of(outs).logits, outs.prompted
        assert prompted is not None
        aligned, targets = self.align(outs.student), self.stages(prompted)
        for stage, ours, theirs in zip(self.theirs, aligned, targets, strict=True):
            if str(stage) in self.prompt_blocks:
                self.keep(str(stage), ours - theirs)
        distances = [
            hcl_loss(student, target.detach() if config.detach_target else target)
            for student, target in zip(aligned, targets, strict=True)
        ]
        return {
            "ce": self.supervised(batch, outs.student),
            "kd": config.kd_weight * kd_loss(outs.student.logits, teacher, config.temperature),
            "features": config.feature_weight * torch.stack(distances).sum(),
            "drift": config.drift_weight * kd_loss(prompted.logits, teacher, 1.0),
        }

    def align(self, student: Outputs) -> list[Tensor]:
        """The student's blended stages A_i as maps in the teacher's shapes."""
        side = math.isqrt(self.config.regions)
        aligned = []
        for regions, aligner, shape in zip(
            self.attention_blending(self._maps(student, self.counts[0], self.ours)),
            self.aligners,
            self.shapes,
            strict=True,
        ):
            if self.tokens:
                aligned.append(as_grid(aligner(regions), (shape[1], shape[2])))
            else:
                aligned.append(aligner(as_grid(regions, (side, side))))
        return aligned

    def stages(self, prompted: Outputs) -> list[Tensor]:
        """The stages G_i of the teacher as maps."""
        return self._maps(prompted, self.counts[1], self.theirs)

    def _maps(self, out: Outputs, count: int, chosen: Sequence[int]) -> list[Tensor]:
        """The ``chosen`` of a network's ``count`` stages, with what ``class_token`` makes of first tokens."""
        maps, prefixes = out.stages[:count], out.stages[count:]
        if not prefixes:
            return [maps[stage] for stage in chosen]
        return [class_token_last(maps[stage], prefixes[stage]) for stage in chosen]

    @torch.no_grad()
    def commit(self, batch: Batch) -> None:
        """Leave the gaps of this step to the prompts."""
        prompts = self._prompts()
        for stage, gap in self._kept.items():
            prompts[stage].write(gap)
        self.discard()

    def _prompts(self) -> dict[str, FedPrompt]:
        return {
            stage: prompt for stage, prompt in self.prompt_blocks.items() if isinstance(prompt, FedPrompt)
        }
