"""Reading weights that others wrote, without ever running what a file may contain.

What a file is, is told from its bytes and keys, never from its name. Nothing here unpickles freely:
safetensors and ``.npz`` arrays hold no code, and torch files go through ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tutelage.errors import UserError

CONTAINERS = {
    "state_dict": "checkpoint with 'state_dict' (timm, SSKD, ImageNet scripts)",
    "model": "checkpoint with 'model' (RepDistiller, PACKD, mdistiller)",
    "net": "checkpoint with 'net' (HSAKD, DPCD)",
    "student": "checkpoint with 'student'",
    "model_state_dict": "checkpoint with 'model_state_dict'",
    "state_dict_ema": "checkpoint with 'state_dict_ema' (timm, averaged weights)",
    "model_ema": "checkpoint with 'model_ema' (averaged weights)",
}
"""Keys under which projects put their state dict, in the order they are looked for, and what that tells."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key."""

BACKBONE = "backbone."
BRANCHES = "auxiliary_classifier."
"""What HSAKD and DPCD put before the keys of the plain network and of its branches."""

MAX_SAFETENSORS_HEADER = 100_000_000
TORCH_PICKLE_PROTOCOL = 2
"""Torch files that are no zip archive are pickles of this protocol; later ones were not written by torch."""


@dataclass(frozen=True)
class ImportedWeights:
    """A state dict and where it was found.

    Attributes:
        state: Plain keys -> tensors on the CPU; floating ones are float32.
        format: What the file is, in words.
        notes: What was chosen, left out or converted, a sentence each.
        branches: The state dict of its auxiliary branches; empty where the file has none.
    """

    state: dict[str, Tensor]
    format: str
    notes: tuple[str, ...] = ()
    branches: dict[str, Tensor] = field(default_factory=dict)


def read_state_dict(path: str | Path, prefix: str | None = None) -> ImportedWeights:
    """Read the weights of one network from a file.

    Understood are safetensors, NumPy ``.npz`` and torch files, and in them bare state dicts (timm,
    torchvision), the checkpoints of `CONTAINERS`, DataParallel and torch.compile prefixes, mdistiller's
    distillers (``student.*``), wrappers of PACKD, HSAKD and DPCD (``backbone.*`` with or without branches;
    other parts are left out) and files with several networks (``resnet56/...``, ``net1.*``).

    Args:
        path: The file.
        prefix: Which of several networks, or which of several containers; None where there is one.

    Raises:
        UserError: Missing, unreadable, cut off or of an unknown kind; reading it would run code; several
            networks and no prefix; no such prefix; NaN or infinity among the weights.
    """
    path = Path(path)
    content, kind = _read(path)
    container, found = _container(path, content, prefix)
    if container == prefix:
        prefix = None
    notes: list[str] = []
    if container is None:
        label = kind if kind != "torch file" else "bare state dict (torchvision, timm)"
    else:
        label = CONTAINERS[container]
        others = [key for key in CONTAINERS if key != container and _holds_tensors(content.get(key))]
        if others:
            notes.append(f"took '{container}'; prefix={others[0]} would take the other weights in the file")
    state = _tensors(found, notes)
    state = _without_wrappers(state)
    state = _one_of_several(path, state, prefix, notes)
    state = _without_wrappers(state)
    state, branches = _backbone(state, notes)
    if not state:
        raise UserError(f"{path} holds no tensors; choose a file with a network's weights")
    state, branches = _checked(path, state, notes), _checked(path, branches, notes)
    return ImportedWeights(state, label, tuple(dict.fromkeys(notes)), branches)


def _read(path: Path) -> tuple[Any, str]:
    """The file's content and what kind of file it is."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        kind, reader = _reader(path, head)
        return reader(path), kind
    except FileNotFoundError as error:
        raise UserError(f"there is no weights file {path}; check the path") from error
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}; choose another file") from error


def _reader(path: Path, head: bytes) -> tuple[str, Callable[[Path], Any]]:
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except OSError:
            raise
        except Exception as error:  # names that aren't UTF-8 and versions that don't exist have other errors
            raise _corrupt(path) from error
        if names and all(name.endswith(".npy") for name in names):
            return "npz arrays", _read_npz
        if any(name.endswith("/constants.pkl") for name in names):
            raise _would_run_code(path, "a TorchScript program")
        return "torch file", _read_torch
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_SAFETENSORS_HEADER:
        return "safetensors", _read_safetensors
    if head.startswith(b"\x80"):
        if head[1:2] > bytes([TORCH_PICKLE_PROTOCOL]):
            raise _would_run_code(path, "a plain pickle")
        return "torch file", _read_torch
    raise UserError(
        f"{path} is no weights file of a kind known here (safetensors, torch, npz); choose another"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:
        raise _corrupt(path) from error


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: _as_tensor(arrays[key]) for key in arrays.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise _would_run_code(path, "a pickled object array") from error
        raise _corrupt(path) from error
    except OSError:
        raise
    except Exception as error:
        raise _corrupt(path) from error


def _as_tensor(array: np.ndarray[Any, Any]) -> Any:
    """The array as a tensor in this machine's byte order, or as it is where it holds no numbers."""
    if array.dtype.kind not in "fiub":
        return array
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))


