"""The commands' flags, and the recipe that they describe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.recipes import Recipe, resolve

FLAGS = {
    "model": "student.name",
    "student": "student.name",
    "teacher": "teacher.name",
    "weights": "student.weights",
    "teacher_weights": "teacher.weights",
    "pretrained": "student.args.pretrained",
    "teacher_pretrained": "teacher.args.pretrained",
    "reset_head": "student.reset_head",
    "method": "method.name",
    "data": "data.name",
    "data_dir": "data.dir",
    "download": "data.download",
    "few_ratio": "data.few_ratio",
    "val_fraction": "data.val_fraction",
    "epochs": "schedule.epochs",
    "batch_size": "data.batch_size",
    "seed": "seed",
    "device": "runtime.device",
}
"""Flag (and keyword) -> the recipe key it sets."""


def resolve_flags(
    task: str | None, recipe: str | Recipe | None, settings: Iterable[str], flags: dict[str, Any]
) -> Recipe:
    """The recipe that flags and settings describe.

    Args:
        task: "train" or "distill"; None leaves it to the recipe.
        recipe: Bundled name, YAML file, resolved recipe, or None for the defaults.
        settings: ``key.path=value`` overrides.
        flags: Keys of `FLAGS`; a value of None counts as not given.

    Raises:
        UserError: Unknown flag or key, or no network named.
    """
    flags = {name: value for name, value in flags.items() if value is not None}
    settings = list(settings)
    if isinstance(recipe, Recipe):
        if flags or settings:
            raise UserError(
                "a resolved recipe takes no further flags, settings or peers; give them when you resolve it"
            )
        return recipe
    unknown = set(flags) - set(FLAGS)
    if unknown:
        raise UserError(f"there is no flag '{min(unknown)}' (known: {', '.join(FLAGS)})")
    if "model" in flags and "student" in flags:
        raise UserError("--model and --student both name the network to train; give one of them")
    dotted = {FLAGS[n]: str(value) if isinstance(value, Path) else value for n, value in flags.items()}
    if recipe is None:
        if "student.name" not in dotted and not any(text.startswith("student") for text in settings):
            what = "--model NAME" if task == "train" else "--student NAME"
            raise UserError(f"no network is named; give {what} (tutelage list models) or --recipe")
        dotted.setdefault("method.name", "none" if task == "train" else "kd")
    return resolve(recipe, {"task": task, **dotted}, settings)
