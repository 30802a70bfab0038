"""The ImageNet recipes run for an epoch on a few drawn images, with small networks and with their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tutelage
from toys import CLASSES, draw_folders
from tutelage.methods import create_method
from tutelage.models.network import Ask, Network, create_network
from tutelage.models.weights import joint_state, save_weights
from tutelage.recipes import Recipe, recipe_names, resolve

ELSEWHERE = ("ofa/", "pat/")
"""Tried in ``test_heterogeneous_recipes``."""
NAMES = [name for name in recipe_names() if "/imagenet-" in name and not name.startswith(ELSEWHERE)]
SMALL = {"resnet18": "resnet8_cifar", "resnet34": "resnet14_cifar"}
SHORT = (
    "data.name=folder",  # ImageNet's classes are too many to draw
    "data.image_size=32",
    "data.batch_size=4",
    "schedule.epochs=1",
    "runtime.workers=0",
    "runtime.tensorboard=false",
    "runtime.device=cpu",
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied at once: a run of full size leaves gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def complete(name: str) -> Recipe:
    """The recipe with files named that are made later."""
    return resolve(name, {"teacher.weights": "later" if name.endswith("-resnet34-resnet18") else None})


def make_weights(path: Path, network: str, width: int) -> str:
    """Weights of an untrained network, with branches of ``width`` outputs a class unless that is 0."""
    torch.manual_seed(0)
    made = Network(create_network(network, len(CLASSES)), Ask(branches=width * len(CLASSES)), "trained")
    state = made.model.state_dict()
    both = joint_state(state, made.branches.state_dict()) if made.branches is not None else state
    save_weights(path, both, {})
    return str(path)


def run(name: str, place: Path, networks: dict[str, str]) -> dict:
    """One epoch of a recipe with its networks replaced as ``networks`` says."""
    recipe = complete(name)
    needs = create_method(recipe.method["name"], **recipe.method_settings).needs
    student = networks.get(recipe.student.name, recipe.student.name)
    settings = [*SHORT, f"student.name={student}"]
    if recipe.peers:
        settings.append(f"peers=[{{name: {student}}}]")
    flags = {}
    if needs.student_role == "branches":
        flags["weights"] = make_weights(place / "network.safetensors", student, 0)
    if recipe.teacher is not None:
        teacher = networks.get(recipe.teacher.name, recipe.teacher.name)
        settings.append(f"teacher.name={teacher}")
        flags["teacher_weights"] = make_weights(
            place / "teacher.safetensors", teacher, needs.teacher_branches
        )
    start = tutelage.train if recipe.task == "train" else tutelage.distill
    if recipe.peers:
        start = tutelage.mutual
    folder = draw_folders(place / "images", train=4, test=1)
    return start(name, data_dir=folder, out=place / "run", settings=settings, **flags)


def check(facts: dict) -> None:
    assert facts["status"] == "finished"
    assert (facts["protocol"]["dataset"], facts["protocol"]["train_images"]) == ("folder", 12)
    measured = facts["summary"]["last"]
    assert measured["train"]["loss"] > 0 and measured["test"]["images"] == 3


def test_there_is_an_imagenet_recipe_for_every_project() -> None:
    assert {name.split("/")[0] for name in NAMES} == {"hsakd", "hssakd", "dpcd", "packd"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_on_image_files(name: str, place: Path) -> None:
    check(run(name, place, SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_with_its_own_networks(name: str, place: Path) -> None:
    facts = run(name, place, {})
    check(facts)
    assert facts["student"]["name"] == complete(name).student.name
