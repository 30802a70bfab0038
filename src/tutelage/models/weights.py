"""Weights files: reading foreign ones safely, fitting them into networks, writing them with their facts.

Weights are written as safetensors, with a JSON file of the same name (the sidecar) for what a tensor can't
tell: normalisation, accuracy, origin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.files import named_path, write_atomically, write_json
from tutelage.models.creation import create_network
from tutelage.models.fingerprint import schema_hash, weights_hash
from tutelage.models.fitting import HEADS, fitted, load_into, misfit
from tutelage.models.known import find_known
from tutelage.models.reading import BACKBONE, BRANCHES, ImportedWeights, read_state_dict

__all__ = [
    "ImportedWeights",
    "import_weights",
    "inspect_weights",
    "joint_state",
    "load_into",
    "matching_models",
    "pair_state",
    "read_sidecar",
    "read_state_dict",
    "save_weights",
    "sidecar_path",
]

COMMON = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "efficientnet_b0",
    "convnext_tiny",
    "convnext_base",
    "swin_tiny_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "swin_nano_patch4_window7_224",
    "swin_pico_patch4_window7_224",
    "deit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "mixer_b16_224",
    "resmlp_12_224",
)
"""Networks for larger images that weights are compared with when no CIFAR network fits."""


def joint_state(model: Mapping[str, Tensor], branches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a network with branches as HSAKD and DPCD have it; `read_state_dict` takes it apart.

    Args:
        model: State dict of the plain network.
        branches: State dict of its `branches.Branches`.
    """
    return {**_under(BACKBONE, model), **_under(BRANCHES, branches)}


def pair_state(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state dicts of networks that learn together as one: the first under ``net1.``, and so on.

    ``read_state_dict(path, "net1")`` reads the first back.
    """
    return {
        key: value
        for number, state in enumerate(states, start=1)
        for key, value in _under(f"net{number}.", state).items()
    }


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def save_weights(
    path: str | Path, weights: nn.Module | Mapping[str, Tensor], sidecar: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write safetensors and the sidecar, each atomically, the weights first.

    Args:
        path: Where to; the sidecar gets the same name with ``.json``.
        weights: A network or its state dict.
        sidecar: Facts that JSON can hold; ``weights_hash`` and ``schema_hash`` are added.

    Returns:
        The sidecar.

    Raises:
        UserError: ``path`` ends in ``.json``.
        TutelageError: The files can't be written; what was there is as it was.
    """
    path = Path(path)
    if path == sidecar_path(path):
        raise UserError(f"{path} is where the facts about the weights go; choose a name with .safetensors")
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # safetensors refuses tensors that share memory, as tied weights do.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    facts = {**(sidecar or {}), "weights_hash": weights_hash(tensors), "schema_hash": schema_hash(tensors)}
    content = save(tensors)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    write_json(sidecar_path(path), facts)
    return facts


def sidecar_path(path: str | Path) -> Path:
    """Where the facts beside the weights ``path`` lie."""
    return Path(path).with_suffix(".json")


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """The facts noted beside the weights ``path``; empty where there are none or the JSON is somebody else's.

    Raises:
        UserError: The file is no JSON or can't be read.
    """
    if not Path(path).name:  # of '' and '.' nothing can lie beside
        return {}
    beside = sidecar_path(path)
    if not beside.exists():
        return {}
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"can't read {beside}, the facts about the weights; delete it or import again"
        ) from error
    return facts if isinstance(facts, dict) and "weights_hash" in facts else {}