def _read_torch(path: Path) -> Any:
    try:
        # RepDistiller and timm keep their arguments beside the weights. A Namespace only holds values, and
        # what it holds goes through the same check.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit is None:
            raise _corrupt(path) from error
        raise _would_run_code(path, culprit.group(1)) from error
    except OSError:
        raise
    except Exception as error:
        raise _corrupt(path) from error


def _corrupt(path: Path) -> UserError:
    return UserError(f"{path} is corrupt or cut off and was not loaded; fetch or save it again")


def _would_run_code(path: Path, culprit: str) -> UserError:
    return UserError(
        f"{path} was not loaded, because reading it could run code from the file ({culprit}); if you trust "
        "it, save its bare state dict again in the project that made it: torch.save(model.state_dict(), FILE)"
    )


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values())


def _container(path: Path, content: Any, prefix: str | None) -> tuple[str | None, Mapping[Any, Any]]:
    """The key under which the state dict lies (None: the content is the state dict), and the state dict."""
    if isinstance(content, Mapping):
        held = [key for key in CONTAINERS if _holds_tensors(content.get(key))]
        if held:
            chosen = prefix if prefix in held else held[0]
            return chosen, content[chosen]
        if _holds_tensors(content):
            return None, content
        keys = ", ".join(sorted(map(str, content))[:5]) or "none"
        raise UserError(f"{path} holds no state dict (its keys: {keys}); choose a file with weights")
    raise UserError(f"{path} holds a {type(content).__name__}, no state dict; choose a file with weights")


def _tensors(found: Mapping[Any, Any], notes: list[str]) -> dict[str, Tensor]:
    state = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if len(state) < len(found):
        notes.append(f"left out {len(found) - len(state)} entries that are no tensors")
    return state


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if state and all(key.startswith(wrapper) for key in state):
            return _without_wrappers(_part(state, wrapper))
    return state


def _part(state: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The entries whose keys begin with ``start``, without it."""
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def _one_of_several(
    path: Path, state: dict[str, Tensor], prefix: str | None, notes: list[str]
) -> dict[str, Tensor]:
    """The network that ``prefix`` chooses; without one, the only network or a distiller's student."""
    groups = _groups(state)
    if prefix is not None:
        for end in ("/", "."):
            chosen = _part(state, prefix.rstrip("/.") + end)
            if chosen:
                return chosen
        known = f"it has {_listed(groups)}" if groups else "it holds one network, so give no prefix"
        raise UserError(f"{path} has nothing under the prefix '{prefix}'; {known}")
    if len(groups) > 1:
        if groups[0] == "student":
            notes.append("took 'student'; left out " + _listed(groups[1:]))
            return _part(state, "student.")
        raise UserError(f"{path} holds several networks; choose one with --prefix: {_listed(groups)}")
    if groups:
        return _part(state, f"{groups[0]}/") or _part(state, f"{groups[0]}.")
    return state


def _groups(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the networks in a file, a distiller's student first; none for the keys of one network."""
    if all("/" in key for key in state):
        return _first_parts(state, "/")
    names = _first_parts(state, ".")
    if "student" in names:
        return ["student", *(name for name in names if name != "student")]
    if all(re.fullmatch(r"net\d+", name) for name in names):
        return names
    return []


def _first_parts(keys: Iterable[str], separator: str) -> list[str]:
    return list(dict.fromkeys(key.partition(separator)[0] for key in keys))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _backbone(state: dict[str, Tensor], notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The plain network and its branches; a state dict that is no wrapper's is a plain network."""
    backbone, branches = _part(state, BACKBONE), _part(state, BRANCHES)
    if not backbone:
        return state, {}
    others = [name for name in _first_parts(state, ".") if f"{name}." not in (BACKBONE, BRANCHES)]
    if others:
        left_out = len(state) - len(backbone) - len(branches)
        notes.append(f"took 'backbone'; left out {left_out} tensors of {_listed(others)}")
    if branches:
        notes.append(f"has auxiliary branches ({len(branches)} tensors)")
    return backbone, branches


def _checked(path: Path, state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The same tensors, dense and finite; floating ones as float32."""
    checked, converted = {}, set()
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise UserError(f"{path}: '{key}' is no dense tensor of real numbers; save it unquantised")
        if value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            # Copying such a view of few numbers would take memory that the file's size doesn't hint at.
            raise UserError(f"{path}: '{key}' has more values than the file holds; save it as a whole tensor")
        if value.is_floating_point():
            if value.dtype != torch.float32:
                converted.add(str(value.dtype).removeprefix("torch."))
                value = value.float()
            if not torch.isfinite(value).all():
                raise UserError(f"{path}: '{key}' holds NaN or infinity; choose weights that are sound")
        checked[key] = value.detach().contiguous()
    if converted:
        notes.append(f"read {_listed(sorted(converted))} as float32")
    return checked
