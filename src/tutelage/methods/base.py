"""The method contract: what a method declares, what it is given, what it returns.

One contract carries every method; the training loop has no special case for any of them.
`docs/architecture.md` shows how each family fits: plain logits (KD), features with a trained
projector (FitNet), rotations and branches (HSAKD), several students (mutual learning), memory banks
and a first stage (PACKD), prompts inside a frozen teacher (PAT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses import binary_cross_entropy, cross_entropy
from tutelage.methods.ranks import Counts, gather_rows
from tutelage.models.folding import folded
from tutelage.models.network import Ask, Network, Outputs, Role
from tutelage.models.probing import Size


class Clock(NamedTuple):
    """Where training stands, as scalars on the device, so that a ramp neither recompiles nor synchronises.

    Attributes:
        epoch: float32 scalar, 0-based epoch within the phase.
        step: float32 scalar, optimiser steps taken so far in the phase (0 at the first).
    """

    epoch: Tensor
    step: Tensor


@dataclass(frozen=True)
class Outs:
    """What the networks answered for one batch, in float32.

    Attributes:
        students: One `Outputs` a trained network; mutual learning has two or more, a phase that trains the
            method's parts alone none.
        teacher: The frozen teacher's answer (no gradient), or None for a method without one.
        prompted: The teacher's answer with the method's modules put in front of its stages, with the
            gradient graph through the frozen weights; None unless the method gives `inserts`.
    """

    students: tuple[Outputs, ...]
    teacher: Outputs | None = None
    prompted: Outputs | None = None

    @property
    def student(self) -> Outputs:
        """The first (in offline distillation the only) student's answer."""
        return self.students[0]


LOGITS = Ask()


@dataclass(frozen=True)
class Needs:
    """What a method asks for before training starts; the engine plans from it and refuses what can't be met.

    Attributes:
        student: What every student must hand over.
        teacher: What the teacher must hand over; None when the method has no teacher.
        student_branches: Width of every student's branch heads in multiples of the number of classes; 0 for
            no branches, 1 for class scores, 4 for class and rotation.
        teacher_branches: The same of the teacher's branches, which are part of its weights.
        student_role: "branches" trains the branches of a frozen backbone.
        students: How many networks are trained together on the same batches.
        views: Rows that `Method.views` makes of each sample, sample-major; row ``i * views`` is the
            plain view of sample i and the one that training accuracy is measured on.
        mixes: Whether images mixed of two samples, with distributions as targets, mean something to it.
        repeats: Whether a sample may stand in a batch several times; not where a memory has a row for each.
        plain: Whether `Method.views` hands the images on as they are, so that what the teacher answers
            follows from index and view alone. A method that keeps to the base's `views` need not say so.
    """

    student: Ask = LOGITS
    teacher: Ask | None = LOGITS
    student_branches: int = 0
    teacher_branches: int = 0
    student_role: Role = "trained"
    students: int = 1
    views: int = 1
    mixes: bool = True
    repeats: bool = True
    plain: bool = False

    def for_classes(self, num_classes: int) -> Needs:
        """The same with the width of the branch heads worked out for data of ``num_classes`` classes."""
        student, teacher = self.student, self.teacher
        if self.student_branches:
            student = replace(student, branches=self.student_branches * num_classes)
        if self.teacher_branches and teacher is not None:
            teacher = replace(teacher, branches=self.teacher_branches * num_classes)
        return replace(self, student=student, teacher=teacher)


MAIN_PHASE = "distil"
"""Name of a method's main stretch of training."""


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own objective.

    Attributes:
        name: Shown in logs.
        epochs: Length in epochs; None takes the recipe's.
        objective: Name of the method's function with the signature of `Method.forward`.
        update: False runs forward passes only (PACKD fills its memory that way for one epoch).
        trains: "student" trains the students and the method's parts. "method" trains the parts alone, on the
            teacher's answers: the students are not run, `Outs.students` is empty, nothing is evaluated.
        lr: Constant learning rate of this stretch; None takes the recipe's with its schedule.
        part: Name of the method's part that the stretch trains, where later runs of the same teacher, data
            and settings may take it over instead of training it again; empty otherwise.
        settings: The method's settings that the part depends on.
    """

    name: str
    epochs: int | None = None
    objective: str = "forward"
    update: bool = True
    trains: Literal["student", "method"] = "student"
    lr: float | None = None
    part: str = ""
    settings: tuple[str, ...] = ()

    @property
    def evaluated(self) -> bool:
        """Whether the students change in it, so that there is something to evaluate."""
        return self.update and self.trains == "student"


@dataclass(frozen=True)
class Networks:
    """The networks of a run: the trained students and, where the method has one, the frozen teacher."""

    students: tuple[Network, ...]
    teacher: Network | None = None

    @property
    def student(self) -> Network:
        """The first (usually the only) student."""
        return self.students[0]

    def folded(self, size: Size) -> Networks:
        """The same with a teacher that answers faster on images of ``size``, see `models.folding`."""
        return self if self.teacher is None else replace(self, teacher=folded(self.teacher, size))


@dataclass(frozen=True)
class DataSpec:
    """What a method may know about the training data when it is set up.

    Attributes:
        num_classes: Number of classes C.
        image_shape: (3, H, W) of the images the networks get.
        labels: int64 [N] on the device, the label of each row of the training subset; N is also the
            number of rows a memory bank needs, and `Batch.index` counts in it.
        take: Gives the augmented, normalised batch for (index [B], view [B]); lets a method fetch
            further samples, such as same-class partners, on the device.
        view_count: How many distinct views the augmentation has.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    labels: Tensor
    take: Callable[[Tensor, Tensor], Batch]
    view_count: int

    def __deepcopy__(self, memo: dict[int, object]) -> DataSpec:
        """Itself: a copy of a method, such as a moving average makes, sees the same data."""
        return self


