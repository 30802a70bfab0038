"""What a table needs to know of one finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import UserError
from tutelage.runs.record import FORMAT, RunFolder

NOT_LEARNT: dict[str, tuple[str, ...]] = {
    "data": ("dir", "download", "eval_batch_size"),
    "runtime": (
        "device",
        "workers",
        "reuse_stages",
        "teacher_answers",
        "cache_gib",
        "threads",
        "checkpoint_steps",
        "tensorboard",
    ),
}
"""Settings by section that leave what is learnt as it is; a recipe's hash leaves out the same."""

NOTED_LATER = ("test_digest", "train_digest")
"""What tells datasets of one name apart; unknown of runs of earlier versions, which don't note it."""


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        run: Its folder, as it was given.
        settings: What determines the result beside the seed, by dotted key; equal for two runs that differ
            only in their seed, their folders and where they computed.
        seed: Of the run.
        protocol: What must be equal for two accuracies to be comparable.
        method: Name of the method.
        student: Name of the trained network.
        parameters: Of the student.
        macs: Multiply-accumulates of the student for one image.
        teacher: Name of the teacher, or None.
        teacher_top1: Test top-1 (percent) of the teacher, measured when the run began, or None.
        top1: Test top-1 (percent) after the last epoch.
        best_top1: Test top-1 (percent) of the epoch that was best on `best_by`.
        best_by: "test" or "val".
        seconds: Time spent on training and the evaluation after each epoch.
    """

    run: Path
    settings: dict[str, str]
    seed: int
    protocol: dict[str, Any]
    method: str
    student: str
    parameters: int
    macs: int
    teacher: str | None
    teacher_top1: float | None
    top1: float
    best_top1: float
    best_by: str
    seconds: float


def read_result(path: str | Path) -> Result:
    """Read the result of the run in ``path``.

    Raises:
        UserError: There is no run, it has not finished, or its record is damaged or of another version.
    """
    run = RunFolder.open(Path(path))
    facts = run.facts()
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{run.facts_file} has format {facts.get('format')}, not {FORMAT}; use the version that wrote it"
        )
    if facts.get("status") != "finished":
        raise UserError(
            f"the run in {path} is not finished (status: {facts.get('status')}), so it has no last epoch; "
            f"continue it with 'tutelage resume {path}' or leave it out"
        )
    try:
        return _result(run, facts)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.facts_file} is incomplete ({type(error).__name__}: {error}); "
            "leave the run out or repeat it"
        ) from error


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys in which two protocols, or the settings of two runs, differ; what one doesn't know makes none."""
    unknown = {key for key in NOTED_LATER if key not in one or key not in other}
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if key not in unknown and one.get(key) != other.get(key)]


def _result(run: RunFolder, facts: dict[str, Any]) -> Result:
    student, teacher, summary = facts["student"], facts["teacher"], facts["summary"]
    best = summary["best"]
    return Result(
        run=run.path,
        settings=_settings(run, facts),
        seed=int(facts["seed"]),
        protocol=dict(facts["protocol"]),
        method=str(facts["method"]),
        student=str(student["name"]),
        parameters=int(student["parameters"]),
        macs=int(student["macs"]),
        teacher=str(teacher["name"]) if teacher else None,
        teacher_top1=float(teacher["test"]["top1"]) if teacher else None,
        top1=float(summary["last"]["test"]["top1"]),
        best_top1=float(best["test"]["top1"]),
        best_by=str(best["by"]),
        seconds=float(summary["training_seconds"]),
    )


def _settings(run: RunFolder, facts: dict[str, Any]) -> dict[str, str]:
    """The recipe without what may differ among seeds, and the facts that a recipe leaves to the machine.

    Folders move: weights count by their hash.
    """
    try:
        recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{run.recipe} can't be read as YAML; restore it or leave the run out") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{run.recipe} holds no recipe; restore it or leave the run out")
    recipe = _without(recipe, "seed", "note")
    for section, names in NOT_LEARNT.items():
        recipe[section] = _without(recipe.get(section), *names)
    recipe["runtime"]["amp"] = facts["amp"]
    recipe["normalisation"] = facts["normalisation"]
    if "train_digest" in facts:
        recipe["train_digest"] = facts["train_digest"]
    for role in ("student", "teacher"):
        recipe[role] = _identified(recipe.get(role), facts[role])
    peers, known = recipe.get("peers") or [], facts.get("peers") or []
    recipe["peers"] = [_identified(part, own) for part, own in zip(peers, known[: len(peers)], strict=True)]
    return _flat(recipe)


def _identified(part: dict[str, Any] | None, facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """A network's part of the recipe with the hash of its weights in the place of their path.

    Those of a fresh network follow from the seed and are left out. Runs of earlier versions have noted only
    what the network made of its weights, which is the same unless its classifier was new.
    """
    if part is None or facts is None or part.get("weights") is None:
        return part
    return {**part, "weights": facts.get("origin_hash") or facts["weights_hash"]}


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted key -> value in JSON."""
    flat: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, sort_keys=True, default=str)
    return flat


def _without(section: dict[str, Any] | None, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in (section or {}).items() if key not in keys}
