"""One recipe of each of OFA-KD's and PAT's configs runs for an epoch on drawn images, with tiny networks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tutelage
from toys import CLASSES, FAMILIES, draw_folders
from tutelage.models.network import create_network
from tutelage.models.weights import save_weights
from tutelage.recipes import resolve

SHORT = ("schedule.epochs=1", "runtime.workers=0", "runtime.tensorboard=false", "runtime.device=cpu")
SHAPES = ("data.name=shapes", "data.few_ratio=0.02", "data.batch_size=8")
FOLDERS = ("data.name=folder", "data.batch_size=4")
SMALL_PAT = ("method.dim=16", "method.heads=4", "method.regions=4")
CNN, VIT, TEACHER = "test_resnet", "vit", "convnext"


def network(name: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a tiny network of ``toys`` or of timm."""
    return FAMILIES.get(name, (name, {}))


def instead(role: str, name: str) -> list[str]:
    """The settings that put a tiny network into a recipe."""
    known, args = network(name)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in args.items()}
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip()
    return [f"{role}.name={known}", f"{role}.args={text}"]


def weights(path: Path, name: str, classes: int) -> Path:
    """A file with an untrained network's weights."""
    known, args = network(name)
    torch.manual_seed(0)
    save_weights(path, create_network(known, classes, **args).state_dict(), {})
    return path


def run(place: Path, recipe: str, *settings: str, drawn: bool = False, **flags: Any) -> dict[str, Any]:
    """One epoch of a recipe; ``shapes`` stands for CIFAR-100, drawn files for ImageNet or for both."""
    drawn = drawn or "imagenet" in recipe
    folder = draw_folders(place / "images", train=4, test=1) if drawn else None
    start = tutelage.distill if "teacher_weights" in flags else tutelage.train
    changes = [*SHORT, *(FOLDERS if drawn else SHAPES), *settings]
    facts = start(recipe, data_dir=folder, out=place / "run", settings=changes, **flags)
    assert facts["status"] == "finished" and facts["summary"]["last"]["train"]["loss"] > 0
    return facts


def classes(recipe: str) -> int:
    """Classes of what stands for the recipe's data."""
    return len(CLASSES) if "imagenet" in recipe else 10


@pytest.mark.parametrize(
    ("recipe", "student"),
    [
        ("ofa/cifar-cnn", CNN),
        ("ofa/imagenet-cnn", CNN),
        ("ofa/imagenet-vit_mlp", VIT),
        ("ofa/imagenet-stronger", CNN),
    ],
)
def test_a_config_trains_a_student_alone(recipe: str, student: str, tmp_path: Path) -> None:
    size = "data.image_size=48" if "cifar" in recipe else "data.image_size=32"
    facts = run(tmp_path, recipe, *instead("student", student), size)
    assert set(facts["summary"]["last"]["train"]["terms"]) == {"ce"}


@pytest.mark.parametrize(
    ("recipe", "student", "settings", "terms"),
    [
        ("ofa/convnext_tiny-deit_tiny", VIT, (), {"ce", "kd", "ofa"}),
        ("ofa/imagenet-deit_tiny-resnet18", CNN, (), {"ce", "kd", "ofa"}),
        ("pat/swin_tiny-resnet18", CNN, SMALL_PAT, {"ce", "kd", "features", "drift"}),
        ("pat/imagenet-convnext_tiny-deit_tiny", VIT, SMALL_PAT, {"ce", "kd", "features", "drift"}),
    ],
)
def test_a_recipe_of_each_config_distils(
    recipe: str, student: str, settings: tuple[str, ...], terms: set[str], tmp_path: Path
) -> None:
    file = weights(tmp_path / "teacher.safetensors", TEACHER, classes(recipe))
    networks = [*instead("student", student), *instead("teacher", TEACHER)]
    facts = run(tmp_path, recipe, *networks, "data.image_size=32", *settings, teacher_weights=file)
    last = facts["summary"]["last"]
    assert set(last["train"]["terms"]) == terms
    assert ("ema_test" in last) == (recipe != "ofa/imagenet-deit_tiny-resnet18")


def test_a_teacher_is_fine_tuned_from_a_file_with_another_classifier(tmp_path: Path) -> None:
    file = weights(tmp_path / "imagenet.safetensors", VIT, 1000)
    settings = [*instead("student", VIT), "data.image_size=32", "student.reset_head=true"]
    facts = run(tmp_path, "ofa/teacher-swin_tiny", *settings, weights=file)
    assert facts["student"]["weights"] == "imagenet.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "ofa/swin_tiny-resnet18",
        "ofa/convnext_tiny-swin_pico",
        "ofa/imagenet-mixer_b16-swin_nano",
        "pat/vit_small-mobilenetv2",
        "pat/convnext_tiny-deit_tiny",
        "pat/imagenet-convnext_tiny-resmlp_12",
        "pat/fitnet-swin_tiny-resnet18",
    ],
)
def test_a_recipe_runs_with_its_own_networks(recipe: str, tmp_path: Path) -> None:
    wanted = resolve(recipe, {"teacher.weights": "later"})
    assert wanted.teacher is not None
    file = weights(tmp_path / "teacher.safetensors", wanted.teacher.name, len(CLASSES))
    facts = run(tmp_path, recipe, "data.image_size=224", drawn=True, teacher_weights=file)
    assert facts["student"]["name"] == wanted.student.name
    shutil.rmtree(tmp_path)  # it holds gigabytes
