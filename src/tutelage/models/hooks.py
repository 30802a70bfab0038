"""Hooks on a model's own modules: what one passes on is kept, or goes through another module first."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


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


def recorder_at(model: nn.Module, path: str, owner: object) -> Recorder:
    """Keep what the module at ``path`` returns, for as long as ``owner`` lives."""
    recorder = Recorder()
    _remove_with(owner, model.get_submodule(path).register_forward_hook(recorder))
    return recorder


def receiver_at(module: nn.Module, owner: object) -> Receiver:
    """Keep what ``module`` is given, for as long as ``owner`` lives."""
    receiver = Receiver()
    _remove_with(owner, module.register_forward_pre_hook(receiver))
    return receiver


def gate_at(model: nn.Module, path: str | None, owner: object) -> Gate | None:
    """A gate in front of the module at ``path``, for as long as ``owner`` lives; None without a path."""
    if path is None:
        return None
    gate = Gate()
    _remove_with(owner, model.get_submodule(path).register_forward_pre_hook(gate))
    return gate


def _remove_with(owner: object, handle: RemovableHandle) -> None:
    """Take the hook off when ``owner`` goes: the model may be somebody's who goes on with it."""
    weakref.finalize(owner, handle.remove).atexit = False
