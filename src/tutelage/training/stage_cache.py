"""Parts that a first stage trained, kept for the next run that would train the very same.

A part is found by its content: a hash of everything that it depends on, not the teacher's name as in PACKD's
code, where another data subset or width silently gets the wrong head. Files lie in ``$TUTELAGE_CACHE``, by
default ``~/.cache/tutelage``; deleting any of them costs only the time to train it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from tutelage.data import ImageData
from tutelage.errors import UserError
from tutelage.files import cache_folder
from tutelage.methods import Method, Networks, Phase
from tutelage.models.fingerprint import weights_hash
from tutelage.models.weights import read_sidecar, save_weights
from tutelage.recipes import Recipe
from tutelage.training.preprocessing import normalisation
from tutelage.training.shown import own_wish
from tutelage.training.stopping import all_finite

BATCHES = {
    "interpolation",
    "color_jitter",
    "erase",
    "mixup",
    "cutmix",
    "mix_probability",
    "mix_switch",
    "mix_off_epoch",
    "repeats",
    "drop_last",
}
"""Settings of the data that training batches depend on; facts where they are not the defaults."""
FORMAT = 2
"""Raised when the meaning of a fact changes, so that older files are not found any more."""


def stage_facts(
    method: str,
    stage: str,
    teacher: nn.Module,
    architecture: Sequence[Any],
    settings: Mapping[str, Any],
    data: Mapping[str, Any],
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the outcome of a stage depends on, as JSON can hold it.

    Args:
        method: Registered name.
        stage: Name of the phase.
        teacher: The frozen network; its weights count, whatever file they came from.
        architecture: What it is beside its weights: its name, and the arguments it was made with.
        settings: The method's settings that the stage depends on.
        data: The images and their views, dataset, subset, labels, augmentation, normalisation.
        training: Seed, epochs, batch size, learning rate, optimiser, precision.
    """
    return {
        "format": FORMAT,
        "method": method,
        "stage": stage,
        "teacher": [weights_hash(teacher), *architecture],
        "settings": dict(settings),
        "data": dict(data),
        "training": dict(training),
    }


def phase_facts(
    recipe: Recipe, nets: Networks, method: Method, data: ImageData, phase: Phase, amp: torch.dtype | None
) -> dict[str, Any]:
    """The `stage_facts` of one phase of a run that has a teacher."""
    assert nets.teacher is not None and recipe.teacher is not None
    mean, std = normalisation(recipe)
    labels = data.train_labels.cpu().numpy().tobytes()
    return stage_facts(
        method=method.name,
        stage=phase.name,
        teacher=nets.teacher,
        architecture=[recipe.teacher.name, recipe.teacher.args],
        settings={name: getattr(method.config, name) for name in phase.settings},
        data={
            "images": data.identity(),
            "name": recipe.data.name,
            "few_ratio": recipe.data.few_ratio,
            "val_fraction": recipe.data.val_fraction,
            "augment": recipe.data.augment,
            "image_size": data.info.image_size,
            "labels": hashlib.sha256(labels).hexdigest(),
            "mean": list(mean),
            "std": list(std),
            **({"teacher": wish} if (wish := own_wish(nets.teacher.preprocess)) else {}),
            **recipe.data.model_dump(mode="json", include=BATCHES, exclude_defaults=True),
        },
        training={
            "seed": recipe.seed,
            "epochs": phase.epochs or recipe.schedule.epochs,
            "batch_size": recipe.data.batch_size,
            "lr": phase.lr,
            "schedule": None if phase.lr else recipe.schedule.model_dump(mode="json"),
            "optimiser": recipe.optimiser.model_dump(mode="json", exclude={"lr"} if phase.lr else None),
            "precision": str(amp),
        },
    )


def stage_key(facts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of ``facts``, whatever the order of their keys.

    Raises:
        TypeError: A fact is none that JSON can hold.
        ValueError: A number is not finite.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_path(facts: Mapping[str, Any]) -> Path:
    """Where the part with these facts lies, or would."""
    return cache_folder() / "stages" / f"{facts['method']}-{stage_key(facts)}.safetensors"


def save_stage(facts: Mapping[str, Any], part: nn.Module) -> Path:
    """Keep a trained part; two runs that write the same at once leave one whole file.

    Args:
        facts: Of `stage_facts`.
        part: The module that the stage trained.

    Returns:
        The file. The facts lie beside it, to be read by people and checked by `load_stage`.

    Raises:
        TutelageError: It can't be written.
    """
    path = stage_path(facts)
    save_weights(path, part, {"facts": dict(facts)})
    return path


def load_stage(facts: Mapping[str, Any], part: nn.Module) -> bool:
    """Fill ``part`` with what a stage of the same facts left behind.

    Args:
        facts: Of `stage_facts`.
        part: The module that the stage would train; on any device, as it is unless True is returned.

    Returns:
        Whether there was such a file, whole, untouched, finite and of the module's keys and shapes. One that
        is not gets replaced by the next `save_stage`.
    """
    path = stage_path(facts)
    try:
        state, noted = load(path.read_bytes()), read_sidecar(path)
    except (OSError, SafetensorError, UserError):
        return False  # absent, cut short or unreadable: in each case training again is the answer
    same_facts = noted.get("facts") == json.loads(json.dumps(facts))
    if not same_facts or noted.get("weights_hash") != weights_hash(state):
        return False
    if not _fits(state, part) or not all_finite(state.values()):
        return False
    part.load_state_dict(state)
    return True


def _fits(state: Mapping[str, Tensor], part: nn.Module) -> bool:
    shapes = {key: value.shape for key, value in part.state_dict().items()}
    return {key: value.shape for key, value in state.items()} == shapes
