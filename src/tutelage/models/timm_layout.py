"""A network as a folder in the layout of timm and the Hugging Face hub: weights and how to rebuild them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from tutelage.errors import TutelageError, UserError
from tutelage.models.creation import first_line
from tutelage.models.probing import undisturbed

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
NOT_REBUILT = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Arguments of ``timm.create_model`` that say where weights come from, not what the network is."""
OF_OTHER_WEIGHTS = (
    "tag",
    "license",
    "notes",
    "description",
    "paper_ids",
    "paper_name",
    "origin_url",
    "label_names",
    "label_descriptions",
    "test_input_size",
    "test_crop_pct",
    "test_pool_size",
)
"""What timm notes about the weights that an architecture is known for, and that don't hold for others."""


@dataclass(frozen=True)
class Preprocessing:
    """What an image goes through before the network.

    Attributes:
        input_size: (H, W) in pixels.
        mean: Channel means in 0..1.
        std: Channel standard deviations, likewise.
        crop_pct: Share of the resized side that is cut out of the centre.
        interpolation: "bilinear" or "bicubic".
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str

    def config(self) -> dict[str, Any]:
        """The same as timm's ``pretrained_cfg`` has it."""
        return {
            "input_size": [3, *self.input_size],
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_pct": self.crop_pct,
            "crop_mode": "center",
            "interpolation": self.interpolation,
        }


def structure(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``timm.create_model`` that decide what the network is."""
    return {
        key: value
        for key, value in args.items()
        if key not in NOT_REBUILT and not key.startswith("drop_") and not key.endswith("_drop_rate")
    }


def write_timm_folder(
    model: nn.Module,
    folder: Path,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    args: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        model: A network that timm built; its head is the one that is exported.
        folder: Where to.
        preprocessing: What its images go through.
        labels: Names of the classes in order; empty where they are not known.
        args: What the network was created with beside name and class count.

    Returns:
        The content of ``config.json``.

    Raises:
        UserError: The network was not built by timm's builder, or with arguments that JSON can't hold.
    """
    own = getattr(model, "pretrained_cfg", None)
    if not own:
        raise UserError(
            f"{type(model).__name__} can't be exported in timm's layout, because timm's builder didn't make "
            "it; build it with timm.models.build_model_with_cfg in its registered function"
        )
    extra: dict[str, Any] = {"pretrained_cfg": preprocessing.config()}
    if labels:
        extra["label_names"] = list(labels)
    path = folder / CONFIG
    try:
        save_config_for_hf(model, str(path), model_config=extra, model_args=structure(args))
    except ValueError as error:
        raise UserError(f"{type(model).__name__} can't be exported: {first_line(error)}") from error
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in OF_OTHER_WEIGHTS:
        config["pretrained_cfg"].pop(key, None)
    config["model_args"] = {**config.get("model_args", {}), "num_classes": config["num_classes"]}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return config


def load_timm_folder(folder: Path) -> nn.Module:
    """The network in an exported folder, made by timm alone.

    Raises:
        TutelageError: timm can't make or load it.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    overlay = {**config["pretrained_cfg"], "file": str(folder / WEIGHTS)}
    try:
        model: nn.Module = timm.create_model(
            config["architecture"], pretrained=True, pretrained_cfg_overlay=overlay, **config["model_args"]
        )
    except Exception as error:
        raise TutelageError(
            f"timm can't load the exported '{config['architecture']}': {first_line(error)}; "
            "nothing was written"
        ) from error
    return model


def check_timm_folder(folder: Path, model: nn.Module, images: Tensor) -> None:
    """Compare the logits of what timm loads with the network's, which have to be equal to the bit.

    Args:
        folder: See `write_timm_folder`.
        model: The network that was exported.
        images: [B, 3, H, W].

    Raises:
        TutelageError: They differ.
    """
    loaded = load_timm_folder(folder)
    with undisturbed(loaded), undisturbed(model):
        got, wanted = loaded(images), model(images)
    if got.shape != wanted.shape or not torch.equal(got, wanted):
        raise TutelageError(
            f"timm makes another network of the exported {type(model).__name__} than it was; "
            "nothing was written"
        )
