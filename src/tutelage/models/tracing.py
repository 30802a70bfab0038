"""Which modules a network ran between two of its tensors, found by watching it work on one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tutelage.models.probing import Size, blank_image, undisturbed


class Call(NamedTuple):
    """One call of a module with one tensor that gave one tensor.

    Attributes:
        path: The module's path.
        module: The module.
        began: When it began, counted in beginnings and ends of calls.
        ended: When it ended.
        given: The tensor it got.
        gave: The tensor it returned.
    """

    path: str
    module: nn.Module
    began: int
    ended: int
    given: Tensor
    gave: Tensor


class Trace(NamedTuple):
    """What happened in one pass of a network.

    Attributes:
        calls: By their beginnings, so that a module stands before its parts.
        features: The map that ``forward_features`` returned.
        pooled: What ``forward_head`` made of it before the last linear layer.
    """

    calls: tuple[Call, ...]
    features: Tensor
    pooled: Tensor


def trace(model: Any, size: Size) -> Trace:
    """Watch ``model`` (with timm's ``forward_features`` and ``forward_head``) work on a black image.

    Nothing of the model changes. Calls with several arguments are not written down.
    """
    time = 0
    open_calls: list[int] = []
    calls: list[Call] = []

    def begin(module: nn.Module, args: Any) -> None:
        nonlocal time
        open_calls.append(time)
        time += 1

    def watch(path: str) -> Any:
        def end(module: nn.Module, args: Any, settings: dict[str, Any], output: Any) -> None:
            nonlocal time
            began, time = open_calls.pop(), time + 1
            single = len(args) == 1 and not settings and isinstance(args[0], Tensor)
            if single and isinstance(output, Tensor):
                calls.append(Call(path, module, began, time, args[0], output))

        return end

    handles = []
    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(watch(path), with_kwargs=True))
    try:
        with undisturbed(model):
            features = model.forward_features(blank_image(model, size))
            pooled = model.forward_head(features, pre_logits=True)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(tuple(sorted(calls, key=lambda call: call.began)), features, pooled)


def chain(calls: Sequence[Call], start: Call, end: Tensor) -> list[Call] | None:
    """The calls that led from what ``start`` gave to ``end``, each given what the one before gave.

    The outermost modules are taken and identities left out. None where something else stood in between: an
    operation that is no module, or a module that took more than one tensor.
    """
    return _follow(calls, start.gave, end, start.ended)


def _follow(calls: Sequence[Call], current: Tensor, end: Tensor, since: int) -> list[Call] | None:
    if current is end:
        return []
    for call in calls:
        if call.began >= since and call.given is current and not isinstance(call.module, nn.Identity):
            rest = _follow(calls, call.gave, end, call.ended)
            if rest is not None:
                return [call, *rest]
    return None
