"""What a network is: its size, its cost, and hashes of its schema and its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tutelage.models.probing import Size, blank_image, undisturbed

COUNTER = "num_batches_tracked"
"""Last part of the key under which a batch norm counts its batches."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
APPLIED = (F.linear, F.conv1d, F.conv2d, F.conv3d)
APPLIED_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
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
    numbers compare with theirs. The functions of PyTorch are counted that such layers call, so that a layer
    counts too which is used without being called (BEiT, EVA-02, Swin V2, CycleMLP); products of activations,
    as inside attention, are left out.

    Args:
        model: Any network for images.
        input_size: Side, (H, W) or (C, H, W).
    """
    with undisturbed(model), _Counter() as counter:
        model(blank_image(model, input_size))
    return counter.total


class _Counter(TorchFunctionMode):
    """Adds up the multiply-adds of what is computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        output = func(*args, **given)
        if func in APPLIED or func in APPLIED_TRANSPOSED:
            weight = args[1] if len(args) > 1 else given["weight"]
            image = args[0] if args else given["input"]
            self.total += _products(weight, image if func in APPLIED_TRANSPOSED else output)
        elif func is F.multi_head_attention_forward:  # its own calls don't come by here
            query, key, value = args[:3]
            out_weight = args[11] if len(args) > 11 else given["out_proj_weight"]
            self.total += _attention_products(query, key, value, out_weight)
        return output


def layer_multiply_adds(module: nn.Module, args: Any, output: Tensor) -> int:
    """Multiply-adds of one call of a layer of `COUNTED`, for the whole batch; see `multiply_adds`.

    Args:
        module: The layer.
        args: What it was called with.
        output: What it gave.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    return _products(weight, args[0] if isinstance(module, TRANSPOSED) else output)


def _products(weight: Tensor, applied_to: Tensor) -> int:
    """Multiply-adds of a weight ``[C, ...]`` at each position of a tensor with C channels.

    These are the output's, but a transposed convolution applies its weights once for each position that goes
    in.
    """
    return weight.numel() * (applied_to.numel() // weight.shape[0])


def _attention_products(query: Tensor, key: Tensor, value: Tensor, out_weight: Tensor) -> int:
    """Multiply-adds of the projections in PyTorch's own attention layer of width E, ``out_weight`` [E, E]."""
    width = len(out_weight)
    return (query.numel() + key.numel() + value.numel()) * width + query.numel() // width * out_weight.numel()


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
