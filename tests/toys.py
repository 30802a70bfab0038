"""Tiny parts that several test modules build runs from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from tutelage.data import ResidentData, make_shapes
from tutelage.data.batch import Batch
from tutelage.methods import Clock, DataSpec, Method, Networks, create_method
from tutelage.models.network import Network, create_network
from tutelage.models.weights import save_weights
from tutelage.training.step import Step

CLASSES = ("apple", "pear", "plum")


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}),
    "cycle": ("CycleMLP_B1", {"depths": (1, 1, 2, 1), "widths": (8, 12, 16, 24)}),
    "hire": ("hire_mlp_tiny", {"depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24)}),
    "mlp": ("mixer", {"img_size": 32, "patch_size": 8, "num_blocks": 6, "embed_dim": 16}),
    "permutator": (
        "vip_s7",
        {"depths": (1, 1, 2, 1), "widths": (16, 24, 24, 24), "strides": (4, 2, 1, 1)},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "window_size": 2,
            "embed_dim": 8,
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 1, 2, 2),
            "drop_path_rate": 0.0,
        },
    ),
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 6, "embed_dim": 24}),
}
"""Tiny networks of several families for images of 32 x 32 pixels; any other name is timm's."""


SMALL: dict[str, dict[str, Any]] = {
    "crd": {"negatives": 64},
    "off": {"grid": 4, "dim": 32, "attention_dim": 16},
    "pat": {"dim": 64},
}
"""Settings that make the parts of methods as small as the networks, where their own are for large ones."""


BRIEF_RUN = (
    "data.few_ratio=0.07",
    "data.batch_size=16",
    "data.eval_batch_size=100",
    "schedule.epochs=3",
    "optimiser.lr=0.02",
    "runtime.tensorboard=false",
    "runtime.threads=1",
)
"""Settings of a run on `shapes`: 70 images, five steps an epoch."""


def saved_network(folder: Path, name: str, seed: int = 0) -> Path:
    """A file with random weights of a network for ten classes."""
    torch.manual_seed(seed)
    path = folder / f"{name}-{seed}.safetensors"
    save_weights(path, create_network(name, 10), {})
    return path


def toy_method(name: str, **settings: Any) -> Method:
    """A method with its own settings but for `SMALL`."""
    return create_method(name, **{**SMALL.get(name, {}), **settings})


def toy_data(per_class: int = 4) -> ResidentData:
    """A few procedural images a class, resident on the CPU."""
    return ResidentData(make_shapes(train_per_class=per_class, test_per_class=2), "cpu")


def toy_network(name: str, classes: int, **args: Any) -> nn.Module:
    """A network of `FAMILIES` or of timm with random weights."""
    if name not in FAMILIES:
        return create_network(name, classes, **args)
    known, settings = FAMILIES[name]
    if known == "mixer":  # timm's names of mixers fix their size
        return MlpMixer(classes, **settings)
    return create_network(known, classes, **settings)


def toy_networks(
    method: Method,
    data: ResidentData,
    student: str = "resnet8_cifar",
    teacher: str = "resnet14_cifar",
    **args: Any,
) -> Networks:
    """Small random networks that hand over what ``method`` needs."""
    torch.manual_seed(0)
    classes = data.info.num_classes
    needs = method.needs.for_classes(classes)
    students = tuple(
        Network(toy_network(student, classes, **args), needs.student, needs.student_role)
        for _ in range(needs.students)
    )
    frozen = None
    if needs.teacher is not None:
        frozen = Network(toy_network(teacher, classes, **args), needs.teacher, "frozen")
    return Networks(students, frozen)


def toy_step(method: Method, data: ResidentData, **names: Any) -> tuple[Step, Networks]:
    """``method``, set up for small networks, as a step in training mode."""
    nets = toy_networks(method, data, **names)
    side = data.info.image_size
    spec = DataSpec(data.info.num_classes, (3, side, side), data.train_labels, data.take, data.view_count)
    method.setup(nets, spec)
    return Step(nets, method).train(), nets


def objectives(step: Step, nets: Networks) -> dict[str, Step]:
    """One step for each objective among the phases of a method that is set up."""
    kinds = {(phase.objective, phase.trains) for phase in step.method.phases()}
    return {
        objective: Step(nets, step.method, objective, students=trains == "student").train()
        for objective, trains in sorted(kinds)
    }


def gradients_of(
    step: Step,
    nets: Networks,
    batch: Batch,
    clock: Clock,
    call: Callable[[Step], Callable[..., Any]] = lambda module: module,
) -> dict[str, torch.Tensor]:
    """Gradients of each objective by its name and the parameter's; the step's state stays as it was."""
    found, state = {}, copy.deepcopy(step.state_dict())
    for objective, module in objectives(step, nets).items():
        torch.manual_seed(1)
        call(module)(batch, clock).loss.backward()
        found |= {f"{objective} {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
        step.zero_grad(set_to_none=True)
        step.method.discard()
        step.load_state_dict(state)
    return found


def compiled_with(**settings: Any) -> Callable[[Step], Callable[..., Any]]:
    """A call of `torch.compile` on the whole step."""
    return partial(torch.compile, fullgraph=True, dynamic=False, **settings)


def toy_batch(data: ResidentData, size: int = 8, method: Method | None = None) -> Batch:
    """The first augmented batch of epoch 0, in the views of ``method``."""
    batch = next(iter(data.train_batches(0, 0, size)))
    return batch if method is None else method.views(batch, torch.Generator().manual_seed(0))


def toy_clock(epoch: float = 3.0, step: float = 12.0) -> Clock:
    """A point in time."""
    return Clock(torch.tensor(epoch), torch.tensor(step))


def draw_image(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> None:
    """A noisy image of ``size`` (width, height) whose colour tells its class, the name of its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 60, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    pixels[:, :, CLASSES.index(path.parent.name) if path.parent.name in CLASSES else 0] += 150
    Image.fromarray(pixels.numpy()).save(path)


def draw_folders(folder: Path, train: int = 5, test: int = 2) -> Path:
    """Training and test images of three classes, each in a folder: so many a class; returns ``folder``."""
    for part, count in (("train", train), ("val", test)):
        for number, name in enumerate(CLASSES):
            for i in range(count):
                kind = "png" if i % 2 else "JPEG"
                draw_image(folder / part / name / f"{i}.{kind}", 100 * number + i, (48 + i, 40))
    return folder
