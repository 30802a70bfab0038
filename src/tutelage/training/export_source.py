"""What is exported: a network's weights, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.creation import check_input, create_network
from tutelage.models.probing import image_shape
from tutelage.models.timm_layout import Preprocessing, structure
from tutelage.models.weights import class_count, load_into, read_sidecar, read_state_dict
from tutelage.recipes import ModelRecipe, Recipe, resolve
from tutelage.runs.record import RunFolder
from tutelage.training.class_lists import noted_classes
from tutelage.training.preprocessing import own_size

FILES = {
    "last": "student.safetensors",
    "best": "student_best.safetensors",
    "ema": "student_ema.safetensors",
    "ema_best": "student_ema_best.safetensors",
}
"""Which of a run's weights -> their file in its folder."""


@dataclass(frozen=True)
class Source:
    """A network to export.

    Attributes:
        model: With its weights, on the CPU, in evaluation mode.
        part: Its part of the recipe.
        recipe: Of the run that made it, or with no more in it than the network and the dataset.
        facts: Noted beside the weights: normalisation, accuracy, dataset, class names.
        run: Content of ``run.json``; empty where the weights come from no run.
        which: Of `FILES`, for a run's weights; empty for a weights file.
        warnings: What the user should know, a sentence each.
    """

    model: nn.Module
    part: ModelRecipe
    recipe: Recipe
    facts: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    which: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return int(self.facts["num_classes"])

    def size_for(self, teacher: ModelRecipe) -> tuple[int, int]:
        """(H, W) of the images that a teacher gets: as recorded, else its own wish, else the student's."""
        noted = self.run.get("teacher") or {}
        if noted.get("name") == teacher.name and noted.get("image_size"):
            return image_shape(noted["image_size"])[-2:]
        return own_size(teacher, frozen=True, given=self.preprocessing.input_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in order; empty where they are not known."""
        return noted_classes({**self.facts, "num_classes": self.num_classes})

    @property
    def preprocessing(self) -> Preprocessing:
        """What images go through: as noted beside the weights, else as the architecture is used."""
        own = getattr(self.model, "pretrained_cfg", None) or {}
        facts = {**own, **{key: value for key, value in self.facts.items() if value is not None}}
        size = facts.get("image_size") or self.part.args.get("img_size")
        height, width = image_shape(size or facts.get("input_size", 224))[-2:]
        return Preprocessing(
            (height, width),
            tuple(facts.get("mean", (0.485, 0.456, 0.406))),
            tuple(facts.get("std", (0.229, 0.224, 0.225))),
            float(facts.get("crop_pct") or 1.0),
            str(facts.get("interpolation") or "bicubic"),
        )


def from_run(path: Path, which: str) -> Source:
    """The student of a run.

    Args:
        path: The run's folder.
        which: Of `FILES`.

    Raises:
        UserError: No run there, no such weights in it, or damaged ones.
    """
    folder = RunFolder.open(path)
    recipe, run = resolve(str(folder.recipe)), folder.facts()
    if which.startswith("ema") and recipe.runtime.ema_decay is None:
        raise UserError(
            f"{path} keeps no moving average; train with --set runtime.ema_decay=0.999, or leave out --ema"
        )
    file = folder.path / FILES[which]
    if not file.is_file():
        raise UserError(
            f"{path} has no {file.name}: the run stopped before its first epoch was over; continue it with "
            f"'tutelage resume {path}'"
        )
    facts = {**_protocol_size(run), **read_sidecar(file)}
    warnings = []
    if run.get("status") != "finished":
        warnings.append(f"the run is not finished (status: {run.get('status')})")
    state = read_state_dict(file).state
    facts.setdefault("num_classes", class_count(state))
    model = _build(recipe.student, facts, state, str(file))
    return Source(model, recipe.student, recipe, facts, run, which, tuple(warnings))


def from_weights(recipe: Recipe, facts: Mapping[str, Any] | None = None) -> Source:
    """A network whose weights lie in a file.

    Args:
        recipe: Names the network and its weights.
        facts: What is known beside what the file's sidecar says.

    Raises:
        UserError: No weights are named, or they can't be read or belong to another network.
    """
    part = recipe.student
    if part.weights is None:
        raise UserError(f"'{part.name}' has no weights, so there is nothing to export; give --weights FILE")
    file = Path(part.weights)
    imported = read_state_dict(file, prefix=part.prefix)
    known = {**read_sidecar(file), **(facts or {})}
    known.setdefault("num_classes", None)
    known["num_classes"] = known["num_classes"] or class_count(imported.state)
    if known["num_classes"] is None:
        raise UserError(f"{file} doesn't tell how many classes it is for; export the run that made it")
    noted = {} if part.args else structure(known.get("args") or {})
    part = part.model_copy(update={"args": {**noted, **part.args}})
    warnings = []
    if not known.get("mean"):
        warnings.append(
            f"no normalisation is noted beside {file.name}, so config.json has that of '{part.name}'; give "
            "--set data.mean=[...] --set data.std=[...] where another one is right"
        )
    model = _build(part, known, imported.state, str(file))
    return Source(model, part, recipe, known, warnings=tuple(warnings))


def blank_network(part: ModelRecipe, num_classes: int, size: tuple[int, int]) -> nn.Module:
    """A network of a recipe without its weights, which need not be at hand to count and time it.

    Raises:
        UserError: It doesn't take images of this size.
    """
    model = create_network(part.name, num_classes, **structure(part.args)).eval()
    check_input(model, size)
    return model


def _build(part: ModelRecipe, facts: Mapping[str, Any], state: Mapping[str, Tensor], file: str) -> nn.Module:
    model = create_network(part.name, int(facts["num_classes"]), **structure(part.args))
    load_into(model, state, file)
    return model.eval()


def _protocol_size(run: Mapping[str, Any]) -> dict[str, Any]:
    size = run.get("protocol", {}).get("image_size")
    return {"image_size": size} if size else {}
