"""From a recipe to the parts of a run: data, networks, method."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.data import (
    AutoAugment,
    CropFlip,
    DatasetInfo,
    ImageData,
    ImageFolders,
    ResidentData,
    ResizedViews,
    Share,
    StreamData,
    Views,
    dataset_info,
    few_shot_indices,
    load_dataset,
    validation_split,
)
from tutelage.errors import UserError
from tutelage.methods import DataSpec, Method, Networks, create_method
from tutelage.models.branches import load_branches
from tutelage.models.fingerprint import fingerprint, weights_hash
from tutelage.models.network import Ask, Network, Role, check_input, create_network
from tutelage.models.weights import load_into, read_sidecar, read_state_dict
from tutelage.recipes import ModelRecipe, Recipe
from tutelage.recipes.schema import DataRecipe
from tutelage.training.distributed import (
    first_here,
    launched_here,
    own_device,
    rank,
    with_synchronised_norms,
    world,
)
from tutelage.training.optimisers import create_optimiser

DATA_FOLDER = Path("data")
MOST_WORKERS = 16
"""More decoding processes than this are asked for by name."""
RGB = tuple[float, float, float]


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


def assemble(recipe: Recipe) -> Parts:
    """Build the parts of a run, seeded by the recipe; refuses what can't work before training starts.

    Raises:
        UserError: Unknown names, unreadable data or weights, class counts or shapes that don't fit,
            needs of the method that the networks can't meet.
    """
    device = pick_device(recipe.runtime.device)
    set_up_torch(recipe)
    method = create_method(recipe.method["name"], **recipe.method_settings)
    check_roles(recipe, method)
    data = load_data(recipe, device)
    info, given = data.info, normalisation(recipe)
    synchronised = synchronises(recipe, device)
    torch.manual_seed(recipe.seed)
    needs = method.needs.for_classes(info.num_classes)
    students = tuple(
        build_network(part, data, given, needs.student, needs.student_role, "student", synchronised)
        for part in student_recipes(recipe, method)
    )
    teacher, facts = None, {}
    if recipe.teacher is not None and needs.teacher is not None:
        teacher = build_network(recipe.teacher, data, given, needs.teacher, "frozen", "teacher")
        facts = sidecar_of(recipe.teacher)
    nets = Networks(students, teacher)
    for net in (*students, *([teacher] if teacher else [])):
        place(net, device, recipe.runtime.channels_last)
    spec = DataSpec(info.num_classes, (3, *image_size(data)), data.train_labels, data.take, data.view_count)
    method.setup(nets, spec)
    if synchronised:
        with_synchronised_norms(method)
    method.to(device)
    create_optimiser(
        nn.ModuleList([*students, method]), recipe.optimiser
    )  # refuses before anything is written
    return Parts(data, nets, method, given, facts, protocol(recipe, data))


def check_roles(recipe: Recipe, method: Method) -> None:
    """Refuse a method without teacher, a teacher without weights or use, a choice by what is not measured.

    Raises:
        UserError: In each of these cases.
    """
    measured = method.needs.student_branches and recipe.data.branch_evaluation
    if recipe.selection == "joint" and not measured:
        raise UserError("selection 'joint' needs branches that are measured; choose selection backbone")
    needs_teacher = method.needs.teacher is not None
    if needs_teacher and recipe.teacher is None:
        raise UserError(f"method '{method.name}' needs a teacher; give --teacher NAME --teacher-weights FILE")
    if not needs_teacher and recipe.teacher is not None and recipe.task == "distill":
        raise UserError(
            f"method '{method.name}' uses no teacher, but '{recipe.teacher.name}' is given; drop it or "
            "choose a method that distils (tutelage list methods)"
        )
    if needs_teacher and recipe.teacher is not None and recipe.teacher.weights is None:
        pretrained = recipe.teacher.args.get("pretrained", False)
        if not pretrained:
            raise UserError(
                f"teacher '{recipe.teacher.name}' has no weights, so there is nothing to learn from it; "
                "give --teacher-weights FILE"
            )


def student_recipes(recipe: Recipe, method: Method) -> tuple[ModelRecipe, ...]:
    """The networks that are trained: the student, the peers, and copies of the student for missing peers.

    Raises:
        UserError: More peers than the method trains, or weights missing that a frozen backbone needs.
    """
    needs = method.needs
    given = (recipe.student, *recipe.peers)
    if len(given) > needs.students:
        raise UserError(
            f"method '{method.name}' trains {needs.students} network{'s' * (needs.students > 1)}, but "
            f"{len(given)} are given; drop peers, or set method.networks where the method has it"
        )
    pretrained = recipe.student.args.get("pretrained", False)
    if needs.student_role == "branches" and recipe.student.weights is None and not pretrained:
        raise UserError(
            f"method '{method.name}' trains branches on a frozen backbone, but '{recipe.student.name}' has "
            "no weights; give --weights FILE"
        )
    return given + (recipe.student,) * (needs.students - len(given))


def load_data(recipe: Recipe, device: torch.device) -> ImageData:
    """This process's share of the data, split, augmented and normalised as the recipe says, on ``device``."""
    data = _whole_data(recipe, device)
    data.share = Share(rank(), world())
    return data


