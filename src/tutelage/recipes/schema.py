"""The schema of a recipe: everything that determines a run.

A recipe is YAML. Unknown keys are refused with the nearest known name; every field has a meaning and a
default, so the resolved recipe that is saved with a run is complete and running it repeats the run.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tutelage.errors import UserError
from tutelage.methods import explain, method_config

Mean = Annotated[float, Field(ge=0, le=1)]
Std = Annotated[float, Field(gt=0, le=1)]
"""A channel's normalisation, of pixels in 0..1; a zero would train to NaN, numbers of 0..255 to nothing."""


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataRecipe(Section):
    """Which images, how they are split, augmented and batched."""

    name: str = Field("digits", description="Dataset name (tutelage list datasets).")
    dir: str | None = Field(None, description="Folder that holds the dataset; None looks in ./data.")
    download: bool = Field(False, description="Fetch the dataset when it is not in the folder.")
    image_column: str | None = Field(
        None,
        description="Column, or kind of file, with the images, where the dataset has several (hfds, wds).",
    )
    label_column: str | None = Field(
        None,
        description="Column, or field of the samples' JSON, with the class numbers, where there is a "
        "choice (hfds, wds).",
    )
    train_split: str | None = Field(
        None,
        description="Split, or pattern of archives, to train on, where there is a choice (hfds, tar, wds).",
    )
    test_split: str | None = Field(None, description="Split, or pattern of archives, to test on, likewise.")
    few_ratio: float = Field(
        1.0, gt=0, le=1, description="Share of the training images used, stratified by class with seed 0."
    )
    val_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of the training images held out, stratified, for validation."
    )
    image_size: int | None = Field(
        None,
        ge=8,
        description="Side of the images in pixels; None: the dataset's. Training then crops and resizes at "
        "random, evaluation shows the centre.",
    )
    crop_share: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Share of the resized side that evaluation shows (timm's crop_pct), where images are "
        "resized.",
    )
    interpolation: Literal["random", "bilinear", "bicubic"] = Field(
        "random",
        description="Filter for resizing; random is bilinear or bicubic while training and bicubic in "
        "evaluation, as in timm.",
    )
    augment: bool | str = Field(
        True,
        description="Random crop and flip (as the dataset allows) while training; autoaugment adds its "
        "CIFAR-10 policy and Cutout, and a policy of timm's such as rand-m9-mstd0.5-inc1 adds RandAugment.",
    )
    color_jitter: float = Field(
        0.0,
        ge=0,
        description="Change brightness, contrast and saturation by up to this share; a policy in augment "
        "takes its place, as in timm.",
    )
    erase: float = Field(
        0.0, ge=0, le=1, description="Chance that a random rectangle of an image is replaced by noise."
    )
    mixup: float = Field(
        0.0, ge=0, description="Mixup's alpha: blend images and labels with those of another image; 0: none."
    )
    cutmix: float = Field(
        0.0, ge=0, description="CutMix's alpha: paste a rectangle of another image, labels by area; 0: none."
    )
    mix_probability: float = Field(1.0, ge=0, le=1, description="Chance that a batch is mixed at all.")
    mix_switch: float = Field(
        0.5, ge=0, le=1, description="Chance of CutMix for a batch, where there is mixup too."
    )
    mix_off_epoch: int = Field(
        0, ge=0, description="Epoch, counted from 0, from which batches are mixed no more; 0: never."
    )
    repeats: int = Field(
        0,
        ge=0,
        description="Show each image so many times in a row, augmented afresh, and fewer images an epoch "
        "(repeated augmentation); 0: every image once.",
    )
    mean: tuple[Mean, Mean, Mean] | None = Field(
        None,
        description="Normalisation mean, of pixels in 0..1; None takes it from the weights' sidecar or the "
        "dataset.",
    )
    std: tuple[Std, Std, Std] | None = Field(None, description="Normalisation std; None as for mean.")
    batch_size: int = Field(64, ge=1, description="Images per training step, of all processes together.")
    drop_last: bool = Field(False, description="Leave out an epoch's last batch where it is smaller.")
    branch_evaluation: bool = Field(
        True,
        description="Measure branches too, over all rotations; false measures backbones on upright images "
        "alone, at a quarter of the cost.",
    )
    eval_batch_size: int = Field(250, ge=1, description="Images per evaluation batch.")


