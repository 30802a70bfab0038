"""Folding a frozen network's batch norms into the convolutions before them: the same function, less work."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tutelage.models.network import Network, Outputs
from tutelage.models.probing import Size, blank_image, undisturbed

TOLERANCE = 1e-4
"""Relative difference of the outputs that other roundings may make (float32)."""

FOLDABLE = (nn.BatchNorm2d, BatchNormAct2d)


def folded(network: Network, size: Size) -> Network:
    """A copy of ``network`` whose batch norms sit in the convolutions where they directly follow one.

    In evaluation mode ``BN(Wx) = (sW)x + t`` with s and t constant, so the copy answers the same but for
    rounding. Which norm follows which convolution is seen in one pass over a random image, so any model
    will do; the copy's outputs on that image are compared with the network's, and should they differ the
    network itself comes back.

    Args:
        network: A frozen network.
        size: Size of the images it will get.

    Returns:
        The copy, or ``network`` where there is nothing to fold or folding would change what it answers.
    """
    blank = blank_image(network, size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(blank.shape, generator=generator).to(blank)
    with undisturbed(network):
        pairs, expected = _pairs(network, image)
        if not pairs:
            return network
        copied = copy.deepcopy(network)
        for conv, norm in pairs:
            _fold(copied, conv, norm)
        got = copied.eval()(image)
    return copied if _alike(_tensors(got), _tensors(expected)) else network


def _pairs(network: Network, image: Tensor) -> tuple[list[tuple[str, str]], Outputs]:
    """Paths of (convolution, batch norm), the norm being all that its output goes to; and the answer."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: list[tuple[str, str, Tensor]] = []
    handles = []

    def watch_conv(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            made[id(output)] = (path, output)  # held, so that its id stays its own

        return note

    def watch_norm(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if id(args[0]) in made:
                conv, output = made[id(args[0])]
                found.append((conv, path, output))

        return note

    for path, module in network.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(watch_conv(path)))
        elif type(module) in FOLDABLE and module.track_running_stats and module.affine:
            handles.append(module.register_forward_pre_hook(watch_norm(path)))
    try:
        with torch.enable_grad():
            answer = network(image.requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    uses = _uses(_tensors(answer))
    convs, norms = [conv for conv, _, _ in found], [norm for _, norm, _ in found]
    return [
        (conv, norm)
        for conv, norm, output in found
        if convs.count(conv) == norms.count(norm) == uses[output.grad_fn] == 1
    ], answer


def _uses(outputs: list[Tensor]) -> Counter[Any]:
    """How often the result of each operation behind ``outputs`` is used, read off the autograd graph."""
    uses: Counter[Any] = Counter()
    waiting = [output.grad_fn for output in outputs]
    seen = set(waiting)
    while waiting:
        for node, _ in getattr(waiting.pop(), "next_functions", ()):
            if node is not None:
                uses[node] += 1
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    return uses


def _fold(network: nn.Module, conv_path: str, norm_path: str) -> None:
    conv: Any = network.get_submodule(conv_path)
    norm: Any = network.get_submodule(norm_path)
    layout = torch.channels_last if conv.weight.is_contiguous(memory_format=torch.channels_last) else None
    fused = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
    if layout is not None:
        fused.to(memory_format=layout)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    network.set_submodule(conv_path, fused)
    network.set_submodule(norm_path, rest.eval())


def _tensors(out: Outputs) -> list[Tensor]:
    return [out.logits, *([] if out.pooled is None else [out.pooled]), *out.stages, *out.branches]


def _alike(got: list[Tensor], expected: list[Tensor]) -> bool:
    differences = [
        (a - b).double().norm() / b.double().norm().clamp(min=1e-12)
        for a, b in zip(got, expected, strict=True)
    ]
    return bool(torch.stack(differences).max() <= TOLERANCE)