def _whole_data(recipe: Recipe, device: torch.device) -> ImageData:
    wanted = recipe.data
    folder = Path(wanted.dir) if wanted.dir is not None else DATA_FOLDER
    with first_here() if wanted.download else nullcontext():
        dataset = load_dataset(wanted.name, folder, download=wanted.download)
    mean, std = normalisation(recipe)
    train, val = split(dataset.train_labels, wanted.few_ratio, wanted.val_fraction)
    common: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "train_indices": train,
        "val_indices": val,
        "channels_last": recipe.runtime.channels_last,
    }
    if isinstance(dataset, ImageFolders):
        workers = recipe.runtime.workers
        if workers is None:
            workers = max(min((os.cpu_count() or 1) // launched_here(), MOST_WORKERS), 1)
        if wanted.augment == "autoaugment":
            raise UserError("data.augment autoaugment is for images held in memory; use true or false here")
        return StreamData(
            dataset,
            device,
            wanted.image_size,
            crop_share=wanted.crop_share,
            augment=wanted.augment,
            workers=workers,
            **common,
        )
    augment = resident_views(dataset.info, wanted)
    return ResidentData(dataset, device, augment=augment, **common)


def resident_views(info: DatasetInfo, wanted: DataRecipe) -> Views:
    """How images in memory are varied and, where the recipe asks for another size, resized.

    Raises:
        UserError: AutoAugment is asked for on resized images.
    """
    size = info.image_size
    if wanted.image_size not in (None, size):
        if wanted.augment == "autoaugment":
            raise UserError(f"data.augment autoaugment is for images of {size} pixels; drop data.image_size")
        return ResizedViews(
            size, wanted.image_size, wanted.crop_share, flip=info.flip, vary=bool(wanted.augment)
        )
    if wanted.augment == "autoaugment":
        return AutoAugment(info.augment)
    return info.augment if wanted.augment else CropFlip(size, 0, False)


def split(
    labels: torch.Tensor, few_ratio: float, val_fraction: float
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Rows of the training images used for training and for validation.

    The validation part is taken out first, so that it is the same for every few-shot ratio.

    Returns:
        Two int64 index tensors; None for "all" and for "none".
    """
    train: torch.Tensor | None = None
    val: torch.Tensor | None = None
    if val_fraction > 0:
        train, val = validation_split(labels, val_fraction)
    if few_ratio < 1:
        kept = few_shot_indices(labels if train is None else labels[train], few_ratio)
        train = kept if train is None else train[kept]
    return train, val


def normalisation(recipe: Recipe) -> tuple[RGB, RGB]:
    """Mean and std that images get: the recipe's, else the weights' own, else the dataset's.

    Weights carry their normalisation in their sidecar. A student trained from scratch adapts to any, so
    the teacher's is used for both; a student with weights of its own keeps its own, see `build_network`.
    """
    info = dataset_info(recipe.data.name)
    if (recipe.data.mean is None) != (recipe.data.std is None):
        raise UserError("data.mean and data.std belong together; give both or neither")
    if recipe.data.mean is not None and recipe.data.std is not None:
        return recipe.data.mean, recipe.data.std
    for part in (recipe.student, recipe.teacher):
        own = own_normalisation(part)
        if own is not None:
            return own
    return info.mean, info.std


def own_normalisation(part: ModelRecipe | None) -> tuple[RGB, RGB] | None:
    """The normalisation noted beside a model's weights, or None."""
    facts = sidecar_of(part)
    mean, std = facts.get("mean"), facts.get("std")
    if mean is None or std is None:
        return None
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def sidecar_of(part: ModelRecipe | None) -> dict[str, Any]:
    """Facts noted beside a model's weights; empty without weights or sidecar."""
    return read_sidecar(Path(part.weights)) if part is not None and part.weights is not None else {}


def image_size(data: ImageData) -> tuple[int, int]:
    """(H, W) of the images the networks get."""
    return data.info.image_size, data.info.image_size


def build_network(
    part: ModelRecipe,
    data: ImageData,
    given: tuple[RGB, RGB],
    ask: Ask,
    role: Role,
    name: str,
    synchronised: bool = False,
) -> Network:
    """Create one network, load its weights, check that it takes the images, and adapt its normalisation.

    Args:
        part: The network's part of the recipe.
        data: Gives class count and image size.
        given: Mean and std the images come with.
        ask: What it must hand over.
        role: "trained" or "frozen".
        name: What messages call it.
        synchronised: Whether batch norms that train count the images of all processes.

    Raises:
        UserError: Unknown name, unreadable or unfitting weights, other class count, image size refused.
    """
    model = create_network(part.name, data.info.num_classes, **part.args)
    if part.weights is not None:
        imported = read_state_dict(Path(part.weights), prefix=part.prefix)
        load_into(model, imported.state, f"{name} weights {part.weights}")
    check_input(model, image_size(data))
    if synchronised and role == "trained":
        model = with_synchronised_norms(model)
    network = Network(model, ask, role)
    if network.branches is not None and synchronised and role != "frozen":
        with_synchronised_norms(network.branches)
    if network.branches is not None and part.weights is not None and (imported.branches or role == "frozen"):
        load_branches(network.branches, imported.branches, f"{name} weights {part.weights}")
    own = own_normalisation(part)
    if own is not None and own != given:
        network.preprocess = Renormalise(given, own)
    return network


class Renormalise(nn.Module):
    """Turns images normalised one way into images normalised another way: an affine map per channel."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, given: tuple[RGB, RGB], wanted: tuple[RGB, RGB]) -> None:
        """Args:
        given: Mean and std the images come with.
        wanted: Mean and std the network was trained with.
        """
        super().__init__()
        (mean, std), (own_mean, own_std) = [
            [torch.tensor(part, dtype=torch.float64).view(1, 3, 1, 1) for part in pair]
            for pair in (given, wanted)
        ]
        self.register_buffer("scale", (std / own_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std).float(), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> the same, renormalised."""
        return images * self.scale + self.shift


def synchronises(recipe: Recipe, device: torch.device) -> bool:
    """Whether batch norms are to count the images of all processes.

    Raises:
        UserError: They are, on devices that can't.
    """
    wanted = recipe.runtime.sync_batchnorm and world() > 1
    if wanted and device.type != "cuda":
        raise UserError(
            "runtime.sync_batchnorm works on CUDA devices alone; drop it, and each process normalises by "
            "its own images"
        )
    return wanted


def place(network: Network, device: torch.device, channels_last: bool) -> None:
    """Move to ``device`` in the wanted memory layout."""
    if channels_last:
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        network.to(device)


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA when there is one; each of several processes takes its own device.

    Raises:
        UserError: No such device here.
    """
    if name == "auto":
        return own_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"runtime.device '{name}' is no device name; use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device '{name}' is not there ({torch.cuda.device_count()} CUDA devices found); use --device cpu"
        )
    return own_device(device)


def set_up_torch(recipe: Recipe) -> None:
    """Threads, determinism and matrix precision for this process."""
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    if recipe.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(recipe.runtime.deterministic)
    torch.backends.cudnn.benchmark = not recipe.runtime.deterministic


def protocol(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """What must be equal for two accuracies to be comparable."""
    return {
        "dataset": recipe.data.name,
        "few_ratio": recipe.data.few_ratio,
        "val_fraction": recipe.data.val_fraction,
        "train_images": data.train_size,
        "val_images": data.size("val"),
        "test_images": data.size("test"),
        "image_size": list(image_size(data)),
        "epochs": recipe.schedule.epochs,
        **({"processes": world()} if world() > 1 else {}),
    }


def network_facts(part: ModelRecipe, network: Network, image_size: tuple[int, int]) -> dict[str, Any]:
    """Name and fingerprint of a network for the record."""
    mark = fingerprint(network.model, image_size)
    return {
        "name": part.name,
        "parameters": mark.parameters,
        "macs": mark.macs,
        "schema_hash": mark.schema_hash,
        "weights": Path(part.weights).name if part.weights else None,
        "weights_hash": weights_hash(network.model),
    }
