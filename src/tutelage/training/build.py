"""From a recipe to the parts of a run: data, networks, method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tutelage.data import ImageData, StreamData
from tutelage.errors import UserError
from tutelage.methods import DataSpec, Method, Networks, create_method
from tutelage.recipes import Recipe
from tutelage.training.answers import check_answers
from tutelage.training.distributed import with_synchronised_norms, world
from tutelage.training.hardware import pick_device, place, set_up_torch, synchronises
from tutelage.training.loading import image_size, load_data
from tutelage.training.networks import build_network, student_recipes
from tutelage.training.optimisers import create_optimiser
from tutelage.training.preprocessing import RGB, normalisation, sidecar_of

IN_PROTOCOL = {"crop_share", "repeats", "test_split"}
"""Settings of the data that belong to the protocol where they are not the defaults."""


@dataclass(frozen=True)
class Parts:
    """Everything a trainer needs, on its device.

    Attributes:
        data: Images and labels.
        nets: Students and teacher.
        method: Set up for these networks.
        normalisation: Mean and std that the images get.
        teacher_facts: What the teacher's sidecar says (expected accuracy, source); empty without one.
        protocol: What must be equal for two results to stand in one table.
    """

    data: ImageData
    nets: Networks
    method: Method
    normalisation: tuple[RGB, RGB]
    teacher_facts: dict[str, Any]
    protocol: dict[str, Any]


def assemble(recipe: Recipe, data: ImageData | None = None, weightless: bool = False) -> Parts:
    """Build the parts of a run, seeded by the recipe; refuses what can't work before training starts.

    Args:
        recipe: The run.
        data: Its data; None loads them.
        weightless: Let networks have random weights that a run could not begin with, to look at them.

    Raises:
        UserError: Unknown names, unreadable data or weights, class counts or shapes that don't fit,
            needs of the method that the networks can't meet.
    """
    device = pick_device(recipe.runtime.device)
    set_up_torch(recipe)
    method = create_method(recipe.method["name"], **recipe.method_settings)
    check_roles(recipe, method)
    if not weightless:
        check_weights(recipe, method)
    data = load_data(recipe, device) if data is None else data
    info, given = data.info, normalisation(recipe)
    synchronised = synchronises(recipe, device)
    torch.manual_seed(recipe.seed)
    needs = method.needs.for_classes(info.num_classes)
    students = tuple(
        build_network(
            part, data, given, needs.student, needs.student_role, "student", recipe.data, synchronised
        )
        for part in student_recipes(recipe, method)
    )
    teacher, facts = None, {}
    if recipe.teacher is not None and needs.teacher is not None:
        teacher = build_network(recipe.teacher, data, given, needs.teacher, "frozen", "teacher", recipe.data)
        facts = sidecar_of(recipe.teacher)
    nets = Networks(students, teacher)
    for net in (*students, *([teacher] if teacher else [])):
        place(net, device, recipe.runtime.channels_last)
    spec = DataSpec(info.num_classes, (3, *image_size(data)), data.train_labels, data.take, data.view_count)
    method.setup(nets, spec)
    if synchronised:
        with_synchronised_norms(method)
    method.to(device)
    check_answers(recipe, nets, method, data)
    create_optimiser(
        nn.ModuleList([*students, method]), recipe.optimiser
    )  # refuses before anything is written
    return Parts(data, nets, method, given, facts, protocol(recipe, data))


def check_roles(recipe: Recipe, method: Method) -> None:
    """Refuse a method without teacher, a teacher without use, a choice by what is not measured.

    Raises:
        UserError: In each of these cases.
    """
    check_batches(recipe, method)
    measured = method.needs.student_branches and recipe.data.branch_evaluation
    if recipe.selection == "joint" and not measured:
        raise UserError("selection 'joint' needs branches that are measured; choose selection backbone")
    needs_teacher = method.needs.teacher is not None
    if needs_teacher and recipe.teacher is None:
        how = "use 'tutelage distill' with" if recipe.task == "train" else "give"
        raise UserError(
            f"method '{method.name}' needs a teacher; {how} --teacher NAME --teacher-weights FILE"
        )
    if not needs_teacher and recipe.teacher is not None and recipe.task == "distill":
        raise UserError(
            f"method '{method.name}' uses no teacher, but '{recipe.teacher.name}' is given; drop it or "
            "choose a method that distils (tutelage list methods)"
        )


def check_weights(recipe: Recipe, method: Method) -> None:
    """Refuse networks without weights that are used as they are.

    Raises:
        UserError: The teacher, or a backbone whose branches alone are trained, has no weights.
    """
    if method.needs.student_role == "branches" and not recipe.student.has_weights:
        raise UserError(
            f"method '{method.name}' trains branches on a frozen backbone, but '{recipe.student.name}' has "
            "no weights; give --weights FILE"
        )
    if method.needs.teacher is not None and recipe.teacher is not None and not recipe.teacher.has_weights:
        raise UserError(
            f"teacher '{recipe.teacher.name}' has no weights, so there is nothing to learn from it; "
            "give --teacher-weights FILE, or --teacher-pretrained for timm's"
        )


def check_batches(recipe: Recipe, method: Method) -> None:
    """Refuse batches that mean nothing to the method.

    Raises:
        UserError: Mixed images, or repeated ones, for a method that can't do with them.
    """
    if (recipe.data.mixup or recipe.data.cutmix) and not method.needs.mixes:
        raise UserError(
            f"method '{method.name}' can't learn from images mixed of two classes; set data.mixup and "
            "data.cutmix to 0, or choose another method"
        )
    if recipe.data.repeats and not method.needs.repeats:
        raise UserError(
            f"method '{method.name}' remembers one row for each image, which may stand in a batch only once; "
            "set data.repeats to 0, or choose another method"
        )


def protocol(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """What must be equal for two accuracies to be comparable."""
    # What records without it had: there was no choice, and files and images in memory had different filters.
    usual = "bilinear" if isinstance(data, StreamData) else "random"
    return {
        "dataset": recipe.data.name,
        "few_ratio": recipe.data.few_ratio,
        "val_fraction": recipe.data.val_fraction,
        "train_images": data.train_size,
        "val_images": data.size("val"),
        "test_images": data.size("test"),
        "test_digest": data.digest("test"),
        "image_size": list(image_size(data)),
        "epochs": recipe.schedule.epochs,
        **recipe.data.model_dump(include=IN_PROTOCOL, exclude_defaults=True),
        **({} if recipe.data.interpolation == usual else {"interpolation": recipe.data.interpolation}),
        **({"student_image_size": recipe.student.image_size} if recipe.student.image_size else {}),
        **({"processes": world()} if world() > 1 else {}),
    }