def import_weights(
    source: str | Path,
    out: str | Path,
    prefix: str | None = None,
    model: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Turn a foreign weights file into safetensors with a sidecar; auxiliary branches are kept.

    Where the network is known, the weights get its own names, see `foreign`. What is noted beside ``source``
    already, as beside a run's weights, is taken over.

    Args:
        source: The foreign file, see `read_state_dict`.
        out: Where to write.
        prefix: Which network, where the file holds several.
        model: The network they belong to, checked; None looks for those that fit.
        mean: Normalisation the weights were trained with; None takes the published one of known weights.
        std: Likewise; both or neither.

    Returns:
        The sidecar: what the file was, the networks it fits, class count, normalisation, accuracy as
        published, hashes, licence. What is not known is None.

    Raises:
        UserError: The file can't be taken, doesn't fit ``model``, the normalisation is no such thing, or
            ``out`` is a folder or would take the sidecar's place from another JSON file.
        TutelageError: The result can't be written.
    """
    source, out = Path(source), named_path(out)
    _check_normalisation(mean, std)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out} is the file that is read; choose another name to write to")
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of the file to write")
    if sidecar_path(out).exists() and not out.exists():
        raise UserError(
            f"{sidecar_path(out)} is there already and would be overwritten by the facts about the weights; "
            "choose another name"
        )
    imported = read_state_dict(source, prefix)
    found = _facts(imported, model)
    facts = {**dict.fromkeys(found), **_noted(source, imported)}
    facts |= {name: value for name, value in found.items() if value is not None}
    if mean is not None and std is not None:
        facts |= {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    origin = {
        "source_file": source.name,
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "prefix": prefix,
    }
    state = imported.state
    if facts["model"] is not None:
        own = fitted(state, _blank(facts["model"], facts["num_classes"]))
        state = own.state
        facts["notes"] += [own.how] if own.how else []
    if imported.branches:
        state = joint_state(state, imported.branches)
    return save_weights(out, state, {**facts, **origin})


def inspect_weights(path: str | Path, prefix: str | None = None) -> dict[str, Any]:
    """What a weights file holds, without writing anything.

    Args:
        path: Any file `read_state_dict` takes.
        prefix: Which network, where the file holds several.

    Raises:
        UserError: The file can't be taken.
    """
    imported = read_state_dict(path, prefix)
    values = sum(value.numel() for value in imported.state.values())
    return {
        "file": Path(path).name,
        "prefix": prefix,
        **_facts(imported, None),
        "tensors": len(imported.state),
        "values": values,
        "weights_hash": weights_hash(imported.state),
        "schema_hash": schema_hash(imported.state),
        "sidecar": read_sidecar(path),
    }


def _noted(source: Path, imported: ImportedWeights) -> dict[str, Any]:
    """The facts beside ``source``, where they are about just these tensors."""
    try:
        noted = read_sidecar(source)
    except UserError:  # somebody else's file of that name
        return {}
    branches = imported.branches
    state = joint_state(imported.state, branches) if branches else imported.state
    return noted if noted.get("weights_hash") == weights_hash(state) else {}


def _facts(imported: ImportedWeights, model: str | None) -> dict[str, Any]:
    """What the weights themselves and the catalogue of known weights tell."""
    classes = class_count(imported.state)
    known = find_known(weights_hash(imported.state))
    if model is not None:
        _check_fit(imported.state, model, classes)
    fitting = [model] if model is not None else matching_models(imported.state)
    chosen = known.model if known is not None and model is None else fitting[0] if len(fitting) == 1 else None
    return {
        "format": imported.format,
        "notes": [*imported.notes],
        "model": chosen,
        "models": fitting,
        "num_classes": classes,
        "name": known.name if known else None,
        "dataset": known.dataset if known else None,
        "mean": known.mean if known else None,
        "std": known.std if known else None,
        "top1": known.top1 if known else None,
        "top5": known.top5 if known else None,
        "source": known.source if known else None,
        "licence": known.licence if known else None,
    }


def class_count(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of the last linear layer, or None where none is found under a usual name."""
    for head in HEADS:
        weight = state.get(f"{head}.weight")
        if weight is not None and weight.ndim >= 2:
            return len(weight)
    return None


def matching_models(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the networks whose state dict has these keys and shapes; those with the very same keys first.

    All CIFAR networks of the zoo are compared, and `COMMON` ones where none of them fits. Several may fit:
    strides, for one, can't be seen in weights.
    """
    classes = class_count(state)
    if classes is None:
        return []
    return _fitting(state, timm.list_models("*_cifar"), classes) or _fitting(state, COMMON, classes)


def _fitting(state: Mapping[str, Tensor], names: Iterable[str], classes: int) -> list[str]:
    exact: list[str] = []
    others: list[str] = []
    for name in names:
        blank = _blank(name, classes)
        found = fitted(state, blank)
        if misfit(found.state, blank.state_dict()) is None:
            (exact if found.state.keys() == state.keys() else others).append(name)
    return exact + others


def _blank(name: str, classes: int | None) -> nn.Module:
    """A network of shapes only, without memory for values."""
    with torch.device("meta"):
        return create_network(name, classes if classes is not None else 1000)


def _check_fit(state: Mapping[str, Tensor], model: str, classes: int | None) -> None:
    blank = _blank(model, classes)
    problem = misfit(fitted(state, blank).state, blank.state_dict())
    if problem is not None:
        fitting = matching_models(state)
        hint = f" (they fit {', '.join(fitting)})" if fitting else ""
        raise UserError(f"{model}: {problem}{hint}")


def _check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    if (mean is None) != (std is None):
        raise UserError("--mean and --std belong together; give both or neither")
    if mean is None or std is None:
        return
    sound = all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)
    if len(mean) != 3 or len(std) != 3 or not sound:
        raise UserError(
            "--mean takes three numbers from 0 to 1 and --std three above 0 and up to 1, for red, green and "
            "blue in 0..1"
        )
