"""The device of a run, and how PyTorch is set up on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tutelage.errors import UserError
from tutelage.models.network import Network
from tutelage.recipes import Recipe
from tutelage.training.distributed import own_device, world
from tutelage.training.versions import versions


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA when there is one; each of several processes takes its own device.

    Raises:
        UserError: No such device here.
    """
    if name == "auto":
        return own_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"runtime.device '{name}' is no device name; use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device '{name}' is not there ({torch.cuda.device_count()} CUDA devices found); use --device cpu"
        )
    return own_device(device)


def set_up_torch(recipe: Recipe) -> None:
    """Threads, determinism and cuDNN's choice of algorithms for this process.

    The precision of float32 products stays as PyTorch has it: on CUDA convolutions may compute in TF32, which
    training can do with. What has to be exact runs under `exact_float32`.
    """
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    if recipe.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(recipe.runtime.deterministic)
    torch.backends.cudnn.benchmark = not recipe.runtime.deterministic


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Let float32 convolutions and matrix products be float32 while the block runs.

    PyTorch lets cuDNN round their factors to TF32, 10 bits of mantissa, unless it is told not to. No other
    setting is touched, and on a CPU none at all.

    Args:
        device: Where the block computes.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    with ExitStack() as stack:
        try:
            allowed, precision = cudnn.allow_tf32, torch.get_float32_matmul_precision()
        except RuntimeError:  # the newer names (PyTorch 2.9) were used, and then only they can be
            for kind in (cudnn.conv, products):  # type: ignore[attr-defined]
                stack.callback(setattr, kind, "fp32_precision", kind.fp32_precision)
                kind.fp32_precision = "ieee"
        else:
            stack.callback(setattr, cudnn, "allow_tf32", allowed)
            stack.callback(torch.set_float32_matmul_precision, precision)
            cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        yield


def amp_type(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """The autocast type the recipe asks for on ``device``, None for float32."""
    if recipe.runtime.amp == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if recipe.runtime.amp == "bf16" else None


def wants_compile(recipe: Recipe, device: torch.device) -> bool:
    """Whether the recipe asks for a compiled step on ``device``."""
    choice = recipe.runtime.compile
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def place(network: Network, device: torch.device, channels_last: bool) -> None:
    """Move to ``device`` in the wanted memory layout."""
    if channels_last:
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        network.to(device)


def synchronises(recipe: Recipe, device: torch.device) -> bool:
    """Whether batch norms are to count the images of all processes.

    Raises:
        UserError: They are, on devices that can't.
    """
    wanted = recipe.runtime.sync_batchnorm and world() > 1
    if wanted and device.type != "cuda":
        raise UserError(
            "runtime.sync_batchnorm works on CUDA devices alone; drop it, and each process normalises by "
            "its own images"
        )
    return wanted


def surroundings(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What a run computes on and with, for its record."""
    return {
        "hardware": hardware(device),
        "amp": str(amp_type(recipe, device) or "float32").removeprefix("torch."),
        "versions": versions(),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run computes on."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "count": world()}
    together = {"processes": world()} if world() > 1 else {}
    return {"device": f"cpu ({platform.machine()})", "threads": torch.get_num_threads(), **together}
