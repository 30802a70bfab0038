"""The settings of a linear probe, and the protocols that fix them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from tutelage.errors import UserError, nearest
from tutelage.methods import explain
from tutelage.recipes import ModelRecipe, ScheduleRecipe
from tutelage.recipes.resolve import apply, parse_setting
from tutelage.recipes.schema import Section


class ProbeData(Section):
    """The images that the classifier is trained and tested on."""

    name: str = Field("digits", description="Dataset name (tutelage list datasets).")
    dir: str | None = Field(None, description="Folder that holds the dataset; None looks in ./data.")
    download: bool = Field(False, description="Fetch the dataset when it is not in the folder.")
    few_ratio: float = Field(
        1.0, gt=0, le=1, description="Share of the training images used, stratified by class with seed 0."
    )
    image_size: int | None = Field(
        None, ge=8, description="Side of the images in pixels; None: what the network was made for."
    )
    views: Literal["resized-crop", "flip", "plain"] = Field(
        "plain",
        description="What the classifier is trained on: random crops of 8 to 100% of the area, resized, and "
        "mirrored half of the time; images and their mirror images; images as they are tested.",
    )
    crop_share: float = Field(
        1.0, gt=0, le=1, description="Share of the resized side that testing shows; 1 shows the whole image."
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="Filter for resizing.")
    normalisation: Literal["dataset", "weights"] = Field(
        "weights",
        description="Whose mean and std images get: the dataset's, or those that the weights were trained "
        "with (where they are noted, else the dataset's).",
    )


class SgdRecipe(Section):
    """A classifier trained by stochastic gradient descent on cross entropy."""

    batch_size: int = Field(64, ge=1, description="Images per step.")
    lr: float = Field(0.1, gt=0, description="Base learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")
    nesterov: bool = Field(True, description="Nesterov's momentum.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay, of the bias too.")
    schedule: ScheduleRecipe = Field(description="Epochs, and the learning rate over them.")


class LbfgsRecipe(Section):
    """Multinomial logistic regression: mean cross entropy + strength/2 |W|^2 at its minimum, by L-BFGS.

    The strength is the one with the best accuracy on a held-out, stratified part of the training images:
    every second power of ten between the limits is tried, then neighbours at 1, 1/2 and 1/4 of a power. With
    it the classifier is fitted to all training images. Test images choose nothing.
    """

    held_out: float = Field(
        0.2, gt=0, lt=1, description="Share of the training images that choose the strength."
    )
    weakest: float = Field(1e-8, gt=0, description="Smallest strength that is tried.")
    strongest: float = Field(1e2, gt=0, description="Largest strength that is tried.")
    max_steps: int = Field(1000, ge=1, description="Steps of L-BFGS after which a fit ends in any case.")
    tolerance: float = Field(
        1e-5, gt=0, description="A fit ends where no derivative is larger than this, or at rounding."
    )

    @model_validator(mode="after")
    def _in_order(self) -> LbfgsRecipe:
        if self.weakest > self.strongest:
            raise ValueError(f"weakest {self.weakest:g} is above strongest {self.strongest:g}")
        return self


class ProbeRuntime(Section):
    """How the probe is carried out; changes nothing beyond rounding."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int | None = Field(None, ge=1, description="CPU threads; None leaves PyTorch's choice.")
    workers: int | None = Field(
        None, ge=0, description="Processes that decode image files; None: one per processor, at most 16."
    )
    feature_batch: int = Field(256, ge=1, description="Images that go through the network together.")
    cache_gib: float = Field(
        8.0,
        ge=0,
        description="Features up to this many GiB are computed once and kept on the device; more are "
        "computed anew every epoch.",
    )


