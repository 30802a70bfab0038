"""Hooks on a model's own modules: what one passes on is kept, or goes through another module first."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Gate:
    """A forward pre-hook that is shut unless a module stands in it.

    An object rather than a closure, so that a copied network has gates of its own.
    """

    def __init__(self) -> None:
        self.module: nn.Module | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self.module is None else (self.module(args[0]), *args[1:])


class Recorder:
    """A forward hook that keeps what its module returned while it listens."""

    def __init__(self) -> None:
        self.listening = False
        self.seen: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.listening:
            self.seen = output


def recorder_at(model: nn.Module, path: str) -> Recorder:
    """Keep what the module at ``path`` returns."""
    recorder = Recorder()
    model.get_submodule(path).register_forward_hook(recorder)
    return recorder


def gate_at(model: nn.Module, path: str | None) -> Gate | None:
    """A gate in front of the module at ``path``; None without one."""
    if path is None:
        return None
    gate = Gate()
    model.get_submodule(path).register_forward_pre_hook(gate)
    return gate
