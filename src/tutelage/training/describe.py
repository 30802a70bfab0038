"""What there is to choose from, and what is known about each: ``tutelage list`` and ``tutelage show``."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
from pydantic_core import PydanticUndefined

from tutelage.data import dataset_info, dataset_names
from tutelage.errors import UserError, nearest
from tutelage.methods import Needs, create_method, method_class, method_names
from tutelage.models.fingerprint import fingerprint
from tutelage.models.network import Ask, check_input, create_network
from tutelage.models.taps import describe_taps
from tutelage.models.zoo import own_names
from tutelage.recipes import dump, read_recipe, recipe_names, resolve
from tutelage.runs.published import published_tables


def list_models(pattern: str | None = None) -> list[str]:
    """Names of networks, in natural order (resnet8 before resnet14).

    Args:
        pattern: With ``*`` for any characters; ``*`` alone lists everything that timm has. A pattern without
            ``*`` lists the names that contain it. None lists those that Tutelage adds to timm's.

    Raises:
        UserError: No name fits.
    """
    if pattern is None:
        return [name for name in timm.list_models() if name in own_names()]
    wanted = pattern if "*" in pattern else f"*{pattern}*"
    names = timm.list_models(wanted)
    if not names:
        raise UserError(
            f"no model's name fits '{pattern}'{nearest(pattern, timm.list_models())}; "
            "list all with 'tutelage list models --all'"
        )
    return list(names)


def list_methods() -> list[dict[str, Any]]:
    """Name, summary and source of every method."""
    classes = [method_class(name) for name in method_names()]
    return [{"name": cls.name, "summary": cls.summary, "source": cls.source} for cls in classes]


def list_datasets() -> list[dict[str, Any]]:
    """Name, classes, image size and number of images of every dataset.

    Classes and images are None where they are the user's, and so not known without the files.
    """
    infos = [dataset_info(name) for name in dataset_names()]
    return [
        {
            "name": info.name,
            "classes": info.num_classes or None,
            "image_size": info.image_size,
            "train_images": info.train_count or None,
            "test_images": info.test_count or None,
        }
        for info in infos
    ]


def list_recipes() -> list[dict[str, Any]]:
    """Name, summary (the first sentence of the note) and note of every bundled recipe."""
    notes = {name: str(read_recipe(name).get("note", "")) for name in recipe_names()}
    return [
        {"name": name, "summary": re.split(r"(?<=\.)\s+(?=[A-Z])", note)[0], "note": note}
        for name, note in notes.items()
    ]


def describe(name: str, num_classes: int | None = None, image_size: int | None = None) -> dict[str, Any]:
    """What is known about a method, dataset, recipe or model, whichever has this name.

    Args:
        name: The name, or a recipe's YAML file.
        num_classes: For a model, see `describe_model`.
        image_size: For a model, see `describe_model`.

    Returns:
        The answer of one of the functions below, with ``kind`` saying which.

    Raises:
        UserError: Nothing has this name.
    """
    if name in method_names():
        return {"kind": "method", **describe_method(name)}
    if name in dataset_names():
        return {"kind": "dataset", **describe_dataset(name)}
    if name in recipe_names() or Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        return {"kind": "recipe", **describe_recipe(name)}
    if timm.is_model(name):
        return {"kind": "model", **describe_model(name, num_classes, image_size)}
    known = [*method_names(), *dataset_names(), *recipe_names(), *timm.list_models()]
    raise UserError(
        f"no method, model, dataset or recipe is called '{name}'{nearest(name, known)} "
        "(tutelage list models|methods|datasets|recipes)"
    )


def describe_method(name: str) -> dict[str, Any]:
    """A method's formula, source, needs and settings.

    Returns:
        ``settings`` has, for each field of the config, its name, type, default, range and meaning.

    Raises:
        UserError: No such method.
    """
    cls = method_class(name)
    settings = [
        {
            "name": key,
            "type": inspect.formatannotation(field.annotation),
            "default": None if field.default is PydanticUndefined else field.default,
            "range": ", ".join(filter(None, map(_bound, field.metadata))) or None,
            "meaning": field.description,
        }
        for key, field in cls.Config.model_fields.items()
    ]
    return {
        "name": name,
        "summary": cls.summary,
        "source": cls.source,
        "formula": inspect.getdoc(cls),
        "defaults": inspect.getdoc(cls.Config),
        "needs": _needs(create_method(name).needs),
        "settings": settings,
    }


def describe_model(
    name: str, num_classes: int | None = None, image_size: int | None = None
) -> dict[str, Any]:
    """A network's size, cost, stages and normalisation; its weights are not fetched.

    Args:
        name: timm's name.
        num_classes: Classes of its head; None takes the network's own number.
        image_size: Side of the images; None takes the network's own.

    Returns:
        ``stages`` lists each stage's channels, reduction (image side / map side), and ``boundary``, the
        module that receives its input; empty where they can't be found, and ``stages_note`` says why.

    Raises:
        UserError: No such network, fewer than one class, or it doesn't take this image size.
    """
    if num_classes is not None and num_classes < 1:
        raise UserError(f"a network can't have {num_classes} classes; give --num-classes 1 or more")
    if num_classes is None:
        known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        num_classes = known.num_classes if known is not None else 1000
    model = create_network(name, num_classes)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own = list(config.get("input_size", (3, 224, 224)))[-2:]
    side = [image_size, image_size] if image_size is not None else own
    check_input(model, (side[0], side[1]))
    mark = fingerprint(model, (side[0], side[1]))
    stages, note = [], None
    try:
        stages = [asdict(stage) for stage in describe_taps(model).stages]
    except UserError as error:
        note = str(error)
    return {
        "name": name,
        "parameters": mark.parameters,
        "macs": mark.macs,
        "schema_hash": mark.schema_hash,
        "num_classes": getattr(model, "num_classes", num_classes),
        "image_size": side,
        "own_image_size": own,
        "pooled_width": getattr(model, "num_features", None),
        "mean": list(config.get("mean", ())) or None,
        "std": list(config.get("std", ())) or None,
        "stages": stages,
        "stages_note": note,
    }


def describe_dataset(name: str) -> dict[str, Any]:
    """Facts about a dataset, without its files, and what linear probes on it were published to reach.

    As in `list_datasets`, classes and images that only the files tell are None.

    Raises:
        UserError: No such dataset.
    """
    info = dataset_info(name)
    return {
        "name": info.name,
        "classes": info.num_classes or None,
        "class_names": list(info.class_names),
        "image_size": info.image_size,
        "train_images": info.train_count or None,
        "test_images": info.test_count or None,
        "mean": list(info.mean),
        "std": list(info.std),
        "crop_padding": info.padding,
        "flip": info.flip,
        "views": info.augment.count,
        "source": info.source,
        "licence": info.licence,
        "linear_probes": [
            {
                "project": figure.project,
                "label": figure.label,
                "teacher": figure.teacher,
                "student": figure.student,
                "top1": figure.value,
            }
            for table in published_tables()
            for figure in table.figures
            if figure.dataset == name and figure.metric == "linear_top1"
        ],
    }


def describe_recipe(source: str) -> dict[str, Any]:
    """A recipe with all defaults filled in.

    Returns:
        ``recipe`` (the values), ``yaml`` (the same as text) and ``hash``.

    Raises:
        UserError: No such recipe, or it is wrong.
    """
    recipe = resolve(source)
    values = recipe.model_dump(mode="json")
    return {"name": source, "hash": recipe.hash(), "recipe": values, "yaml": dump(recipe)}


def _needs(needs: Needs) -> dict[str, Any]:
    return {
        "student": _asked(needs.student, needs.student_branches),
        "teacher": None if needs.teacher is None else _asked(needs.teacher, needs.teacher_branches),
        "students": needs.students,
        "views": needs.views,
    }


def _asked(ask: Ask, branches: int) -> list[str]:
    parts = ["logits", *(name for name, wanted in asdict(ask).items() if wanted)]
    return [*parts, f"branches of {branches} x classes"] if branches else parts


def _bound(rule: Any) -> str:
    """One of pydantic's limits as people write it."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(f"{sign} {getattr(rule, key)}" for key, sign in signs.items() if hasattr(rule, key))
