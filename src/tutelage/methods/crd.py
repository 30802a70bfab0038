"""Contrastive representation distillation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.class_table import ClassTable
from tutelage.data.negatives import AliasTable, alias_table, check_negatives, draw_negatives, draw_rows
from tutelage.losses import contrast_loss, kd_loss, log_normaliser
from tutelage.methods.base import Clock, Config, DataSpec, Method, Needs, Networks, Outs, teacher_of
from tutelage.methods.memory import EmbeddingHead, Held, MemoryBank
from tutelage.methods.pairs import POOLED, pooled_pair, pooled_widths
from tutelage.methods.ranks import gather_rows
from tutelage.methods.registry import register_method


class CRDConfig(Config):
    """Defaults of RepDistiller's ``crd`` rows; with ``kd_weight`` 1 its CRD+KD rows."""

    crd_weight: float = Field(0.8, ge=0, description="Weight of the contrast in both directions (beta).")
    kd_weight: float = Field(0.0, ge=0, description="Weight of KD beside it (alpha); 0 leaves KD out.")
    temperature: float = Field(4.0, gt=0, description="Softmax temperature T of KD.")
    embedding_dim: int = Field(
        128, ge=1, description="Width that both pooled features are embedded in (feat_dim)."
    )
    negatives: int = Field(16384, ge=1, description="Rows that each image is contrasted with (nce_k).")
    draw: Literal["other", "any", "balanced"] = Field(
        "other",
        description="Where they come from: images of other classes (mode exact); any image, each equally "
        "likely (the memory's own draw); any image, each class equally likely.",
    )
    contrast_temperature: float = Field(0.07, gt=0, description="Temperature of the similarities (nce_t).")
    momentum: float = Field(0.5, ge=0, le=1, description="Share of the old embedding in the memory (nce_m).")


class ContrastState(NamedTuple):
    """What one batch makes of the state of `Contrast`.

    Attributes:
        student: `[B, D]`, rows of the student's memory.
        teacher: `[B, D]`, rows of the teacher's memory.
        log_z: `[2]`, logarithms of the normalising constants, the student's anchors first.
    """

    student: Tensor
    teacher: Tensor
    log_z: Tensor


