"""timm's pretrained weights: what is known about them without fetching, and fetching them."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from tutelage.models.creation import HUB, create_network


class Published(NamedTuple):
    """What timm knows about a network's pretrained weights.

    Attributes:
        mean: Channel means that images are normalised with, in 0..1.
        std: Channel standard deviations, likewise.
        num_classes: Classes of their classifier; 0 where they have none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int


@cache
def published_facts(name: str) -> Published | None:
    """What is known about the pretrained weights of ``name``, without fetching them (a hub's facts are).

    Args:
        name: timm's, with or without the tag of the weights (``vit_small_patch16_224.augreg_in21k_ft_in1k``).

    Returns:
        None where timm knows no such network or has no weights for it.

    Raises:
        TutelageError: The hub's facts can't be fetched.
    """
    if name.startswith(HUB):
        with torch.device("meta"):
            config: Any = create_network(name, None).pretrained_cfg
        return Published(tuple(config["mean"]), tuple(config["std"]), int(config["num_classes"]))
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None or not known.has_weights:
        return None
    return Published(tuple(known.mean), tuple(known.std), int(known.num_classes))


def pretrained_state(name: str, **settings: Any) -> dict[str, Tensor]:
    """The state dict of a network with timm's pretrained weights, with their own classifier.

    Random state stays as it is.

    Args:
        name: As for `create_network`.
        **settings: Likewise.

    Raises:
        UserError: No such network, or none with weights, or settings that it doesn't take.
        TutelageError: The weights can't be fetched.
    """
    with torch.random.fork_rng(devices=[]):
        return create_network(name, None, **{**settings, "pretrained": True}).state_dict()
