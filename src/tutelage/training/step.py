"""One training step: from a batch to the gradients, without talking to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data import ImageData
from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.methods import Clock, Method, Networks, Outs, teacher_of
from tutelage.models.network import Network, Outputs
from tutelage.training.distributed import from_all, world
from tutelage.training.hardware import exact_float32
from tutelage.training.metrics import topk_correct


class StepResult(NamedTuple):
    """What a step leaves on the device.

    Attributes:
        loss: Scalar, with graph.
        terms: Detached scalar terms by name, in the order the method gives them.
        correct: int64 [2], top-1 and top-5 hits on the plain views: of the first student, or of the teacher
            where no student runs.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    correct: Tensor


class Step(nn.Module):
    """The trained networks and the method as one module: what is optimised, saved, compiled and distributed.

    The teacher is called by it but is no submodule: it is not trained, not saved and not wrapped.
    It runs under ``no_grad`` rather than ``inference_mode`` because features computed in inference mode
    can't be saved for the student's backward pass.
    """

    def __init__(
        self,
        nets: Networks,
        method: Method,
        objective: str = "forward",
        amp: torch.dtype | None = None,
        students: bool = True,
    ) -> None:
        """Args:
        nets: Students and teacher.
        method: Already set up.
        objective: Name of the method's function to call, see `Phase.objective`.
        amp: Autocast type for the networks, or None for float32. The loss is always float32.
        students: False leaves the students out, see `Phase.trains`.
        """
        super().__init__()
        self.students = nn.ModuleList(nets.students if students else ())
        self.method = method
        self.objective = objective
        self.rows = method.needs.views
        self.amp = amp
        self._teacher: list[Network] = [nets.teacher] if nets.teacher is not None else []
        if nets.teacher is not None and method.inserts() is not None:
            nets.teacher.install()  # before compiling: hooks that come later are not seen

    def forward(self, batch: Batch, clock: Clock, taught: Outputs | None = None) -> StepResult:
        """Run all passes on ``batch`` (after `Method.views`) and the objective.

        Args:
            batch: What the networks see.
            clock: Where training stands.
            taught: What the teacher answers, in float32, where that is known; None asks it.
        """
        terms, measured = self.terms(batch, clock, taught)
        loss = torch.stack(list(terms.values())).sum()
        with torch.no_grad():
            correct = topk_correct(measured.logits[:: self.rows], batch.targets[:: self.rows])
        return StepResult(loss, {name: term.detach() for name, term in terms.items()}, correct)

    def terms(
        self, batch: Batch, clock: Clock, taught: Outputs | None = None
    ) -> tuple[dict[str, Tensor], Outputs]:
        """The objective's terms with their graphs, and the outputs that accuracy is measured on."""
        device = batch.images.device.type
        cast = nullcontext() if self.amp is None else torch.autocast(device, dtype=self.amp)
        teacher, prompted = taught, None
        with cast:
            if self._teacher:
                if teacher is None:
                    with torch.no_grad():
                        teacher = as_float(self._teacher[0](batch.images))
                inserts = self.method.inserts()
                if inserts is not None:
                    prompted = as_float(self._teacher[0](batch.images, inserts=inserts))
            students = tuple(as_float(student(batch.images)) for student in self.students)
        outs = Outs(students, teacher, prompted)
        measured = outs.student if students else teacher_of(outs)
        return getattr(self.method, self.objective)(batch, outs, clock), measured


def as_float(out: Outputs) -> Outputs:
    """Outputs in float32 (no copy where they are already)."""
    return Outputs(
        out.logits.float(),
        None if out.pooled is None else out.pooled.float(),
        tuple(stage.float() for stage in out.stages),
        tuple(branch.float() for branch in out.branches),
    )


Call = Callable[..., StepResult]
"""A step, eager or compiled, with the arguments of `Step.forward`."""
TOLERANCE = 1e-3
"""Relative difference that other orders of summation in float32 may make."""
ONE_VALUE = "more than 1 value per channel"
"""What PyTorch's error says when a batch norm that trains gets a single value a channel."""


def compiled_or_eager(
    step: Step, batch: Batch, clock: Clock, taught: Outputs | None = None
) -> tuple[Call, str | None]:
    """Compile ``step`` whole and trust it only if its gradients on ``batch`` are as good as the eager ones.

    The measure is ``|g - g_exact| / |g_exact|`` over all gradients, g_exact from an eager float32 pass that
    doesn't round to TF32: the compiled step may be off by `TOLERANCE`, or by twice what rounding costs the
    eager step as configured.
    Of several processes each compares its own gradients, and all go on eager if one of them has a reason to.

    Args:
        step: The step; its parameters, buffers and the random state are as before afterwards.
        batch: One training batch, after views.
        clock: The clock to call it with.
        taught: The teacher's answers to call it with, see `Step.forward`.

    Returns:
        The compiled step and None, or the eager step and the reason why.
    """
    # Inductor's own random numbers differ from eager ones, and with them every dropout mask.
    compiled = torch.compile(step, fullgraph=True, dynamic=False, options={"fallback_random": True})
    reasons = from_all(_why_not(step, compiled, batch, clock, taught))
    found = [f"process {rank}: {why}" if len(reasons) > 1 else why for rank, why in enumerate(reasons) if why]
    return (step, found[0]) if found else (compiled, None)