class Config(BaseModel):
    """Settings shared by all methods. Frozen; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ce_weight: float = Field(1.0, ge=0, description="Weight of the cross entropy with the labels.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the label's mass spread evenly over all classes."
    )
    criterion: Literal["ce", "bce"] = Field(
        "ce",
        description="What compares scores with labels: cross entropy, or binary cross entropy of each class "
        "apart, mean over all classes.",
    )


class Method(nn.Module):
    """Base of all methods: the loss, and with it everything trainable or remembered beside the networks.

    A subclass sets `Config`, may override `needs`, `setup`, `phases`, `views`, `inserts` and `export`,
    and implements `forward`. Its trainable parts are submodules and so reach the optimiser; its state
    (banks, histories) lives in buffers, written in place or through `keep`, and so reaches the checkpoints;
    what a batch leaves in it is gathered from all processes by `everyones`.
    Nothing in it may synchronise with the host or keep state outside buffers.
    """

    Config: ClassVar[type[Config]] = Config
    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    teacher_method: ClassVar[str] = "none"
    """The method that trains a teacher as this one needs it."""

    def __init__(self, config: BaseModel) -> None:
        super().__init__()
        self.config: Any = config
        self._kept: dict[str, Tensor] = {}
        self.row_counts: Counts | None = None

    @property
    def needs(self) -> Needs:
        """What the method asks of networks and data; may depend on the config."""
        return Needs()

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Build trainable parts and buffers, once, before training; `models.network.probe` tells shapes."""

    def phases(self) -> Sequence[Phase]:
        """The stretches of training, in order."""
        return (Phase(MAIN_PHASE),)

    def views(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Make the rows that the networks see: [B] -> [B * needs.views], sample-major, on the device."""
        return batch

    def inserts(self) -> Sequence[nn.Module | None] | None:
        """Modules to put in front of the teacher's stages for a second, prompted pass; None for no pass."""
        return None

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """The named scalar terms of the loss, already weighted; their sum is minimised."""
        return {"ce": self.supervised(batch, outs.student)}

    def export(self, student: nn.Module) -> nn.Module:
        """The plain network for inference."""
        return student

    def keep(self, name: str, value: Tensor) -> None:
        """Hand over the new value of a buffer from within `forward`; it is written after the backward pass.

        A buffer that this step's gradient depends on must not be overwritten in `forward`: a compiled step
        keeps the buffer itself for its backward pass, not the value it had (torch 2.11), and the gradient
        would silently be that of the new value. Updating in place first and reading afterwards is safe.

        Args:
            name: Name under which `commit` gets it; by default that of the buffer.
            value: The new value; its graph is dropped.
        """
        self._kept[name] = value.detach()

    @torch.no_grad()
    def commit(self, batch: Batch) -> None:
        """Write what was kept; called once a step, after the backward pass. Override for a bank's rows."""
        for name, value in self._kept.items():
            self.get_buffer(name).copy_(value)
        self.discard()

    def discard(self) -> None:
        """Drop what was kept (a pass that does not count, such as a comparison of gradients)."""
        self._kept.clear()

    def everyones(self, rows: Tensor) -> Tensor:
        """The rows of a batch from all processes, in the order of their parts (`data.Share`), without graph.

        What a method remembers of a batch has to go through here, so that every process remembers the same.

        Args:
            rows: `[B, ...]`, a row for each sample of this process; `row_counts`, which the engine sets, says
                how many the others have.

        Returns:
            `[B of all processes, ...]`; ``rows`` itself where there is but one process.
        """
        return gather_rows(rows, self.row_counts)

    def supervised(self, batch: Batch, output: Outputs) -> Tensor:
        """Weighted `label_loss` of ``output``: a scalar."""
        return self.config.ce_weight * self.label_loss(output.logits, batch.targets)

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What scores `[B, C]` cost by the criterion, not weighted: a scalar.

        Args:
            logits: `[B, C]`.
            targets: As of a batch; the smoothing is done here, to mixed labels too.
        """
        criterion = binary_cross_entropy if self.config.criterion == "bce" else cross_entropy
        return criterion(logits, targets, self.config.label_smoothing)


def teacher_of(outs: Outs) -> Outputs:
    """The teacher's outputs; the engine guarantees them for a method whose needs name a teacher."""
    assert outs.teacher is not None
    return outs.teacher


def paired_stages(nets: Networks, method: str) -> int:
    """The number of stages that student and teacher have in common position.

    Raises:
        UserError: The counts differ, so that stage i of one has no partner in the other.
    """
    assert nets.teacher is not None
    student, teacher = len(nets.student.taps.stages), len(nets.teacher.taps.stages)
    if student != teacher:
        raise UserError(
            f"method '{method}' pairs stages one to one, but the student has {student} and the teacher "
            f"{teacher}; choose a pair with equal counts or a method that works on logits (kd, dkd, dist)"
        )
    return student


def check_paired_branches(nets: Networks, method: str) -> None:
    """Refuse networks whose branches have no partners.

    Raises:
        UserError: The numbers of branches differ.
    """
    everybody = [*nets.students, *([nets.teacher] if nets.teacher is not None else [])]
    counts = [net.branch_count for net in everybody]
    if len(set(counts)) > 1:
        raise UserError(
            f"method '{method}' pairs branches one to one, but the networks have "
            f"{' and '.join(map(str, counts))} of them; choose networks with equally many, or a method that "
            "works on logits (kd, dkd, dist)"
        )
