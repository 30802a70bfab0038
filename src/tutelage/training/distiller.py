"""A method with its networks as one module for anybody's training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError, nearest
from tutelage.methods import Clock, DataSpec, Method, Networks, Phase, create_method
from tutelage.models.branches import load_branches
from tutelage.models.network import Ask, Network, probe
from tutelage.models.probing import Size, image_shape
from tutelage.models.weights import load_into, read_state_dict
from tutelage.training.step import Step

Take = Callable[[Tensor, Tensor], Batch]

DEVICES = ("", "cpu", "cuda")
"""Kinds of random generators, by the number that stands for them in a state; the first for none, and for a
kind that isn't here, whose generator begins afresh from the seed."""
LONGEST_STATE = torch.Generator().get_state().numel()
"""Bytes of the CPU generator's state; that of CUDA is shorter."""


class Distilled(NamedTuple):
    """What one batch gave.

    Attributes:
        loss: Scalar to call ``backward`` on.
        terms: Detached scalar terms by name, already weighted; they add up to the loss.
        logits: Detached `[B, C]`, the student's, to measure accuracy with.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor


def distiller(
    student: nn.Module | Sequence[nn.Module],
    teacher: nn.Module | None = None,
    method: str | Method = "kd",
    *,
    image_size: Size,
    teacher_weights: str | Path | None = None,
    teacher_preprocess: nn.Module | None = None,
    labels: Tensor | None = None,
    take: Take | None = None,
    view_count: int = 1,
    seed: int = 0,
    **settings: Any,
) -> Distiller:
    """Put networks and a method together for a training loop of your own.

    Call the result with images and labels, call ``backward`` on what it returns as ``loss``, and optimise its
    parameters. It is an ordinary module: ``parameters()`` are the student's and the method's, its state dict
    holds these and the method's memory, and none of the teacher, which follows it to any device all the same.

    Args:
        student: The network to train; several for mutual learning.
        teacher: The network to learn from; it is frozen. None for a method without one.
        method: Its name (``tutelage list methods``) or a `Method` of your own.
        image_size: Side, (H, W) or (C, H, W) of the images that will come.
        teacher_weights: A weights file to load into the teacher. Methods that use branches of the teacher
            (HSAKD) take them from there.
        teacher_preprocess: Applied to the images before the teacher, such as
            `tutelage.training.preprocessing.Renormalise`.
        labels: `[N]` int64 labels of the training set; needed by methods that remember every sample (CRD,
            PACKD). Every call then needs ``index``.
        take: Gives the batch for (index, view), as `DataSpec.take`; needed by PACKD.
        view_count: How many views ``take`` knows.
        seed: Of the method's random numbers (negatives, partners).
        **settings: Of the method (``tutelage show METHOD``).

    Raises:
        UserError: The method can't work with these networks, or needs more than is given.
    """
    chosen = method if isinstance(method, Method) else create_method(method, **settings)
    if isinstance(method, Method) and settings:
        raise UserError(f"'{min(settings)}' is a setting, but the method is made already; give its name")
    models = [student] if isinstance(student, nn.Module) else list(student)
    _check_roles(chosen, models, teacher)
    shape = image_shape(image_size)
    num_classes = probe(Network(models[0]), shape).logits[0]
    needs = chosen.needs.for_classes(num_classes)
    students = tuple(Network(model, needs.student, needs.student_role) for model in models)
    taught_by = None
    if teacher is not None and needs.teacher is not None:
        taught_by = _teacher(teacher, needs.teacher, teacher_weights, teacher_preprocess)
    nets = Networks(students, taught_by)
    for network in (*students, *([taught_by] if taught_by else [])):
        if (other := probe(network, shape).logits[0]) != num_classes:
            raise UserError(f"the networks have {num_classes} and {other} classes; make them equal")
    known = _Known(num_classes, shape, labels, take, view_count)  # type: ignore[arg-type]
    chosen.setup(nets, known)
    chosen.to(next(models[0].parameters()).device)
    return Distiller(nets.folded(shape), chosen, labels is not None, seed)


class Distiller(nn.Module):
    """See `distiller`.

    Attributes:
        students: The trained networks as the method sees them.
        method: The method with its trained parts and its memory.
        phases: Its stretches of training, in order; most methods have one.
        phase: The current one.
        epoch: Where training stands, as `set_epoch` told it; ramps of a method follow it.
        steps: Training batches seen in this phase.
    """

    epoch: Tensor
    steps: Tensor

    def __init__(self, nets: Networks, method: Method, indexed: bool, seed: int) -> None:
        """Args:
        nets: Networks as `Step` takes them.
        method: Already set up.
        indexed: Whether every call has to say which samples it brings.
        seed: Of the method's random numbers.
        """
        super().__init__()
        self.students = nn.ModuleList(nets.students)
        self.method = method
        self.phases: tuple[Phase, ...] = tuple(method.phases())
        self.phase = self.phases[0]
        self.register_buffer("epoch", torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))
        self._nets, self._indexed, self._seed = nets, indexed, seed
        self._generator: torch.Generator | None = None
        self._unwritten: Batch | None = None
        self._compiling: dict[str, Any] | None = None
        self._begun = len(self.phases) == 1
        self._enter(self.phase.name)

    @property
    def student(self) -> nn.Module:
        """The plain student, for evaluation and for saving: no branches, nothing of the method."""
        network = self.students[0]
        assert isinstance(network, Network)
        return self.method.export(network.model)

    def begin(self, name: str) -> Phase:
        """Enter a phase; a method with several wants each entered, in order, with an optimiser of its own.

        Args:
            name: Of the phase.

        Returns:
            The phase, which says how many epochs it takes (None: as many as you like), whether it updates
            weights (`Phase.update`), and at which rate.

        Raises:
            UserError: The method has no such phase.
        """
        known = [phase.name for phase in self.phases]
        if name not in known:
            hint = nearest(name, known)
            raise UserError(
                f"method '{self.method.name}' has no phase '{name}'{hint} (known: {', '.join(known)})"
            )
        self.write()
        self._begun = True
        self._enter(name)
        self.epoch.zero_()
        self.steps.zero_()
        return self.phase

    def set_epoch(self, epoch: int) -> None:
        """Tell where training stands: 0-based epoch within the phase."""
        self.epoch.fill_(epoch)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        index: Tensor | None = None,
        view: Tensor | None = None,
    ) -> Distilled:
        """The loss of one batch.

        Under autocast the networks alone compute in the lower precision; the loss is always float32.

        Args:
            images: `[B, 3, H, W]`, normalised.
            targets: `[B]` int64 labels or `[B, C]` distributions.
            index: `[B]` int64, rows of the training set; needed where the labels were given.
            view: `[B]` int64, how the images were augmented, where ``take`` can repeat it.

        Raises:
            UserError: Rows are missing, or the method's phases were not begun.
        """
        if not self._begun:
            known = ", ".join(phase.name for phase in self.phases)
            raise UserError(
                f"method '{self.method.name}' has phases ({known}); call begin(NAME) for each in turn"
            )
        if index is None and self._indexed:
            raise UserError(f"method '{self.method.name}' remembers samples; give each batch's rows as index")
        self.write()
        unknown = torch.zeros(len(targets), dtype=torch.int64, device=targets.device)
        index, view = (unknown if given is None else given for given in (index, view))
        batch = self.method.views(Batch(images, targets, index, view), self._random(images.device))
        clock = Clock(self.epoch.clone(), self.steps.clone())
        device = images.device.type
        passes = self._passes[0]
        passes.amp = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with nullcontext() if passes.amp is None else torch.autocast(device, enabled=False):
            result = passes(batch, clock)
        if self.training:
            self._unwritten = batch
            self.steps += 1
        else:
            self.method.discard()
        return result

    def write(self) -> None:
        """Write what the last batch left for the method's memory.

        The next call and ``state_dict()`` do it by themselves: by then the backward pass is over, before
        which a memory must not change.
        """
        if self._unwritten is not None:
            self.method.commit(self._unwritten)
            self._unwritten = None

    def compile(self, **options: Any) -> None:
        """Compile the step as a whole, instead of this module with its bookkeeping.

        Args:
            **options: Of ``torch.compile``.
        """
        self._compiling = {"fullgraph": True, **options}
        self._passes[0].compile(**self._compiling)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Students, method, memory, phase, and where the method's random numbers stand; no teacher."""
        self.write()
        return super().state_dict(*args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """What of the state is no module's: the phase, and where the method's random numbers stand.

        Bytes of a fixed number, because timm's moving average expects tensors in a state dict.
        """
        packed = torch.zeros(3 + LONGEST_STATE, dtype=torch.uint8)
        packed[0], packed[1] = self.phases.index(self.phase), self._begun
        if self._generator is not None and self._generator.device.type in DEVICES:
            random = self._generator.get_state()
            packed[2] = DEVICES.index(self._generator.device.type)
            packed[3 : 3 + len(random)] = random
        return packed

    def set_extra_state(self, state: Tensor) -> None:
        """Go on where `get_extra_state` was asked."""
        number, begun, device = state[:3].tolist()
        self._unwritten, self._begun = None, bool(begun)
        self._enter(self.phases[number].name)
        self._generator = None
        if DEVICES[device]:
            generator = self._random(torch.device(DEVICES[device]))
            generator.set_state(state[3 : 3 + len(generator.get_state())].cpu().clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> Distiller:
        """A copy, such as timm's moving average makes, that shares the teacher."""
        memo[id(self._nets.teacher)] = self._nets.teacher
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def _enter(self, name: str) -> None:
        self.phase = next(phase for phase in self.phases if phase.name == name)
        with_students = self.phase.trains == "student"
        passes = _Passes(self._nets, self.method, self.phase.objective, students=with_students)
        if self._compiling is not None:
            passes.compile(**self._compiling)
        # In a tuple, so that networks and method are not found twice among the module's parts.
        self._passes = (passes,)

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device.type != device.type:
            self._generator = torch.Generator(device=device).manual_seed(self._seed)
        return self._generator

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        """Move and convert the teacher too, although it is no part of the module."""
        super()._apply(fn, recurse)
        if self._nets.teacher is not None:
            self._nets.teacher._apply(fn, recurse)
        return self


class _Passes(Step):
    """A step that also hands over logits."""

    def forward(self, batch: Batch, clock: Clock) -> Distilled:  # type: ignore[override]
        """See `Step.forward`."""
        terms, measured = self.terms(batch, clock)
        loss = torch.stack(list(terms.values())).sum()
        detached = {name: term.detach() for name, term in terms.items()}
        return Distilled(loss, detached, measured.logits[:: self.rows].detach())


class _Known(DataSpec):
    """What is told of data that stay in somebody else's loop; what isn't is asked for when it is used."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is None:
            raise UserError(f"the method needs the training set; give distiller(..., {name}=...)")
        return value


def _check_roles(method: Method, students: Sequence[nn.Module], teacher: nn.Module | None) -> None:
    """Refuse networks that the method has no use for, or doesn't find."""
    needs = method.needs
    if len(students) != needs.students:
        raise UserError(
            f"method '{method.name}' trains {needs.students} network{'s' * (needs.students > 1)}, but "
            f"{len(students)} are given"
        )
    if (needs.teacher is None) != (teacher is None):
        verb = "uses no teacher, but one is given" if needs.teacher is None else "needs a teacher; give one"
        raise UserError(f"method '{method.name}' {verb}")


def _teacher(model: nn.Module, ask: Ask, weights: str | Path | None, preprocess: nn.Module | None) -> Network:
    """The frozen network, with its weights and branches."""
    network = Network(model, ask, "frozen")
    network.preprocess = preprocess
    if weights is not None:
        imported = read_state_dict(weights)
        load_into(model, imported.state, f"teacher weights {weights}")
        if network.branches is not None:
            load_branches(network.branches, imported.branches, f"teacher weights {weights}")
    elif network.branches is not None:
        raise UserError(
            "the method uses the teacher's branches; give the file that has them as teacher_weights"
        )
    return network
