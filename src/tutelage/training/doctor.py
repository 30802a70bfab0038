"""A look before training: does everything fit, what is tapped and added, what will it cost."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from tutelage.data import ImageData
from tutelage.models.network import Network
from tutelage.recipes import ModelRecipe, Recipe
from tutelage.training.anatomy import Part, describe_network_taps, describe_parts, stages_of
from tutelage.training.build import Parts, assemble
from tutelage.training.distributed import remembered
from tutelage.training.evaluate import evaluate
from tutelage.training.flags import resolve_flags
from tutelage.training.hardware import amp_type, pick_device, set_up_torch
from tutelage.training.loading import image_size
from tutelage.training.measuring import (
    TIMED_STEPS,
    bearable_batch,
    estimate,
    gradient_shares,
    planned,
    probing_batch,
)
from tutelage.training.networks import network_facts
from tutelage.training.preprocessing import own_normalisation, sidecar_of
from tutelage.training.progress import Reporter
from tutelage.training.schedules import warmup_warning
from tutelage.training.shown import unlike_noted
from tutelage.training.stand_in import data_or_stand_in
from tutelage.training.starting import accuracy_warning
from tutelage.training.step import Step

LOOK = 2
"""Images that go through the networks to see shapes; batch norms need more than one."""


def doctor(
    recipe: str | Recipe | None = None,
    *,
    settings: Iterable[str] = (),
    task: str | None = None,
    measure: bool = True,
    probe_batch: int | None = None,
    reporter: Reporter | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """Examine a run without training it; nothing is written.

    Neither the teacher's weights nor the data need be there: what depends on them is left out, and a warning
    says so.

    Args:
        recipe: As for `jobs.distill`.
        settings: ``key.path=value`` overrides.
        task: "distill" or "train"; None means "train" where ``model`` names the network, else the recipe's.
        measure: Evaluate the teacher and time a few steps; False only describes.
        probe_batch: Images in the timed steps; None takes the recipe's batch size, on a CPU fewer where a
            step would take too long.
        reporter: Where it is said what takes time; None shows nothing.
        **flags: Keys of `flags.FLAGS`.

    Returns:
        - ``warnings``: sentences.
        - ``data``: what the images are, and whether they are there.
        - ``networks``: by role: size, cost, accuracy now and as noted, own normalisation, the image size it
          was made for and gets, and ``taps`` (see `anatomy.describe_network_taps`).
        - ``method``: its settings and how many values it trains and remembers.
        - ``parts``: what is trained beside the networks, see `anatomy.Part`.
        - ``cost``: multiply-adds for an image of networks and parts, passes of the teacher in a step, and
          ``answers``: of the table of its answers ``kept``, ``known`` (share that the run finds in it) and
          ``bytes`` (when it is full); None where there is none.
        - ``terms``: value and share of the student's gradient of each loss term on one batch.
        - ``estimate``: seconds, memory. This and ``terms`` are None without ``measure``.

    Raises:
        UserError: The run can't start at all; the sentence says why.
    """
    if task is None and flags.get("model") is not None:
        task = "train"
    reporter = reporter or Reporter(quiet=True)
    resolved = resolve_flags(task, recipe, settings, flags)
    device = pick_device(resolved.runtime.device)
    set_up_torch(resolved)
    data, missing = data_or_stand_in(resolved, device)
    parts = assemble(resolved, data, weightless=True)
    warnings = [] if missing is None else [f"{missing} (noise stands in, of the dataset's size and classes)"]
    warnings += filter(None, [warmup_warning(resolved.schedule)])
    networks = _networks(resolved, parts, warnings)
    if measure and missing is None and "teacher" in networks:
        _evaluate_teacher(resolved, parts, networks["teacher"], warnings, reporter)
    probing_batch(parts, resolved, resolved.data.batch_size)  # makes the room that methods need for a batch
    looked = describe_parts(parts.nets, parts.method, *probing_batch(parts, resolved, LOOK))
    return {
        "warnings": warnings,
        "data": _data_facts(resolved, data, missing),
        "networks": networks,
        "method": {
            **resolved.method,
            "trainable_parameters": sum(p.numel() for p in parts.method.parameters() if p.requires_grad),
            "state_values": sum(value.numel() for value in remembered(parts.method).values()),
        },
        "normalisation": {"mean": list(parts.normalisation[0]), "std": list(parts.normalisation[1])},
        "parts": [asdict(part) for part in looked],
        "cost": _cost(resolved, parts, networks, looked),
        **_measured(resolved, parts, networks, measure, probe_batch, reporter),
    }


def _data_facts(recipe: Recipe, data: ImageData, missing: str | None) -> dict[str, Any]:
    return {
        "name": recipe.data.name,
        "there": missing is None,
        "classes": data.info.num_classes,
        "image_size": list(image_size(data)),
        "train_images": data.train_size,
        "test_images": data.size("test"),
    }


def _networks(recipe: Recipe, parts: Parts, warnings: list[str]) -> dict[str, dict[str, Any]]:
    networks = {"student": _examine(recipe.student, parts.nets.student, parts)}
    if parts.nets.teacher is None or recipe.teacher is None:
        return networks
    networks["teacher"] = found = _examine(recipe.teacher, parts.nets.teacher, parts)
    made_for, gets = found["input_size"], found["image_size"]
    if made_for and made_for != gets:
        warnings.append(
            f"the teacher '{recipe.teacher.name}' was made for {made_for[0]}x{made_for[1]} images, but gets "
            f"{gets[0]}x{gets[1]}; its accuracy is that at this size (teacher.image_size changes it)"
        )
    other = unlike_noted(recipe, parts.data)
    if other:
        warnings.append(other)
    if not recipe.teacher.has_weights:
        warnings.append(
            f"the teacher '{recipe.teacher.name}' has random weights: accuracy not checked; a run needs "
            "--teacher-weights FILE"
        )
    elif recipe.teacher.weights is not None and found["own_normalisation"] is None:
        warnings.append(
            "the teacher's weights carry no normalisation, so the dataset's is used; if they were trained "
            "with another, import them with 'tutelage weights import --mean --std'"
        )
    return networks


def _examine(part: ModelRecipe, network: Network, parts: Parts) -> dict[str, Any]:
    size = image_size(parts.data)
    config = getattr(network.model, "pretrained_cfg", None) or {}
    own = own_normalisation(part)
    return {
        **network_facts(part, network, size),
        "random": not part.has_weights,
        "input_size": list(config.get("input_size", ()))[-2:] or None,
        "own_normalisation": {"mean": list(own[0]), "std": list(own[1])} if own else None,
        "renormalised": own is not None and own != parts.normalisation,
        "stages": [[stage.channels, stage.reduction] for stage in stages_of(network)],
        "taps": describe_network_taps(network, size),
    }


def _evaluate_teacher(
    recipe: Recipe, parts: Parts, facts: dict[str, Any], warnings: list[str], reporter: Reporter
) -> None:
    """Add what the teacher reaches now to its facts; nothing where its weights are random."""
    if parts.nets.teacher is None or recipe.teacher is None or facts["random"]:
        return
    reporter.say(f"evaluating the teacher on {parts.data.size('test'):,} test images ...")
    began = time.perf_counter()
    test = evaluate(parts.nets.teacher, parts.data.eval_batches("test", recipe.data.eval_batch_size))
    facts["test"] = test
    facts["evaluation_seconds"] = round(time.perf_counter() - began, 2)
    facts["expected_top1"] = sidecar_of(recipe.teacher).get("top1")
    warning = accuracy_warning("teacher", test["top1"], facts["expected_top1"])
    if warning:
        warnings.append(warning)
    chance = 100.0 / parts.data.info.num_classes
    if test["top1"] < 2 * chance:
        warnings.append(
            f"the teacher reaches {test['top1']:.2f}% where guessing gives {chance:.2f}%; "
            "its weights do not belong to this dataset or architecture"
        )


def _cost(
    recipe: Recipe, parts: Parts, networks: dict[str, dict[str, Any]], looked: list[Part]
) -> dict[str, Any]:
    prompted = parts.method.inserts() is not None
    table = planned(recipe, parts)
    return {
        "answers": None if table is None else table._asdict(),
        "student_macs": networks["student"]["macs"],
        "teacher_macs": networks["teacher"]["macs"] if "teacher" in networks else None,
        "teacher_passes": 0 if "teacher" not in networks else 2 if prompted else 1,
        "teacher_backward": prompted,
        "parts_macs": sum(part.macs for part in looked),
        "parts_parameters": sum(part.parameters for part in looked),
    }


def _measured(
    recipe: Recipe,
    parts: Parts,
    networks: dict[str, dict[str, Any]],
    measure: bool,
    probe_batch: int | None,
    reporter: Reporter,
) -> dict[str, Any]:
    if not measure:
        return {"terms": None, "estimate": None}
    size = probe_batch or bearable_batch(recipe, parts, {role: net["macs"] for role, net in networks.items()})
    reporter.say(f"measuring {TIMED_STEPS + 1} steps of {size} images ...")
    nets = parts.nets.folded(image_size(parts.data))
    objective = parts.method.phases()[-1].objective
    step = Step(nets, parts.method, objective, amp_type(recipe, parts.data.device))
    batch, clock = probing_batch(parts, recipe, size)
    shares = gradient_shares(step, batch, clock)
    return {"terms": shares, "estimate": estimate(nets, step, batch, clock, recipe, parts, size)}
