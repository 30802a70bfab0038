"""Measuring one training step: what its terms weigh, how long it takes, what memory it needs."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.methods import Clock, Networks
from tutelage.recipes import Recipe
from tutelage.training.answers import Pass, Plan, plan
from tutelage.training.build import Parts
from tutelage.training.hardware import amp_type
from tutelage.training.step import Step

TIMED_STEPS = 5
BEARABLE = 2e10
"""Multiply-adds of a step that a CPU is asked for; a few seconds where it has but two cores."""


def bearable_batch(recipe: Recipe, parts: Parts, macs: dict[str, int]) -> int:
    """The recipe's batch size, or fewer images where a step on a CPU would take too long to be waited for.

    Args:
        recipe: Gives the batch size.
        parts: Of the run.
        macs: Multiply-adds for an image of "student" and, where there is one, "teacher".
    """
    size = recipe.data.batch_size
    if parts.data.device.type != "cpu":
        return size
    prompted = parts.method.inserts() is not None
    # A backward pass costs two forward passes; a prompted teacher has one beside two forward passes.
    cost = 3 * len(parts.nets.students) * macs["student"] + (4 if prompted else 1) * macs.get("teacher", 0)
    fewer = int(BEARABLE / max(cost * parts.method.needs.views, 1))
    return min(size, max(fewer - fewer % 2, 2))


def probing_batch(parts: Parts, recipe: Recipe, size: int) -> tuple[Batch, Clock]:
    """A first training batch of ``size`` images after the method's views, and the clock at the end."""
    device = parts.data.device
    batch = next(iter(parts.data.train_batches(0, recipe.seed, size)))
    generator = torch.Generator(device=device).manual_seed(recipe.seed)
    # Ramps start at zero, where their terms would show no gradient; the last epoch shows them in full.
    clock = Clock(
        torch.full((), float(recipe.schedule.epochs - 1), device=device),
        torch.full(
            (),
            float(recipe.schedule.epochs * parts.data.steps_per_epoch(recipe.data.batch_size)),
            device=device,
        ),
    )
    return parts.method.views(batch, generator), clock


def gradient_shares(step: Step, batch: Batch, clock: Clock) -> dict[str, dict[str, float]]:
    """Value of each term and its share of the gradient that reaches the students.

    The share is the norm of the term's gradient over all student parameters, divided by the sum of those
    norms: 0 to 1, adding up to 1. A term near 0 does nothing, one near 1 drowns the rest.
    """
    was_training = step.training
    step.eval()  # running statistics stay as they are
    terms, _ = step.terms(batch, clock)
    parameters = [p for student in step.students for p in student.parameters() if p.requires_grad]
    norms: dict[str, Tensor] = {}
    for name, term in terms.items():
        if term.requires_grad:
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            squares = [(g.double() ** 2).sum() for g in gradients if g is not None]
            norms[name] = (
                torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)
            )
        else:
            norms[name] = torch.zeros((), dtype=torch.float64)
    step.train(was_training)
    step.method.discard()
    total = sum(float(norm) for norm in norms.values()) or 1.0
    return {
        name: {"value": float(terms[name].detach()), "gradient_share": float(norms[name]) / total}
        for name in terms
    }


def estimate(
    nets: Networks, step: Step, batch: Batch, clock: Clock, recipe: Recipe, parts: Parts, size: int
) -> dict[str, Any]:
    """Time and memory of a run, from a few steps on one batch; answers that are looked up count.

    Each phase counts with a step of its own. Where the batch is smaller than the recipe's, the time is
    multiplied, and to the memory that was measured comes what the other images' activations take.

    Args:
        nets: What the step runs.
        step: Of the last phase, eager.
        batch: After views.
        clock: To call the step with.
        recipe: Gives optimiser, epochs and the batch size.
        parts: Of the run.
        size: Images in the batch, before views.
    """
    device = parts.data.device
    step.train()
    activations = saved_bytes(nets, step, batch, clock)
    more = recipe.data.batch_size / size
    by_phase = phase_seconds(nets, step, batch, clock)
    seconds = by_phase[-1] * more
    table, saved, room = planned(recipe, parts), 0.0, 0.0
    if table is not None and nets.teacher is not None:
        saved = table.known * more * _teacher_seconds(Pass(nets.teacher, step.amp), batch)
        # On a CPU, rows that nothing is written to take no memory.
        room = table.bytes * (1 if device.type == "cuda" else table.filled)
    steps = parts.data.steps_per_epoch(recipe.data.batch_size)
    lengths = [phase.epochs or recipe.schedule.epochs for phase in parts.method.phases()]
    an_epoch = [max(each * more - saved, 0.0) * steps for each in by_phase]
    hours = sum(each * epochs for each, epochs in zip(an_epoch, lengths, strict=True)) / 3600
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    known = "" if table is None else f", {table.known:.0%} of the teacher's answers looked up"
    scaled = "" if more == 1 else f", on batches of {size} and scaled to {recipe.data.batch_size}"
    return {
        "probe_batch": size,
        "step_seconds": round(seconds, 4),
        "images_per_second": round(recipe.data.batch_size / seconds, 1),
        "steps_per_epoch": steps,
        "training_hours": round(hours, 3),
        "peak_memory_mib": round((memory + (more - 1) * activations + room) / 2**20),
        "activations_mib": round(activations * more / 2**20),
        "note": f"eager forward and backward passes{scaled}{known}, without optimiser, evaluation and "
        "compilation",
    }


def planned(recipe: Recipe, parts: Parts) -> Plan | None:
    """The table of the teacher's answers that the run would keep."""
    if parts.nets.teacher is None:
        return None
    return plan(recipe, parts.nets.teacher, parts.method, parts.data, amp_type(recipe, parts.data.device))


def phase_seconds(nets: Networks, last: Step, batch: Batch, clock: Clock) -> list[float]:
    """What a step on ``batch`` takes in each phase of a method.

    Args:
        nets: What the steps run.
        last: The step of the last phase, eager.
        batch: After views.
        clock: To call the steps with.
    """
    found = []
    for phase in last.method.phases()[:-1]:
        students = phase.trains == "student"
        step = Step(nets, last.method, phase.objective, last.amp, students).train()
        found.append(_step_seconds(step, batch, clock, phase.update))
    return [*found, _step_seconds(last, batch, clock)]


def _step_seconds(step: Step, batch: Batch, clock: Clock, update: bool = True) -> float:
    def once() -> None:
        result = step(batch, clock)
        if update:
            result.loss.backward()
        step.zero_grad(set_to_none=True)
        step.method.commit(batch)

    return _seconds(once, batch.images.device)


def _teacher_seconds(teacher: Pass, batch: Batch) -> float:
    return _seconds(lambda: teacher(batch.images), batch.images.device)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median of some calls; the first, which is slower, doesn't count."""
    times = []
    for _ in range(TIMED_STEPS + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def saved_bytes(nets: Networks, step: Step, batch: Batch, clock: Clock) -> int:
    """What one forward pass keeps for the backward pass, beside parameters and buffers; nothing changes."""
    modules = [step] if nets.teacher is None else [step, nets.teacher]
    constants = [value for module in modules for value in (*module.parameters(), *module.buffers())]
    held = {value.untyped_storage().data_ptr() for value in constants}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    was_training = step.training
    step.eval()  # running statistics stay as they are
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        step(batch, clock)
    step.train(was_training)
    step.method.discard()
    return sum(kept.values())
