"""Handwritten digits as plain tensors, and a teacher: what the examples with loops of their own share."""

from __future__ import annotations

from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tutelage.models  # noqa: F401  (timm learns the names of the small networks)
from tutelage.data import load_dataset

MEAN, STD = 0.5, 0.25
COUNT = 640
"""Images of a part that are used: enough to see something learnt in seconds."""
EPOCHS = 2
RATE = 0.003
BATCH = 16


class Digits(NamedTuple):
    """Images `[N, 3, 32, 32]`, normalised, and labels `[N]` int64."""

    images: Tensor
    labels: Tensor


def digits(train: bool = True) -> Digits:
    """The first images of a part."""
    data = load_dataset("digits")
    part = (data.train_images, data.train_labels) if train else (data.test_images, data.test_labels)
    images, labels = (values[:COUNT] for values in part)
    return Digits((images / 255 - MEAN) / STD, labels)


def network(name: str) -> nn.Module:
    """A small network of timm or of the zoo for ten classes."""
    return timm.create_model(name, num_classes=10)


def trained_teacher(data: Digits) -> nn.Module:
    """A teacher that has learnt a little, by a loop that knows nothing of distillation."""
    torch.manual_seed(0)
    model = network("resnet8_cifar")
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(data.labels)).split(BATCH):
            F.cross_entropy(model(data.images[rows]), data.labels[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Percentage of right answers."""
    model.eval()
    right = (model(data.images).argmax(1) == data.labels).float().mean()
    return 100 * float(right)
