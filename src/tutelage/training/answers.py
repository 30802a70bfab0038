"""The frozen teacher's answers, each worked out once and looked up from then on.

A training image that lies on the device has a fixed number of views (`data.CropFlip`: 162), and which of
them an epoch shows follows from (seed, epoch) alone. So the host knows before each step, without asking the
device, which answers are still missing; the others are rows of a table. Over 240 epochs of CIFAR a teacher is
asked half as often, and in later runs that find these answers (`answer_files`) hardly ever.

An answer does not depend on when it was asked for: the teacher always gets batches of one size, in which each
image is worked out by itself. A run that was killed has to ask again and still ends bit-identical on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data import ImageData, ResidentData
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError, UserError
from tutelage.methods import Method, Networks
from tutelage.models.fingerprint import weights_hash
from tutelage.models.network import Ask, Network, Outputs, probe
from tutelage.recipes import Recipe
from tutelage.training.answer_files import AnswerFiles
from tutelage.training.distributed import world
from tutelage.training.hardware import amp_type, exact_float32, hardware, wants_compile
from tutelage.training.loading import image_size
from tutelage.training.progress import Reporter
from tutelage.training.shown import own_wish
from tutelage.training.step import as_float, distrusted

WORTH = 0.1
"""Share of the answers that a run must find in the table for "auto" to keep one."""
GIB = 2**30


class Pass(nn.Module):
    """A teacher's plain pass: no gradient, and answers of the type that it computes in."""

    def __init__(self, teacher: Network, amp: torch.dtype | None) -> None:
        """Args:
        teacher: Frozen.
        amp: Autocast type, or None for float32.
        """
        super().__init__()
        self.teacher, self.amp = teacher, amp

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images `[B, 3, H, W]` to ``logits`` `[B, C]` and, where asked for, ``pooled`` `[B, D]`."""
        cast = nullcontext() if self.amp is None else torch.autocast(images.device.type, dtype=self.amp)
        with torch.no_grad(), cast:
            found = self.teacher(images)
        return {name: getattr(found, name) for name in fields(self.teacher.ask)}


class Answers:
    """A table with a row for each view of each training image, filled as a run asks for them.

    Attributes:
        asked: How many images the teacher was given so far.
    """

    def __init__(
        self,
        teacher: Pass,
        data: ResidentData,
        rows: int,
        compiled: bool = False,
        files: AnswerFiles | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """Args:
        teacher: Gives the answers.
        data: Its training images are asked about.
        rows: Images the teacher gets at a time, always.
        compiled: Compile the teacher, if its answers then agree with the eager ones.
        files: Answers of earlier runs, and where new ones are to be kept; None for neither.
        reporter: Told what takes time, and what goes wrong without stopping the run; None for nobody.
        """
        self.data, self.rows, self.files = data, rows, files
        self.asked = 0
        self._reporter = reporter or Reporter(quiet=True)
        self._teacher, self._compiled = teacher, compiled
        self._call: Callable[[Tensor], dict[str, Tensor]] | None = None
        self._tables: dict[str, Tensor] = {}
        self._new: list[Tensor] = []
        self._known = torch.zeros(data.train_size * data.view_count, dtype=torch.bool)  # on the host
        if files is not None:
            for numbers, answers in files.read(len(self._known)):
                self._write(numbers, numbers.to(data.device), answers)

    def batches(
        self, epoch: int, seed: int, batch_size: int, start_step: int = 0
    ) -> Iterator[tuple[Batch, Outputs]]:
        """The batches of `ImageData.train_batches`, each with the teacher's answers in float32."""
        data = self.data
        order = data.epoch_order(epoch, seed)
        steps = range(start_step, data.steps_per_epoch(batch_size))
        shown = [self._numbers(*data.own(order, step, batch_size)) for step in steps]
        missing = self._missing(torch.cat(shown))
        # The same numbers on the host, which decides, and on the device, which computes.
        waiting = zip(missing.split(self.rows), missing.to(data.device).split(self.rows), strict=True)
        batches = data.train_batches(epoch, seed, batch_size, start_step)
        for numbers, batch in zip(shown, batches, strict=True):
            while not bool(self._known[numbers].all()):
                self._ask(*next(waiting))
            yield batch, self._look_up(self._numbers(batch.index, batch.view))

    def keep(self) -> None:
        """Write the answers that are new since the last call to the files, where there are any.

        Where that fails, a warning says so, and nothing is written from then on: training need not care.
        """
        if self.files is None or not self._new:
            return
        numbers, self._new = torch.cat(self._new), []
        there = numbers.to(self.data.device)
        try:
            self.files.write(numbers, {name: table[there].cpu() for name, table in self._tables.items()})
        except TutelageError as error:
            self.files = None
            self._reporter.warn(f"{error}; going on without keeping the teacher's answers for later runs")

    def _numbers(self, index: Tensor, view: Tensor) -> Tensor:
        """Rows of the table."""
        return index * self.data.view_count + view

    def _missing(self, numbers: Tensor) -> Tensor:
        """Those of ``numbers`` that the table lacks, each once, in their order."""
        lacking = numbers[~self._known[numbers]]
        return torch.tensor(list(dict.fromkeys(lacking.tolist())), dtype=torch.int64)

    def _ask(self, numbers: Tensor, there: Tensor) -> None:
        lacking = self.rows - len(there)
        padded = torch.cat([there, there[-1:].expand(lacking)]) if lacking else there
        views = self.data.view_count
        images = self.data.take(padded // views, padded % views).images
        if self._call is None:
            self._call = self._agreed(images)
        self._write(numbers, there, self._call(images))
        if self.files is not None:
            self._new.append(numbers)
        self.asked += len(numbers)

    def _agreed(self, images: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
        """The pass to use: compiled, if it is to be and then says the same."""
        if not self._compiled:
            return self._teacher
        self._reporter.say("compiling the teacher and comparing its answers with the eager ones ...")
        compiled = torch.compile(self._teacher, fullgraph=True, dynamic=False)
        with exact_float32(images.device):
            exact = Pass(self._teacher.teacher, None)(images)
        why_not = distrusted("answers", exact, self._teacher(images), lambda: compiled(images))
        if why_not is None:
            return compiled
        self._reporter.warn(f"{why_not}; going on without compiling the teacher")
        return self._teacher

    def _write(self, numbers: Tensor, there: Tensor, answers: dict[str, Tensor]) -> None:
        for name, values in answers.items():
            if name not in self._tables:  # on a CPU, memory that nothing is written to costs nothing
                shape = (len(self._known), values.shape[1])
                self._tables[name] = values.new_empty(shape, device=self.data.device)
            table = self._tables[name]
            table.index_copy_(0, there, values[: len(there)].to(table))
        self._known[numbers] = True

    def _look_up(self, there: Tensor) -> Outputs:
        found = {name: table.index_select(0, there) for name, table in self._tables.items()}
        return as_float(Outputs(found["logits"], found.get("pooled")))


def fields(ask: Ask) -> tuple[str, ...]:
    """What a table of answers to ``ask`` holds."""
    return ("logits", "pooled") if ask.pooled else ("logits",)


def answers_for(
    recipe: Recipe,
    nets: Networks,
    method: Method,
    data: ImageData,
    amp: torch.dtype | None,
    reporter: Reporter | None = None,
) -> Answers | None:
    """The table of a run, or None where the teacher is to be asked in every step.

    Args:
        recipe: Says what is wanted (``runtime.teacher_answers``).
        nets: With the teacher as the step uses it.
        method: Set up.
        data: Of the run.
        amp: Autocast type of the step.
        reporter: See `Answers`.
    """
    teacher = nets.teacher
    if teacher is None or plan(recipe, teacher, method, data, amp) is None:
        return None
    assert isinstance(data, ResidentData)
    compiled = wants_compile(recipe, data.device)
    lasting = recipe.runtime.teacher_answers == "disk"
    files = AnswerFiles(answer_facts(recipe, teacher, data, amp, compiled)) if lasting else None
    return Answers(Pass(teacher, amp), data, recipe.data.batch_size, compiled, files, reporter)


class Plan(NamedTuple):
    """What a table of answers is to be.

    Attributes:
        kept: "memory" or "disk".
        known: Share of the answers that a first run finds in it.
        bytes: What it takes on the device when it is full.
        filled: Share of the table that a first run fills.
    """

    kept: str
    known: float
    bytes: int
    filled: float


def plan(
    recipe: Recipe, teacher: Network, method: Method, data: ImageData, amp: torch.dtype | None
) -> Plan | None:
    """The table that a run keeps, or None where it keeps none; arguments as for `answers_for`."""
    wish = recipe.runtime.teacher_answers
    if wish == "off" or cannot_keep(recipe, teacher, method, data, amp):
        return None
    epochs = sum(phase.epochs or recipe.schedule.epochs for phase in method.phases())
    # Of several processes each sees a part of the images, another one every epoch.
    views = data.view_count * world()
    known = known_share(views, epochs)
    if wish == "auto" and known < WORTH:
        return None
    size = table_bytes(teacher, data, amp)
    return Plan("disk" if wish == "disk" else "memory", known, size, filled_share(views, epochs))


def check_answers(recipe: Recipe, nets: Networks, method: Method, data: ImageData) -> None:
    """Refuse a table that was asked for by name and that there can't be.

    Raises:
        UserError: It was; the sentence says why there can't be one.
    """
    wish = recipe.runtime.teacher_answers
    if wish not in ("memory", "disk"):
        return
    amp = amp_type(recipe, data.device)
    why_not = (
        f"method '{method.name}' has no teacher"
        if nets.teacher is None
        else cannot_keep(recipe, nets.teacher, method, data, amp)
    )
    if why_not:
        raise UserError(
            f"there can be no table of the teacher's answers, because {why_not}; set runtime.teacher_answers "
            "to auto"
        )


def taught_batches(
    data: ImageData, answers: Answers | None, epoch: int, seed: int, batch_size: int, start_step: int
) -> Iterator[tuple[Batch, Outputs | None]]:
    """Training batches with the teacher's answers, or with None where it is to be asked in the step.

    Args:
        data: Of the run.
        answers: The table, if there is one.
        epoch: As for `ImageData.train_batches`, like the others.
        seed: Of the run.
        batch_size: Images a batch.
        start_step: First step to yield.
    """
    where = (epoch, seed, batch_size, start_step)
    return answers.batches(*where) if answers else ((batch, None) for batch in data.train_batches(*where))


def cannot_keep(
    recipe: Recipe, teacher: Network, method: Method, data: ImageData, amp: torch.dtype | None
) -> str | None:
    """Why a table of answers is impossible, or too large; None where it is neither."""
    if not isinstance(data, ResidentData):
        return "images that are read from files have too many views"
    if data.mixing is not None:
        return "images are mixed (data.mixup, data.cutmix), each time another way"
    if teacher.ask.stages or teacher.ask.branches:
        return f"method '{method.name}' asks the teacher for more than scores and pooled features"
    if type(method).views is not Method.views and not method.needs.plain:
        return f"method '{method.name}' makes images of its own"
    size = table_bytes(teacher, data, amp)
    if size > recipe.runtime.cache_gib * GIB:
        return (
            f"{data.train_size:,} images in {data.view_count:,} views take {size / GIB:.3g} GiB, more than "
            f"runtime.cache_gib allows ({recipe.runtime.cache_gib:g})"
        )
    return None


def table_bytes(teacher: Network, data: ImageData, amp: torch.dtype | None) -> int:
    """Bytes of a full table."""
    numbers = sum(widths(teacher, data).values())
    return data.train_size * data.view_count * numbers * (amp or torch.float32).itemsize


def widths(teacher: Network, data: ImageData) -> dict[str, int]:
    """How many numbers there are in each field of an answer."""
    shapes = probe(teacher, image_size(data))
    return {name: getattr(shapes, name)[0] for name in fields(teacher.ask)}


def known_share(views: int, epochs: int) -> float:
    """Share of the answers that a first run of ``epochs`` finds in its table; an image has ``views``.

    Of v views of an image e epochs show ``v (1 - (1 - 1/v)^e)`` different ones on average.
    """
    return 1 - views * filled_share(views, epochs) / epochs


def filled_share(views: int, epochs: int) -> float:
    """Share of the views of an image that ``epochs`` show at least once, on average."""
    return 1 - (1 - 1 / views) ** epochs


def answer_facts(
    recipe: Recipe, teacher: Network, data: ResidentData, amp: torch.dtype | None, compiled: bool
) -> dict[str, Any]:
    """Everything that decides about an answer to the last bit, as JSON can hold it."""
    assert recipe.teacher is not None
    return {
        "network": [recipe.teacher.name, recipe.teacher.args],
        "weights": weights_hash(teacher),
        "wish": own_wish(teacher.preprocess),
        "answers": widths(teacher, data),
        "data": data.identity(),
        "batch": recipe.data.batch_size,
        "precision": str(amp),
        "channels_last": recipe.runtime.channels_last,
        "compiled": compiled,
        "torch": torch.__version__,
        "hardware": [hardware(data.device)["device"], torch.backends.cpu.get_cpu_capability()],
    }