def _why_not(step: Step, compiled: Call, *arguments: Any) -> str | None:
    """Why ``compiled`` is not to be used in the place of ``step``; None where it may be."""

    def call(*arguments: Any) -> StepResult:
        try:
            return compiled(*arguments)
        except Exception:
            step(*arguments)  # the other processes' calls may wait for the rows that this one gathers
            raise

    amp, step.amp = step.amp, None
    with exact_float32(arguments[0].images.device):
        exact = _gradients(step, step, *arguments)
    step.amp = amp
    as_exact = amp is None and arguments[0].images.device.type == "cpu"
    eager = exact if as_exact else _gradients(step, step, *arguments)
    chosen = compiled if world() == 1 else call
    return distrusted("gradients", exact, eager, lambda: _gradients(step, chosen, *arguments))


def distrusted(
    what: str,
    exact: dict[str, Tensor],
    eager: dict[str, Tensor],
    compiled: Callable[[], dict[str, Tensor]],
) -> str | None:
    """Why compiled code is not to be used in the place of eager one; None where it may be.

    Args:
        what: That is compared, for the sentence.
        exact: By name, computed eagerly in float32.
        eager: The same, computed eagerly as configured.
        compiled: Computes the same, compiled.
    """
    try:
        difference = relative_difference(compiled(), exact)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        return f"compiling failed ({type(error).__name__}: {reason})"
    rounding = relative_difference(eager, exact)
    if not difference <= max(TOLERANCE, 2 * rounding):
        return (
            f"compiled {what} differ from exact ones by {difference:.2g} (relative), eager ones by "
            f"{rounding:.2g}"
        )
    return None


def relative_difference(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """``|got - expected| / |expected|`` over all tensors; inf when names differ or one is not finite."""
    if got.keys() != expected.keys():
        return float("inf")
    squares = [((got[name] - value).double() ** 2).sum() for name, value in expected.items()]
    norms = [(value.double() ** 2).sum() for value in expected.values()]
    ratio = (torch.stack(squares).sum() / torch.stack(norms).sum().clamp(min=1e-30)).sqrt()
    return float(ratio) if bool(torch.isfinite(ratio)) else float("inf")


def check_last_batch(
    step: Step, data: ImageData, size: int, batch: Batch, clock: Clock, taught: Outputs | None = None
) -> None:
    """Refuse, before an epoch of work is lost, a last batch of one image that a batch norm can't do with.

    Args:
        step: As before afterwards, with the random state.
        data: Of the run.
        size: Of a batch.
        batch: One training batch, before views; where the last one has a single image, its first is tried.
        clock: The clock to call the step with.
        taught: The teacher's answers to the batch, see `Step.forward`.

    Raises:
        UserError: There is such a batch, and such a norm.
    """
    if data.batch_rows(data.steps_per_epoch(size) - 1, size) != 1:
        return
    alone = Batch(*(None if part is None else part[:1] for part in batch))  # type: ignore[arg-type]
    if taught is not None:
        taught = Outputs(taught.logits[:1], None if taught.pooled is None else taught.pooled[:1])
    step.method.row_counts = data.share.unequal(1)
    try:
        with _undone(step, data.device):
            views = step.method.views(alone, torch.Generator(device=data.device).manual_seed(0))
            step(views, clock, taught)
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
        raise UserError(
            f"the last batch of an epoch has a single image ({data.epoch_size:,} in batches of {size}), "
            "which a batch norm can't train on; change data.batch_size or set data.drop_last=true"
        ) from error


def _gradients(step: Step, call: Callable[..., Any], batch: Batch, *more: Any) -> dict[str, Tensor]:
    """Gradients of one call; puts buffers, gradients and random state back afterwards."""
    with _undone(step, batch.images.device):
        call(batch, *more).loss.backward()
        return {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}


@contextmanager
def _undone(step: Step, device: torch.device) -> Iterator[None]:
    """Put buffers, gradients and random state back after the block."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in step.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            step.zero_grad(set_to_none=True)
            step.method.discard()
            with torch.no_grad():
                for module, name, buffer, content in before:
                    setattr(module, name, buffer.copy_(content))  # views may have put a larger one there
