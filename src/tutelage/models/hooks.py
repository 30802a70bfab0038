"""Hooks on a model's own modules: what one passes on is kept, or goes through another module first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Listener:
    """A hook that keeps one tensor while it listens."""

    def __init__(self) -> None:
        self.listening = False
        self.seen: Tensor | None = None


class Recorder(Listener):
    """A forward hook that keeps what its module returned."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.listening:
            self.seen = output


class Receiver(Listener):
    """A forward pre-hook that keeps what its module is given."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.listening:
            self.seen = args[0]


def listen(
    listeners: Sequence[Listener], run: Callable[[Tensor], Tensor], given: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """What ``run(given)`` returns, and what the listeners saw of it, in their order; some may see nothing."""
    try:
        for listener in listeners:
            listener.listening = True
        answer = run(given)
        seen = [listener.seen for listener in listeners]
    finally:
        for listener in listeners:
            listener.listening, listener.seen = False, None
    return answer, [tensor for tensor in seen if tensor is not None]


def recorder_at(model: nn.Module, path: str) -> Recorder:
    """Keep what the module at ``path`` returns."""
    recorder = Recorder()
    model.get_submodule(path).register_forward_hook(recorder)
    return recorder


def receiver_at(module: nn.Module) -> Receiver:
    """Keep what ``module`` is given."""
    receiver = Receiver()
    module.register_forward_pre_hook(receiver)
    return receiver


def gate_at(model: nn.Module, path: str | None) -> Gate | None:
    """A gate in front of the module at ``path``; None without one."""
    if path is None:
        return None
    gate = Gate()
    model.get_submodule(path).register_forward_pre_hook(gate)
    return gate