class ModelRecipe(Section):
    """One network."""

    name: str = Field(description="Name known to timm, e.g. resnet20_cifar (tutelage list models).")
    weights: str | None = Field(None, description="File with weights to start from; None starts afresh.")
    prefix: str | None = Field(None, description="Key prefix to select inside the file.")
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments for timm.create_model.")
    image_size: int | None = Field(
        None,
        ge=8,
        description="Side of the images this network gets, resized for it alone on the device; None: the "
        "side noted beside a frozen network's weights, else the data's.",
    )
    own_normalisation: bool = Field(
        True,
        description="Normalise images as the weights want (their sidecar, or timm's facts about pretrained "
        "weights); false gives the network the data's, as OFA-KD and PAT do.",
    )
    reset_head: bool = Field(
        False, description="Drop the weights' classifier, as for data of other classes, and train a new one."
    )

    @property
    def pretrained(self) -> bool:
        """Whether it starts from timm's pretrained weights, or from a file that stands for them."""
        return bool(self.args.get("pretrained", False))

    @property
    def has_weights(self) -> bool:
        """Whether it starts from weights of any origin."""
        return self.weights is not None or self.pretrained


class OptimiserRecipe(Section):
    """The optimiser, built by timm."""

    name: str = Field("sgd", description="timm optimiser: sgd is Nesterov, momentum is not; adamw, lamb, ...")
    lr: float = Field(0.05, gt=0, description="Base learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum (SGD family).")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay.")
    decay_all: bool = Field(
        True, description="Decay biases and norm weights too, as the CIFAR projects do; false spares them."
    )
    clip_grad: float | None = Field(None, gt=0, description="Clip the global gradient norm to this.")


class ScheduleRecipe(Section):
    """How long, and the learning rate over time."""

    epochs: int = Field(100, ge=1, description="Passes over the training subset.")
    kind: Literal["cosine", "multistep", "step", "constant"] = Field(
        "cosine", description="Shape of the decay."
    )
    milestones: tuple[int, ...] = Field((), description="multistep: 0-based epochs at which the rate drops.")
    gamma: float = Field(0.1, gt=0, le=1, description="multistep, step: factor of each drop.")
    step_epochs: int = Field(30, ge=1, description="step: epochs between drops.")
    min_lr: float = Field(0.0, ge=0, description="cosine: rate at the end.")
    period: int | None = Field(
        None,
        ge=1,
        description="cosine: epochs of the first cycle, each next one twice as long; None for one cycle.",
    )
    warmup_epochs: int = Field(0, ge=0, description="Epochs of linear warm-up.")
    warmup_lr: float = Field(0.0, ge=0, description="Rate that the warm-up starts from.")
    warmup_by: Literal["epoch", "iteration"] = Field(
        "epoch", description="Raise the rate once an epoch or a step."
    )
    warmup_prefix: bool = Field(
        False, description="Count milestones and cosine from the end of the warm-up instead of from epoch 0."
    )