class Contrast(nn.Module):
    """CRD's heads, its two memories and its constants.

    Each network's embeddings are scored against the other's memory. The first batch fixes Z for good; until
    then log Z is minus infinity. The state is read and its successor computed without being written, because
    the gradient depends on the old one.

    Args:
        student: Width of the student's features.
        teacher: Width of the teacher's features.
        embedding_dim: D.
        size: N, rows of the training subset.
        temperature: Of the similarities.
        momentum: Of the memories.
    """

    log_z: Tensor

    def __init__(
        self, student: int, teacher: int, embedding_dim: int, size: int, temperature: float, momentum: float
    ) -> None:
        super().__init__()
        self.embed_s = EmbeddingHead(student, embedding_dim)
        self.embed_t = EmbeddingHead(teacher, embedding_dim)
        self.memory_s = MemoryBank(size, embedding_dim)
        self.memory_t = MemoryBank(size, embedding_dim)
        self.register_buffer("log_z", torch.full((2,), -torch.inf))
        self.temperature, self.momentum = temperature, momentum

    def forward(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> tuple[Tensor, ContrastState]:
        """Contrast one batch.

        Args:
            student: Features `[B, D_s]`.
            teacher: Features `[B, D_t]`.
            chosen: `[B, K + 1]` int64 rows: column 0 each sample's own, the others its negatives.

        Returns:
            The sum of both directions' `contrast_loss`, and the state after the batch.
        """
        embeddings = self.embed_s(student), self.embed_t(teacher)
        against = self.memory_t, self.memory_s
        scores = [
            memory.scores(anchors.unsqueeze(1), chosen).squeeze(1) / self.temperature
            for anchors, memory in zip(embeddings, against, strict=True)
        ]
        size = len(self.memory_s.rows)
        first = torch.stack([log_normaliser(direction.detach(), size) for direction in scores])
        log_z = torch.where(self.log_z.isneginf(), _mean_over_processes(first), self.log_z)
        losses = [
            contrast_loss(direction - z, size) for direction, z in zip(scores, log_z.unbind(), strict=True)
        ]
        own = chosen[:, 0]
        rows = [
            memory.moved(own, embedding, self.momentum)
            for memory, embedding in zip((self.memory_s, self.memory_t), embeddings, strict=True)
        ]
        return torch.stack(losses).sum(), ContrastState(rows[0], rows[1], log_z)

    @torch.no_grad()
    def write(self, index: Tensor, state: ContrastState) -> None:
        """Take over the state after the batch with the rows ``index`` `[B]`."""
        self.memory_s.write(index, state.student)
        self.memory_t.write(index, state.teacher)
        self.log_z.copy_(state.log_z)


@register_method(
    "crd",
    summary="contrast each image's features with a memory of the other network's",
    source="Tian et al. 2020, arXiv 1910.10699",
)
class CRD(Method):
    """L = w_ce CE + w_kd KD + w_crd (C(f_s, memory of f_t) + C(f_t, memory of f_s)), C the `contrast_loss`.

    Both heads are trained, the teacher's too. The scores take the memories as they are; afterwards each row
    of the batch moves towards its new embedding. RepDistiller ``crd/criterion.py`` and ``crd/memory.py``,
    except that the negatives are drawn with replacement, see `draw_negatives`.
    """

    Config: ClassVar[type[Config]] = CRDConfig
    labels: Tensor

    @property
    def needs(self) -> Needs:
        """Pooled features of both networks, each image once a batch."""
        return replace(POOLED, repeats=False, plain=True)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build heads and memories, and the tables that negatives are drawn by."""
        config, labels = self.config, data.labels
        student, teacher = pooled_widths(nets, data)
        self.contrast = Contrast(
            student,
            teacher,
            config.embedding_dim,
            len(labels),
            config.contrast_temperature,
            config.momentum,
        )
        self.register_buffer("labels", labels, persistent=False)
        table = ClassTable.of(labels, data.num_classes)
        if config.draw == "other":
            check_negatives(table)
            self.table = Held(table)
        else:
            sizes = table.sizes[labels]
            cells = alias_table(1 / sizes if config.draw == "balanced" else torch.ones_like(sizes))
            self.cells = Held(AliasTable(*(part.to(labels.device) for part in cells)))

    def views(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with its negatives."""
        config = self.config
        if config.draw == "other":
            drawn = draw_negatives(self.labels[batch.index], self.table.parts, config.negatives, generator)
        else:
            drawn = draw_rows(self.cells.parts, (len(batch.index), config.negatives), generator)
        return batch._replace(negatives=drawn)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config = self.config
        assert batch.negatives is not None
        chosen = torch.cat([batch.index.unsqueeze(1), batch.negatives], dim=1)
        loss, state = self.contrast(*pooled_pair(outs), chosen)
        for name, value in zip(ContrastState._fields, state, strict=True):
            self.keep(name, value)
        terms = {"ce": self.supervised(batch, outs.student), "crd": config.crd_weight * loss}
        if config.kd_weight:
            kd = kd_loss(outs.student.logits, teacher_of(outs).logits, config.temperature)
            terms["kd"] = config.kd_weight * kd
        return terms

    def commit(self, batch: Batch) -> None:
        """Write the batch's rows into the memories, those of all processes, and the constants."""
        state = ContrastState(**self._kept)
        student, teacher = self.everyones(state.student), self.everyones(state.teacher)
        self.contrast.write(self.everyones(batch.index), ContrastState(student, teacher, state.log_z))
        self.discard()


def _mean_over_processes(logarithms: Tensor) -> Tensor:
    """log of the mean of exp(``logarithms``) over the processes."""
    everyones = gather_rows(logarithms.unsqueeze(0))
    return everyones.logsumexp(dim=0) - math.log(len(everyones))
