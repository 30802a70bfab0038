"""Making stages of timm's networks again with fresh weights, without knowing the network.

A copy of the network's own modules keeps what they compute; weights come from a new network of the same name,
so that they start as timm starts them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.errors import UserError
from tutelage.models.creation import create_network, first_line
from tutelage.models.probing import undisturbed
from tutelage.models.taps import describe_taps
from tutelage.models.tracing import Call, Trace, chain, trace

DEFAULT_INPUT = (3, 224, 224)


class Rebuilder:
    """Makes what follows a stage of ``model`` again, up to the pooled vector.

    Attributes:
        taps: The stages' features by index for ``forward_intermediates``.
        pooled_width: Length of the vector before the last linear layer.

    Raises:
        UserError: The network isn't a convolutional one of timm, or does more than run modules in a row.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name = type(model).__name__
        taps = describe_taps(model)
        if taps.channels_last or not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
            raise self._refusal("it is no convolutional network of timm's kind")
        self.taps = tuple(taps.indices)
        config = getattr(model, "pretrained_cfg", None) or {}
        self._architecture = str(config.get("architecture") or "")
        sizes = (getattr(part, "img_size", None) for part in model.children())  # what patches are made for
        seen = trace(model, next(filter(None, sizes), None) or config.get("input_size", DEFAULT_INPUT))
        self.pooled_width = seen.pooled.flatten(1).shape[1]
        self._calls = {call.path: call for call in seen.calls}
        ends = [self._calls.get(model.feature_info[index]["module"]) for index in self.taps]
        maps = [end for end in ends if end is not None and end.gave.ndim == 4]
        if len(maps) < len(self.taps):
            raise self._refusal("its stages don't end in maps")
        self._maps = [end.gave for end in maps]
        self._stages = [self._between(seen, before, after.gave) for before, after in pairwise(maps)]
        tail = self._between(seen, maps[-1], seen.features)
        self._tail = [*tail, *self._between(seen, tail[-1] if tail else maps[-1], seen.pooled)]
        self._source: nn.Module | None = None
        self._used: list[str] = []

    def after(self, number: int) -> nn.Sequential:
        """What follows stage ``number`` (from 1), from ``[B, C_l, H_l, W_l]`` to ``[B, pooled_width]``.

        After the last stage comes that stage again, at the size and width that it ends with.

        Raises:
            UserError: The last stage has no block that keeps the shape, so it can't follow itself; or what
                follows would change the map that it gets.
        """
        if number < len(self.taps):
            modules = [self._fresh(call.path) for stage in self._stages[number - 1 :] for call in stage]
        else:
            modules = self._last_again()
        body = nn.Sequential(*modules, *(self._fresh(call.path) for call in self._tail))
        start = torch.zeros_like(self._maps[number - 1])
        with undisturbed(body):
            body(start)
        if start._version > 0:
            raise self._refusal("its blocks write into the maps that they get")
        return body

    def _last_again(self) -> list[nn.Module]:
        paths = [call.path for call in self._stages[-1]]
        modules = [module for path in paths if (module := self._same_shape(path, paths)) is not None]
        body = nn.Sequential(*modules)
        try:
            with undisturbed(body):
                fits = body(torch.zeros_like(self._maps[-1])).shape == self._maps[-1].shape
        except Exception:  # what a block says of a map that it can't take differs from block to block
            fits = False
        if not fits or not any(isinstance(part, nn.Conv2d) for part in body.modules()):
            count = len(self.taps)
            raise UserError(
                f"{self.name} can't have branch {count}, because its last stage has no block that keeps the "
                f"shape of its map; ask for branches 1 to {count - 1}"
            )
        return modules

    def _same_shape(self, path: str, siblings: Sequence[str]) -> nn.Module | None:
        """The module at ``path`` again, for a map as the last stage returns it; None where nothing is left.

        A block that changes the shape gives way to another of its kind that doesn't; what has no such sibling
        (a downsampling layer) is left out.
        """
        standing_in = self._standing_in(path, siblings)
        if standing_in is not None:
            return self._fresh(standing_in)
        if not self._has_keeper(path):
            return None
        module = self._fresh(path)
        self._adapt(module, path)
        return module

    def _adapt(self, module: nn.Module, path: str) -> None:
        """Replace what changes the shape in ``module``, a copy of the one at ``path``."""
        parts = self._parts(path)
        for part in parts:
            name, standing_in = part.rpartition(".")[2], self._standing_in(part, parts)
            if standing_in == part:
                continue
            if standing_in is not None:
                setattr(module, name, self._fresh(standing_in))
            elif self._is_row(part) and self._has_keeper(part):
                self._adapt(getattr(module, name), part)
            else:
                setattr(module, name, nn.Identity())

    def _standing_in(self, path: str, siblings: Sequence[str]) -> str | None:
        """``path`` itself where it keeps the shape, else a block of the same kind that does, or None."""
        if self._keeps_shape(path):
            return path
        if self._is_row(path):
            return None
        kind = type(self.model.get_submodule(path))
        alike = (other for other in siblings if type(self.model.get_submodule(other)) is kind)
        return next((other for other in alike if self._keeps_shape(other)), None)

    def _has_keeper(self, path: str) -> bool:
        """Whether a part of the module at ``path`` (also inside sequences) keeps the last map's shape."""
        return any(
            self._keeps_shape(part) or (self._is_row(part) and self._has_keeper(part))
            for part in self._parts(path)
        )

    def _keeps_shape(self, path: str) -> bool:
        call = self._calls[path]
        return call.given.shape == call.gave.shape == self._maps[-1].shape

    def _is_row(self, path: str) -> bool:
        return type(self.model.get_submodule(path)) is nn.Sequential

    def _parts(self, path: str) -> list[str]:
        """Paths of the parts of the module at ``path`` that were called."""
        parts = [f"{path}.{name}" for name, _ in self.model.get_submodule(path).named_children()]
        return [part for part in parts if part in self._calls]

    def _between(self, seen: Trace, start: Call, end: Tensor) -> list[Call]:
        calls = chain(seen.calls, start, end)
        if calls is None:
            raise self._refusal("it does more between its stages and its answer than run modules in a row")
        return calls

    def _fresh(self, path: str) -> nn.Module:
        """A copy of the module at ``path`` with new weights; the same path gives others the next time."""
        module = copy.deepcopy(self.model.get_submodule(path)).requires_grad_(True)
        if not module.state_dict():
            return module
        if self._source is None or any(_overlap(path, other) for other in self._used):
            self._source, self._used = self._new_network(), []
        self._used.append(path)
        try:
            module.load_state_dict(self._source.get_submodule(path).state_dict())
        except (AttributeError, RuntimeError) as error:
            raise self._refusal(f"'{path}' isn't as timm makes it ({first_line(error)})") from error
        for part in module.modules():
            if isinstance(part, _BatchNorm):  # timm starts the last of a block at 0, HSAKD all at 1
                part.reset_parameters()
        return module

    def _new_network(self) -> nn.Module:
        if not timm.is_model(self._architecture):
            raise self._refusal("timm doesn't know it by name, so nothing tells how its weights start")
        return create_network(self._architecture, self.model.num_classes)

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"{self.name} can't have auxiliary branches: {reason}; take a network of the zoo (*_cifar), or a "
            "convolutional one of timm with stages (resnet18, convnext_tiny)"
        )


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
