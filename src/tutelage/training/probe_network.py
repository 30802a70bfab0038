"""The network that a probe looks at: with its own weights, frozen, and a fresh classifier beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import UserError
from tutelage.models.fingerprint import weights_hash
from tutelage.models.network import Ask, Network, create_network
from tutelage.models.weights import class_count, load_into, read_state_dict
from tutelage.recipes import ModelRecipe
from tutelage.training.preprocessing import own_size, sidecar_of
from tutelage.training.probe_classifiers import Linear

UNKNOWN_CLASSES = 1000
"""Classes of a network whose weights don't tell; its classifier isn't used."""


def frozen_network(part: ModelRecipe) -> Network:
    """The network with its weights, whatever number of classes these are for, frozen.

    Args:
        part: Name, weights and arguments.

    Raises:
        UserError: No such network, no or unfitting weights, or it has no pooled features.
    """
    if part.weights is None:
        if not part.pretrained:
            raise UserError(
                f"'{part.name}' has no weights, so there is nothing to probe; give --weights FILE"
            )
        model, origin = create_network(part.name, UNKNOWN_CLASSES, **part.args), None
    else:
        found = read_state_dict(Path(part.weights), prefix=part.prefix)
        own = class_count(found.state) or sidecar_of(part).get("num_classes") or UNKNOWN_CLASSES
        model = create_network(part.name, own, **{**part.args, "pretrained": False})
        load_into(model, found.state, f"model weights {part.weights}")
        origin = weights_hash(found.state)
    network = Network(model, Ask(pooled=True), "frozen")
    network.origin = origin
    return network


def own_side(part: ModelRecipe, network: Network, otherwise: int) -> int:
    """Side of the images that the weights were made for, in pixels.

    Args:
        part: Of the recipe.
        network: Made of it.
        otherwise: What to take where neither the weights nor the network tell.
    """
    size = (getattr(network.model, "pretrained_cfg", None) or {}).get("input_size") or [otherwise]
    return own_size(part, True, (size[-1], size[-1]))[1]


def first_weights(part: ModelRecipe, width: int, classes: int, device: torch.device) -> Linear:
    """Where training starts: as a new network of this name for so many classes would.

    Args:
        part: Name and arguments.
        width: D, of the features.
        classes: C.
        device: Where to.
    """
    fresh: Any = create_network(part.name, classes, **{**part.args, "pretrained": False})
    head = fresh.get_classifier() if hasattr(fresh, "get_classifier") else None
    if not isinstance(head, nn.Linear) or head.weight.shape != (classes, width):
        head = nn.Linear(width, classes)
    bias = torch.zeros(classes) if head.bias is None else head.bias
    return Linear(*(values.detach().to(device, torch.float32) for values in (head.weight, bias)))
