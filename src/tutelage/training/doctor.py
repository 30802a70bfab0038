"""A look before training: does everything fit, what does the teacher reach, what will it cost."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.methods import Clock
from tutelage.models.network import Network
from tutelage.models.taps import Stage
from tutelage.recipes import ModelRecipe, Recipe
from tutelage.training.build import Parts, assemble, image_size, network_facts, own_normalisation, sidecar_of
from tutelage.training.evaluate import evaluate
from tutelage.training.jobs import accuracy_warning, resolve_flags
from tutelage.training.loop import amp_type
from tutelage.training.optimisers import create_optimiser
from tutelage.training.progress import Reporter
from tutelage.training.step import Step

TIMED_STEPS = 5


def doctor(
    recipe: str | Recipe | None = None,
    *,
    settings: Iterable[str] = (),
    task: str | None = None,
    reporter: Reporter | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """Examine a run without training it; nothing is written.

    Args:
        recipe: As for `jobs.distill`.
        settings: ``key.path=value`` overrides.
        task: "distill" or "train"; None means "train" where ``model`` names the network, else the recipe's.
        reporter: Where it is said what takes time; None shows nothing.
        **flags: Keys of `jobs.FLAGS`.

    Returns:
        ``warnings`` (sentences), ``networks`` (size, accuracy now and as noted, own normalisation, input
        size), ``method``, ``terms`` (value and share of the student's gradient of each loss term on one
        batch) and ``estimate`` (seconds, memory).

    Raises:
        UserError: The run can't start at all; the sentence says why.
    """
    if task is None and flags.get("model") is not None:
        task = "train"
    reporter = reporter or Reporter(quiet=True)
    resolved = resolve_flags(task, recipe, settings, flags)
    parts = assemble(resolved)
    warnings: list[str] = []
    networks = {"student": _examine(resolved.student, parts.nets.student, parts, "student", warnings)}
    if parts.nets.teacher is not None and resolved.teacher is not None:
        networks["teacher"] = _examine(resolved.teacher, parts.nets.teacher, parts, "teacher", warnings)
        reporter.say(f"evaluating the teacher on {parts.data.size('test'):,} test images ...")
        began = time.perf_counter()
        test = evaluate(parts.nets.teacher, parts.data.eval_batches("test", resolved.data.eval_batch_size))
        networks["teacher"]["test"] = test
        networks["teacher"]["evaluation_seconds"] = round(time.perf_counter() - began, 2)
        expected = sidecar_of(resolved.teacher).get("top1")
        networks["teacher"]["expected_top1"] = expected
        warning = accuracy_warning("teacher", test["top1"], expected)
        if warning:
            warnings.append(warning)
        chance = 100.0 / parts.data.info.num_classes
        if test["top1"] < 2 * chance:
            warnings.append(
                f"the teacher reaches {test['top1']:.2f}% where guessing gives {chance:.2f}%; "
                "its weights do not belong to this dataset or architecture"
            )
    reporter.say(f"measuring {TIMED_STEPS + 1} steps ...")
    nets = parts.nets.folded(image_size(parts.data))
    objective = parts.method.phases()[-1].objective
    step = Step(nets, parts.method, objective, amp_type(resolved, parts.data.device))
    batch, clock = _first_batch(parts, resolved)
    return {
        "warnings": warnings,
        "networks": networks,
        "method": {
            **resolved.method,
            "trainable_parameters": sum(p.numel() for p in parts.method.parameters() if p.requires_grad),
            "state_values": sum(b.numel() for b in parts.method.buffers()),
        },
        "normalisation": {"mean": list(parts.normalisation[0]), "std": list(parts.normalisation[1])},
        "terms": gradient_shares(step, batch, clock),
        "estimate": _estimate(step, batch, clock, resolved, parts),
    }


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
        name: {"value": float(terms[name]), "gradient_share": float(norms[name]) / total} for name in terms
    }


def _examine(
    part: ModelRecipe, network: Network, parts: Parts, role: str, warnings: list[str]
) -> dict[str, Any]:
    size = image_size(parts.data)
    config = getattr(network.model, "pretrained_cfg", None) or {}
    native = tuple(config.get("input_size", ()))[-2:]
    if native and native != tuple(size) and role == "teacher":
        warnings.append(
            f"the teacher '{part.name}' was made for {native[0]}x{native[1]} images, but gets "
            f"{size[0]}x{size[1]}; its accuracy below is at that size"
        )
    own = own_normalisation(part)
    if own is None and part.weights is not None and role == "teacher":
        warnings.append(
            f"the {role}'s weights carry no normalisation, so the dataset's is used; if they were trained "
            "with another, import them with 'tutelage weights import --mean --std'"
        )
    return {
        **network_facts(part, network, size),
        "input_size": list(native) or None,
        "own_normalisation": {"mean": list(own[0]), "std": list(own[1])} if own else None,
        "renormalised": network.preprocess is not None,
        "stages": [[stage.channels, stage.reduction] for stage in _stages(network)],
    }


def _stages(network: Network) -> Sequence[Stage]:
    """The stages found in a network; none where it has none that a method could tap."""
    try:
        return network.taps.stages
    except UserError:
        return ()


def _first_batch(parts: Parts, recipe: Recipe) -> tuple[Batch, Clock]:
    device = parts.data.device
    batch = next(iter(parts.data.train_batches(0, recipe.seed, recipe.data.batch_size)))
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


def _estimate(step: Step, batch: Batch, clock: Clock, recipe: Recipe, parts: Parts) -> dict[str, Any]:
    device = parts.data.device
    optimiser = create_optimiser(step, recipe.optimiser)
    step.train()
    times = []
    for _ in range(TIMED_STEPS + 1):
        began = time.perf_counter()
        step(batch, clock).loss.backward()
        optimiser.zero_grad(set_to_none=True)
        step.method.commit(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])
    steps = parts.data.steps_per_epoch(recipe.data.batch_size)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "step_seconds": round(seconds, 4),
        "images_per_second": round(recipe.data.batch_size / seconds, 1),
        "steps_per_epoch": steps,
        "training_hours": round(seconds * steps * recipe.schedule.epochs / 3600, 3),
        "peak_memory_mib": round(memory / 2**20),
        "note": "eager forward and backward passes, without optimiser, evaluation and compilation",
    }