class ProbeRecipe(Section):
    """A whole probe."""

    protocol: str = Field(description="Name of the protocol whose settings are the defaults.")
    seed: int = Field(0, ge=0, description="Seeds the classifier's first weights, order and views.")
    model: ModelRecipe = Field(description="The network whose features are probed.")
    checkpoint: Literal["last", "best"] = Field(
        "last", description="Which weights of a run are taken: the last epoch's, or the best epoch's."
    )
    data: ProbeData = Field(default_factory=ProbeData)
    sgd: SgdRecipe | None = Field(None, description="Train by SGD.")
    lbfgs: LbfgsRecipe | None = Field(None, description="Fit by L-BFGS.")
    runtime: ProbeRuntime = Field(default_factory=ProbeRuntime)

    @model_validator(mode="before")
    @classmethod
    def _one_classifier(cls, values: dict[str, Any]) -> dict[str, Any]:
        # Before the fields: what the wrong one of the two lacks is no way out.
        sgd, lbfgs = values.get("sgd"), values.get("lbfgs")
        if (sgd is None) == (lbfgs is None):
            raise UserError(
                f"protocol '{values.get('protocol')}' takes either sgd or lbfgs, not "
                f"{'neither' if sgd is None else 'both'}; --epochs, --batch-size and --set sgd.* are for the "
                "protocols that train by SGD"
            )
        return values


_PAPERS: dict[str, Any] = {
    "data": {
        "image_size": 32,
        "views": "resized-crop",
        "crop_share": 1.0,
        "interpolation": "bilinear",
        "normalisation": "dataset",
    },
    "sgd": {"schedule": {"epochs": 100, "kind": "multistep", "milestones": [30, 60, 90], "gamma": 0.1}},
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    # code/eval_rep_base.py: the student that was best on its own test images is probed.
    "packd": {**_PAPERS, "checkpoint": "best"},
    # eval_rep.py: the same optimiser, schedule and images; takes the backbone out of any checkpoint.
    "hsakd": {**_PAPERS, "checkpoint": "last"},
    "lbfgs": {
        "checkpoint": "last",
        "data": {"views": "plain", "interpolation": "bicubic", "normalisation": "weights"},
        "lbfgs": {},
    },
}
"""Protocol -> the settings that it fixes; each may be changed, and the record says so."""

OUTSIDE = ("model", "seed", "runtime", "protocol")
"""Sections that no protocol fixes."""
OF_THE_TASK = ("name", "dir", "download", "few_ratio")
"""Settings of the data that no protocol fixes."""


def resolve_probe(protocol: str, flags: Mapping[str, Any], settings: Iterable[str] = ()) -> ProbeRecipe:
    """The settings of a probe: the protocol's, changed by flags, changed by ``key.path=value``.

    Args:
        protocol: One of `PROTOCOLS`.
        flags: Dotted path -> value; None values are ignored.
        settings: Strings ``key.path=value``.

    Raises:
        UserError: No such protocol or setting, or a value that can't be.
    """
    values = _defaults(protocol)
    for key, value in flags.items():
        if value is not None:
            apply(values, key.split("."), value)
    for text in settings:
        path, value = parse_setting(text)
        apply(values, path, value)
    return _validated(values)


def departures(recipe: ProbeRecipe) -> dict[str, Any]:
    """Dotted path -> value of every setting in which a probe differs from its protocol."""
    values = _defaults(recipe.protocol)
    values["model"] = {"name": recipe.model.name}
    own, usual = (_flat(probe.model_dump(mode="json")) for probe in (recipe, _validated(values)))
    return {
        path: value
        for path, value in own.items()
        if path.split(".")[0] not in OUTSIDE
        and path not in {f"data.{key}" for key in OF_THE_TASK}
        and usual.get(path) != value
    }


def _defaults(protocol: str) -> dict[str, Any]:
    if protocol not in PROTOCOLS:
        raise UserError(
            f"there is no protocol '{protocol}'{nearest(protocol, PROTOCOLS)} (known: {', '.join(PROTOCOLS)})"
        )
    return {"protocol": protocol, **copy.deepcopy(PROTOCOLS[protocol])}


def _validated(values: dict[str, Any]) -> ProbeRecipe:
    try:
        return ProbeRecipe.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, ProbeRecipe, "")) from error


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[before + key] = value
    return flat
