"""Tiny parts that several test modules build runs from."""

from __future__ import annotations

from typing import Any

import torch

from tutelage.data import ResidentData, make_shapes
from tutelage.data.batch import Batch
from tutelage.methods import Clock, DataSpec, Method, Networks
from tutelage.models.network import Network, create_network
from tutelage.training.step import Step


def toy_data(per_class: int = 4) -> ResidentData:
    """A few procedural images a class, resident on the CPU."""
    return ResidentData(make_shapes(train_per_class=per_class, test_per_class=2), "cpu")


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
        Network(create_network(student, classes, **args), needs.student, needs.student_role)
        for _ in range(needs.students)
    )
    frozen = None
    if needs.teacher is not None:
        frozen = Network(create_network(teacher, classes, **args), needs.teacher, "frozen")
    return Networks(students, frozen)


def toy_step(method: Method, data: ResidentData, **names: Any) -> tuple[Step, Networks]:
    """``method``, set up for small networks, as a step in training mode."""
    nets = toy_networks(method, data, **names)
    side = data.info.image_size
    spec = DataSpec(data.info.num_classes, (3, side, side), data.train_labels, data.take, data.view_count)
    method.setup(nets, spec)
    return Step(nets, method).train(), nets


def toy_batch(data: ResidentData, size: int = 8, method: Method | None = None) -> Batch:
    """The first augmented batch of epoch 0, in the views of ``method``."""
    batch = next(iter(data.train_batches(0, 0, size)))
    return batch if method is None else method.views(batch, torch.Generator().manual_seed(0))


def toy_clock(epoch: float = 3.0, step: float = 12.0) -> Clock:
    """A point in time."""
    return Clock(torch.tensor(epoch), torch.tensor(step))
