"""What a method does to its networks: where it taps them, and what it puts beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.methods import Clock, Method, Networks
from tutelage.models.fingerprint import COUNTED, layer_multiply_adds
from tutelage.models.network import Network, probe
from tutelage.models.probing import Size
from tutelage.models.taps import Stage
from tutelage.training.distributed import remembered
from tutelage.training.step import Step

Shape = list[int]


def describe_network_taps(network: Network, size: Size) -> dict[str, Any]:
    """What a network hands over, with shapes for one image.

    Args:
        network: Any.
        size: Of the data's images.

    Returns:
        ``stages``, a dictionary for each stage there is: ``stage`` (from 1), ``module`` (that ends it),
        ``entrance`` (the module that a prompt would stand in front of, or None), ``channels``, ``reduction``
        and, where the method takes it, ``shape`` [C, H, W] and ``input`` (what the stage receives). Then
        ``tapped`` (whether the method takes the stages), ``stem`` and ``pooled`` (shapes or None),
        ``prefix_tokens`` (how many come with each stage) and ``branches`` (widths).
    """
    ask, stages = network.ask, stages_of(network)
    shapes = probe(network, size)
    found = list(shapes.stages)
    stem = found.pop(0) if ask.stages and ask.stem else None
    rows: list[dict[str, Any]] = []
    for number, stage in enumerate(stages):
        row = {
            "stage": number + 1,
            "module": stage.module,
            "entrance": stage.boundary,
            "channels": stage.channels,
            "reduction": stage.reduction,
        }
        if ask.stages:
            arriving = shapes.inputs[number]
            row |= {"shape": list(found[number]), "input": None if arriving is None else list(arriving)}
        rows.append(row)
    beside = found[len(stages)] if len(found) > len(stages) else None
    return {
        "stages": rows,
        "tapped": ask.stages,
        "stem": None if stem is None else list(stem),
        "pooled": None if shapes.pooled is None else list(shapes.pooled),
        "prefix_tokens": 0 if beside is None else beside[1],
        "branches": [width for (width,) in shapes.branches],
    }


def stages_of(network: Network) -> tuple[Stage, ...]:
    """The stages found in a network; none where it has none that a method could tap."""
    try:
        return network.taps.stages
    except UserError:
        return ()


@dataclass
class Part:
    """Something that is trained beside the plain networks, and dropped at the end.

    Attributes:
        name: Its path in the method, or in the branches of a network.
        kind: The class of its module.
        parameters: Number of values that are trained.
        state: Number of values that are remembered.
        inputs: Shapes of what it receives for one sample; empty where it isn't called.
        outputs: Shapes of what it gives.
        macs: Multiply-adds for one sample, of convolutions and linear layers.
    """

    name: str
    kind: str
    parameters: int
    state: int
    inputs: list[Shape] = field(default_factory=list)
    outputs: list[Shape] = field(default_factory=list)
    macs: int = 0


def describe_parts(nets: Networks, method: Method, batch: Batch, clock: Clock) -> list[Part]:
    """Everything that is trained or remembered beside the plain networks, with what goes in and out.

    All phases' objectives are computed once in evaluation mode; what they keep is dropped.

    Args:
        nets: The networks that the method was set up for.
        method: Set up.
        batch: After `Method.views`.
        clock: To call the objectives with.
    """
    modules = dict(_parts("", method))
    for number, network in enumerate(nets.students):
        if network.branches is not None:
            role = "student" if number == 0 else f"peer{number}"
            modules |= dict(_parts(f"{role}.branches.", network.branches))
    parts = {name: _part(name, module) for name, module in modules.items()}
    samples = len(batch.images) // method.needs.views
    with _watched(modules, parts, samples):
        for objective, students in {(p.objective, p.trains == "student"): None for p in method.phases()}:
            step = Step(nets, method, objective, students=students)
            was_training = step.training
            step.eval()
            step.terms(batch, clock)
            step.train(was_training)
            method.discard()
    own = sum(p.numel() for p in method.parameters(recurse=False) if p.requires_grad)
    state = sum(value.numel() for name, value in remembered(method).items() if "." not in name)
    alone = [Part("(own values)", type(method).__name__, own, state)] if own or state else []
    return [part for part in parts.values() if part.parameters or part.state] + alone


def _parts(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module's children by path; of lists and dictionaries their members."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(f"{prefix}{name}.", child)
        else:
            yield f"{prefix}{name}", child


def _part(name: str, module: nn.Module) -> Part:
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    state = sum(value.numel() for value in remembered(module).values())
    return Part(name, type(module).__name__, trained, state)


@contextmanager
def _watched(modules: Mapping[str, nn.Module], parts: Mapping[str, Part], samples: int) -> Iterator[None]:
    """Note what goes through the parts; a part's first call tells its shapes, all calls count."""

    def on_call(part: Part) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if not part.outputs:
                part.inputs, part.outputs = _shapes(args), _shapes(output)

        return note

    def on_layer(part: Part) -> Any:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            part.macs += layer_multiply_adds(module, args, output)

        return note

    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_hook(on_call(parts[name])))
        layers = [layer for layer in module.modules() if isinstance(layer, COUNTED)]
        handles += [layer.register_forward_hook(on_layer(parts[name])) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for part in parts.values():
            part.macs //= max(samples, 1)


def _shapes(values: Any) -> list[Shape]:
    """Shapes of all tensors in arguments or answers, without the batch."""
    if isinstance(values, Tensor):
        return [list(values.shape[1:])]
    if isinstance(values, torch.nn.Module) or not isinstance(values, tuple | list):
        return []
    return [shape for value in values for shape in _shapes(value)]
