"""What is noted beside the weights: timm's own transform, made from it, shows what evaluation showed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import tutelage
from tutelage.data import load_dataset
from tutelage.models.network import create_network
from tutelage.models.timm_layout import Preprocessing
from tutelage.models.weights import read_sidecar, save_weights
from tutelage.recipes import ModelRecipe, Recipe, validate
from tutelage.training.build import protocol
from tutelage.training.loading import load_data
from tutelage.training.preprocessing import normalisation
from tutelage.training.shown import shown, unlike_noted

TINY = ["runtime.tensorboard=false", "runtime.threads=1", "data.few_ratio=0.05", "optimiser.lr=0.01"]


def picture(seed: int, width: int = 60, height: int = 50) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height // 10, width // 10, 3), generator=generator).to(torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 2), ("val", 2)):
        for label, name in enumerate(("ash", "birch", "cedar")):
            here = tmp_path / "trees" / part / name
            here.mkdir(parents=True)
            for number in range(count):
                picture(10 * label + number).save(here / f"{number}.png")
    return tmp_path / "trees"


def recipe(**data: Any) -> Recipe:
    runtime = {"workers": 0, "threads": 1}
    return validate({"student": {"name": "resnet8_cifar"}, "data": data, "runtime": runtime})


def as_timm_shows(images: list[Image.Image], wanted: Recipe) -> tuple[Tensor, Tensor]:
    """The same images through timm's transform and through the evaluation of a run."""
    data = load_data(wanted, torch.device("cpu"))
    facts, (mean, std) = shown(wanted, data), normalisation(wanted)
    noted = Preprocessing(tuple(facts["image_size"]), mean, std, facts["crop_pct"], facts["interpolation"])
    config = timm.data.resolve_data_config(pretrained_cfg=noted.config())
    transform = timm.data.create_transform(**config, is_training=False)
    ours = next(data.eval_batches("test", len(images))).images
    return torch.stack([transform(image) for image in images]), ours


@pytest.mark.parametrize(("crop_share", "interpolation"), [(0.875, "random"), (1.0, "bilinear")])
def test_files_are_shown_as_timm_shows_them(folder: Path, crop_share: float, interpolation: str) -> None:
    how = {"crop_share": crop_share, "interpolation": interpolation}
    wanted = recipe(name="folder", dir=str(folder), image_size=24, **how)
    images = [Image.open(folder / "val" / "ash" / f"{number}.png") for number in range(2)]
    theirs, ours = as_timm_shows(images, wanted)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("size", "interpolation"), [(None, "random"), (48, "random"), (48, "bilinear")])
def test_images_in_memory_are_shown_as_timm_shows_them(size: int | None, interpolation: str) -> None:
    wanted = recipe(name="shapes", image_size=size, interpolation=interpolation)
    pixels = load_dataset("shapes").test_images[:4]
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    theirs, ours = as_timm_shows(images, wanted)
    std = torch.tensor(normalisation(wanted)[1]).view(3, 1, 1)
    # Pillow rounds ties in its own way, in each direction, see ResizedViews.
    tolerance = 1e-5 if size is None else (2 / 255 / std.min() + 1e-5).item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_a_teacher_for_another_filter_is_noticed(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    save_weights(weights, create_network("resnet8_cifar", 3), {"interpolation": "bilinear"})

    def warning(teacher: dict[str, Any], **how: Any) -> str:
        data = {"name": "folder", "dir": str(folder), "image_size": 24, **how}
        wanted = recipe(**data)
        wanted = wanted.model_copy(update={"teacher": ModelRecipe(**teacher)})
        return unlike_noted(wanted, load_data(wanted, torch.device("cpu")))

    ours = {"name": "resnet8_cifar", "weights": str(weights)}
    assert "images resized bilinear, but gets bicubic ones" in warning(ours)
    assert not warning(ours, interpolation="bilinear")
    assert not warning(ours, name="shapes", dir=None, image_size=None)  # nothing is resized
    theirs = {"name": "resnet18.a1_in1k", "args": {"pretrained": True}}
    assert not warning(theirs)
    assert "images resized bicubic, but gets bilinear ones" in warning(theirs, interpolation="bilinear")
    assert not warning({"name": "resnet18.a1_in1k"}, interpolation="bilinear")  # random weights


def test_runs_on_files_note_their_filter(folder: Path) -> None:
    """Records without it are from before there was a choice, when files were shown bilinear."""

    def noted(interpolation: str) -> Any:
        wanted = recipe(name="folder", dir=str(folder), image_size=24, interpolation=interpolation)
        return protocol(wanted, load_data(wanted, torch.device("cpu"))).get("interpolation")

    assert (noted("random"), noted("bicubic"), noted("bilinear")) == ("random", "bicubic", None)


def test_names_are_noted_where_the_dataset_does_not_tell_them(folder: Path) -> None:
    wanted = recipe(name="folder", dir=str(folder), image_size=24)
    facts = shown(wanted, load_data(wanted, torch.device("cpu")))
    assert facts["class_names"] == ["ash", "birch", "cedar"] and facts["image_size"] == [24, 24]
    resident = recipe(name="shapes")
    assert "class_names" not in shown(resident, load_data(resident, torch.device("cpu")))


def test_a_student_with_a_normalisation_of_its_own_keeps_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    save_weights(tmp_path / "before.safetensors", create_network("resnet8_cifar", 10), own)
    other = ["data.mean=[0.5, 0.5, 0.5]", "data.std=[0.2, 0.2, 0.2]"]
    facts = tutelage.train(
        model="resnet8_cifar",
        weights=tmp_path / "before.safetensors",
        data="shapes",
        epochs=1,
        device="cpu",
        settings=[*TINY, *other],
        out=tmp_path / "run",
    )
    weights = tmp_path / "run" / "student.safetensors"
    assert {key: read_sidecar(weights)[key] for key in own} == own
    again = tutelage.evaluate("resnet8_cifar", weights=weights, data="shapes", device="cpu")
    last = facts["summary"]["last"]["test"]
    assert (again["top1"], again["loss"]) == pytest.approx((last["top1"], last["loss"]), abs=1e-3)