class RuntimeRecipe(Section):
    """How the run is carried out; does not change what is learnt beyond rounding."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    amp: Literal["auto", "off", "bf16"] = Field(
        "auto", description="bfloat16 autocast; auto is on for CUDA devices that support it."
    )
    workers: int | None = Field(
        None, ge=0, description="Processes that decode image files; None: one per processor, at most 16."
    )
    reuse_stages: bool = Field(
        True,
        description="Take over a teacher's head that an earlier run trained on the same teacher, data and "
        "settings (kept in $TUTELAGE_CACHE, else ~/.cache/tutelage).",
    )
    teacher_answers: Literal["auto", "off", "memory", "disk"] = Field(
        "auto",
        description="Look the frozen teacher's answers up in a table instead of asking it again for the same "
        "view of the same image: memory keeps a table on the device, disk also keeps it for later runs (in "
        "$TUTELAGE_CACHE, else ~/.cache/tutelage); auto is memory where a tenth of the answers or more are "
        "found again and the method asks for no more than scores and pooled features.",
    )
    cache_gib: float = Field(
        4.0, gt=0, description="Memory that the table of the teacher's answers may take, in GiB."
    )
    channels_last: bool = Field(True, description="Channels-last memory layout.")
    compile: Literal["auto", "off", "on"] = Field(
        "auto",
        description="Compile the step; auto is on for CUDA, and off on CPU, where compiling takes a minute.",
    )
    deterministic: bool = Field(False, description="Only deterministic kernels; slower on CUDA.")
    threads: int | None = Field(None, ge=1, description="CPU threads; None leaves PyTorch's choice.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Keep an exponential moving average of the student with this decay."
    )
    sync_batchnorm: bool = Field(
        False,
        description="With several processes: batch norms that train count the images of all of them (CUDA); "
        "else each counts its own.",
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Also save the state every so many steps; None saves once an epoch."
    )
    tensorboard: bool = Field(True, description="Write TensorBoard events.")


UNDECISIVE: dict[str, set[str]] = {
    "data": {"dir", "download", "eval_batch_size"},
    "runtime": {
        "device",
        "workers",
        "reuse_stages",
        "teacher_answers",
        "cache_gib",
        "threads",
        "checkpoint_steps",
        "tensorboard",
    },
}
"""Settings by section that decide how and where a run is computed, and change no more than rounding."""


class Recipe(Section):
    """A whole run."""

    task: Literal["train", "distill"] = Field(
        "distill", description="train has no teacher; distill has one, or students that teach each other."
    )
    note: str = Field("", description="What the recipe reproduces and where its settings are from.")
    seed: int = Field(0, ge=0, description="Seeds initialisation, order and augmentation.")
    data: DataRecipe = Field(default_factory=DataRecipe)
    student: ModelRecipe = Field(description="The network that is trained.")
    peers: tuple[ModelRecipe, ...] = Field(
        (), description="Further trained networks of a mutual method; missing ones are made like the student."
    )
    teacher: ModelRecipe | None = Field(None, description="The frozen network that is learnt from.")
    method: dict[str, Any] = Field(
        default_factory=lambda: {"name": "none"},
        description="Method name and its settings (tutelage show kd).",
    )
    selection: Literal["backbone", "joint"] = Field(
        "backbone",
        description="What chooses the best epoch: the backbone's top-1, or the best branch's joint top-1 as "
        "HSAKD chooses teachers.",
    )
    optimiser: OptimiserRecipe = Field(default_factory=OptimiserRecipe)
    schedule: ScheduleRecipe = Field(default_factory=ScheduleRecipe)
    runtime: RuntimeRecipe = Field(default_factory=RuntimeRecipe)

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        name = self.method.get("name")
        if not isinstance(name, str):
            raise UserError("'method.name' is missing; set it with --method NAME or --set method.name=NAME")
        settings = {key: value for key, value in self.method.items() if key != "name"}
        resolved = {"name": name, **method_config(name, settings).model_dump()}
        object.__setattr__(self, "method", resolved)
        return self

    @property
    def method_settings(self) -> dict[str, Any]:
        """The method's settings without its name."""
        return {key: value for key, value in self.method.items() if key != "name"}

    def hash(self) -> str:
        """Twelve hex digits of what determines the result up to rounding.

        That is all but the note, folders, and what only decides how the work is done (`UNDECISIVE`), so that
        these may differ when a run is resumed. Of a network's weights it counts whether there are any; which
        ones they are stands in the run's record, wherever the file lies.
        """
        content = self.model_dump(mode="json", exclude={"note": True, **UNDECISIVE})
        for part in (content["student"], content["teacher"], *content["peers"]):
            if part is not None:
                part["weights"] = part["weights"] is not None
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def validate(values: dict[str, Any]) -> Recipe:
    """Check ``values`` and fill in the defaults.

    Raises:
        UserError: The first problem, in one sentence.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, Recipe, "")) from error
