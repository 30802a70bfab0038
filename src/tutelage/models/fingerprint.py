"""What a network is: its size, its cost, and hashes of its schema and its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models.probing import Size, blank_image, undisturbed

COUNTER = "num_batches_tracked"
"""Last part of the key under which a batch norm counts its batches."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


@dataclass(frozen=True)
class Fingerprint:
    """The facts by which two networks are told apart.

    Attributes:
        parameters: Number of values in parameters, frozen ones included, buffers not.
        macs: Multiply-adds for one image, see `multiply_adds`.
        schema_hash: See `schema_hash`.
    """

    parameters: int
    macs: int
    schema_hash: str


def fingerprint(model: nn.Module, input_size: Size) -> Fingerprint:
    """Size, cost and schema of ``model``; nothing of it changes.

    Args:
        model: Any network for images.
        input_size: Side, (H, W) or (C, H, W).
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Fingerprint(parameters, multiply_adds(model, input_size), schema_hash(model.state_dict()))


def multiply_adds(model: nn.Module, input_size: Size) -> int:
    """Multiply-adds of all convolutions and linear layers for one image, without biases.

    A convolution counts ``C_in * C_out * k_h * k_w / groups`` for each output position, a linear layer its
    weights for each position it is applied to. This is the rule of the research code (PACKD, HSAKD), so the
    numbers compare with theirs; products inside attention and layers used without being called are left out.

    Args:
        model: Any network for images.
        input_size: Side, (H, W) or (C, H, W).
    """
    total = 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal total
        total += layer_multiply_adds(module, args, output)

    counted = [module for module in model.modules() if isinstance(module, COUNTED)]
    handles = [module.register_forward_hook(count) for module in counted]
    try:
        with undisturbed(model):
            model(blank_image(model, input_size))
    finally:
        for handle in handles:
            handle.remove()
    return total


def layer_multiply_adds(module: nn.Module, args: Any, output: Tensor) -> int:
    """Multiply-adds of one call of a layer of `COUNTED`, for the whole batch; see `multiply_adds`.

    Args:
        module: The layer.
        args: What it was called with.
        output: What it gave.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    # A transposed convolution applies its weights once for each position that goes in.
    applied_to = args[0] if isinstance(module, TRANSPOSED) else output
    positions = applied_to.numel() // weight.shape[0]
    return weight.numel() * positions


def schema_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the sorted keys, shapes and types of a state dict."""
    lines = sorted(f"{key} {list(value.shape)} {value.dtype}\n" for key, value in state.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the sorted names, shapes and float32 values of a state dict.

    Batch counters are left out, because some files lack them; every type is read as float32 (little-endian),
    so that the same weights have one hash whatever file they lie in.

    Args:
        weights: A network or its state dict.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for key in sorted(state):
        if key.rpartition(".")[2] == COUNTER:
            continue
        value = state[key].detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(f"{key} {list(value.shape)}\n".encode())
        digest.update(value.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
