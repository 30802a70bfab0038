"""The commands' flags, and the recipe that they describe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.recipes import ModelRecipe, Recipe, resolve
from tutelage.recipes.resolve import parse_setting
from tutelage.recipes.schema import DataRecipe

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

EVALUATED = {
    "data": (
        *("name", "dir", "download", "image_column", "label_column", "train_split", "test_split"),
        *("image_size", "crop_share", "interpolation", "mean", "std", "branch_evaluation", "eval_batch_size"),
    ),
    "student": ("name", "weights", "prefix", "args", "image_size", "own_normalisation", "reset_head"),
    "runtime": ("device", "workers", "channels_last", "deterministic", "threads"),
}
"""What an evaluation takes of a recipe's sections; ``train_split`` because the whole dataset is opened, and
``reset_head`` because a sentence of its own says why it can't be."""

OPENING = {"image_column", "label_column", "train_split", "test_split", "image_size"}
"""Settings of the data without which they may not open, or not in a size that a network takes."""


def resolve_flags(
    task: str | None,
    recipe: str | Recipe | None,
    settings: Iterable[str],
    flags: dict[str, Any],
    whole: bool = True,
) -> Recipe:
    """The recipe that flags and settings describe.

    Args:
        task: "train" or "distill"; None leaves it to the recipe.
        recipe: Bundled name, YAML file, resolved recipe, or None for the defaults.
        settings: ``key.path=value`` overrides.
        flags: Keys of `FLAGS`; a value of None counts as not given.
        whole: Whether a whole run is described, which the caller's users may do by a recipe too.

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
            other = " or --recipe" if whole else ""
            raise UserError(f"no network is named; give {what} (tutelage list models){other}")
        dotted.setdefault("method.name", "none" if task == "train" else "kd")
    return resolve(recipe, {"task": task, **dotted}, settings)


def resolve_evaluation(settings: Iterable[str], flags: dict[str, Any]) -> Recipe:
    """The recipe of a network to measure as it is, with settings that change what is measured.

    Args:
        settings: See `resolve_flags`.
        flags: Likewise.

    Raises:
        UserError: Likewise, or a setting is about training.
    """
    settings = list(settings)
    recipe = resolve_flags("train", None, settings, flags, whole=False)
    for path in (path for text in settings for path in _leaves(*parse_setting(text))):
        section, *rest = path
        if section not in EVALUATED or (rest and rest[0] not in EVALUATED[section]):
            raise UserError(
                f"an evaluation doesn't use '{'.'.join(path)}'; leave it out (data.image_size, data.mean and "
                "student.args.NAME are some that it uses)"
            )
    return recipe


def _leaves(path: list[str], value: Any) -> Iterator[list[str]]:
    """The paths that a setting sets: more than one where it sets a section."""
    if len(path) > 1 or not isinstance(value, dict):
        yield path
        return
    for key in value:
        yield [*path, str(key)]


def fine_tuning(part: ModelRecipe, data: DataRecipe, side: int | None = None) -> str:
    """The command that trains a network's weights further on these data, ready to be pasted.

    Args:
        part: The network, with weights.
        data: The data's part of the recipe.
        side: Of the images that this network gets, in pixels; None where they are the data's.
    """
    words = ["tutelage", "train", "--model", part.name]
    words += ["--pretrained"] if part.weights is None else ["--weights", part.weights, "--reset-head"]
    words += ["--data", data.name, *([] if data.dir is None else ["--data-dir", data.dir])]
    words += ["--download"] if data.download else []
    settings = {f"data.{key}": value for key, value in data.model_dump(include=OPENING).items()}
    settings |= {"student.prefix": part.prefix, "student.image_size": side}
    settings |= {f"student.args.{key}": value for key, value in part.args.items() if key != "pretrained"}
    for key, value in settings.items():
        if value is not None:
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)
