"""The recipes that come with the package: valid, noted, true to what they say they reproduce."""

from __future__ import annotations

import pytest
import timm

from tutelage.data import dataset_info
from tutelage.methods import create_method, method_names
from tutelage.recipes import Recipe, read_recipe, recipe_names, resolve
from tutelage.training.build import check_roles
from tutelage.training.optimisers import create_optimiser
from tutelage.training.schedules import learning_rate

CRD = [name for name in recipe_names() if name.startswith("crd/")]
LOSS_WEIGHTS = {
    "kd": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0},
    "fitnet": {
        "ce_weight": 1.0,
        "hint_weight": 100.0,
        "stage": 2,
        "stages": (),
        "projector": "auto",
        "token_layout": "correct",
        "kd_weight": 0.0,
        "temperature": 4.0,
    },
    "afd": {
        "ce_weight": 1.0,
        "preset": "corrected",
        "afd_weight": 200.0,
        "kd_weight": 0.9,
        "temperature": 4.0,
        "qk_dim": 128,
    },
    "at": {"ce_weight": 1.0, "at_weight": 1000.0},
    "sp": {"ce_weight": 1.0, "sp_weight": 3000.0},
    "rkd": {"ce_weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0},
    "cc": {"ce_weight": 1.0, "cc_weight": 0.02, "embedding_dim": 128},
    "vid": {"ce_weight": 1.0, "vid_weight": 1.0, "initial_variance": 5.0},
    "pkt": {"ce_weight": 1.0, "pkt_weight": 30000.0},
    "nst": {"ce_weight": 1.0, "nst_weight": 50.0},
    "kdsvd": {"ce_weight": 1.0, "kdsvd_weight": 1.0, "components": 1, "fixed_signs": True},
    "reviewkd": {
        "ce_weight": 1.0,
        "review_weight": 0.6,
        "warmup_epochs": 20.0,
        "max_hidden": 512,
        "teacher_preact": True,
        "student_preact": False,
    },
    "crd": {
        "ce_weight": 1.0,
        "crd_weight": 0.8,
        "kd_weight": 0.0,
        "temperature": 4.0,
        "embedding_dim": 128,
        "negatives": 16384,
        "draw": "other",
        "contrast_temperature": 0.07,
        "momentum": 0.5,
    },
    "ab": {"ce_weight": 1.0, "ab_weight": 1.0, "margin": 1.0, "first_epochs": 30, "first_lr": None},
    "ft": {
        "ce_weight": 1.0,
        "factor_weight": 200.0,
        "reconstruction_weight": 1.0,
        "factor_ratio": 0.5,
        "first_epochs": 30,
        "first_lr": 0.01,
    },
    "fsp": {"ce_weight": 1.0, "fsp_weight": 1.0, "first_epochs": 30, "first_lr": None},
    "dkd": {"ce_weight": 1.0, "alpha": 1.0, "beta": 2.0, "temperature": 4.0, "warmup_epochs": 20.0},
    "dist": {"ce_weight": 1.0, "inter_weight": 2.0, "intra_weight": 2.0, "temperature": 4.0},
}


def complete(name: str) -> Recipe:
    """The recipe with the weights that a user gives by flag."""
    teacher = "teacher" in read_recipe(name)
    return resolve(name, {"teacher.weights": "teacher.safetensors" if teacher else None})


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_can_be_run(name: str) -> None:
    recipe = complete(name)
    check_roles(recipe, create_method(recipe.method["name"], **recipe.method_settings))
    for part in (recipe.student, recipe.teacher):
        assert part is None or timm.is_model(part.name)
    assert dataset_info(recipe.data.name).num_classes > 1
    assert len(recipe.note) > 30
    assert (recipe.task == "train") <= (recipe.teacher is None)


def test_every_method_has_a_recipe() -> None:
    assert {complete(name).method["name"] for name in recipe_names()} == set(method_names())


def test_the_rows_of_the_crd_benchmark_are_called_after_their_methods() -> None:
    methods = {complete(name).method["name"]: name for name in CRD if name != "crd/crd_kd"}
    assert methods == {name: f"crd/{name}" for name in LOSS_WEIGHTS} | {"none": "crd/vanilla"}


@pytest.mark.parametrize("name", LOSS_WEIGHTS)
def test_the_loss_weights_are_the_published_ones(name: str) -> None:
    settings = complete(f"crd/{name}").method_settings
    assert settings == {"label_smoothing": 0.0, "criterion": "ce", **LOSS_WEIGHTS[name]}


def test_crd_with_kd_is_crd_and_kd() -> None:
    crd, both = (complete(f"crd/{name}").method_settings for name in ("crd", "crd_kd"))
    assert both == {**crd, "kd_weight": 1.0, "temperature": 4.0}


def test_the_rows_of_the_crd_benchmark_differ_in_nothing_but_the_method() -> None:
    recipes = [complete(name) for name in CRD]
    for part in ("data", "student", "optimiser", "schedule", "runtime"):
        assert all(getattr(recipe, part) == getattr(recipes[0], part) for recipe in recipes)
    teachers = {recipe.teacher.name for recipe in recipes if recipe.teacher}
    assert teachers == {"resnet56_cifar"} and recipes[0].student.name == "resnet20_cifar"


def test_the_crd_benchmark_is_plain_momentum_dropped_after_epochs_150_180_and_210() -> None:
    recipe = complete("crd/vanilla")
    optimiser = create_optimiser(timm.create_model("resnet8_cifar"), recipe.optimiser)
    (group,) = optimiser.param_groups
    expected = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False, "dampening": 0}
    assert {key: group[key] for key in expected} == expected
    assert (recipe.data.name, recipe.data.batch_size, recipe.schedule.epochs) == ("cifar100", 64, 240)
    for first, factor in ((0, 1), (150, 0.1), (180, 0.01), (210, 0.001)):
        assert learning_rate(recipe.schedule, 0.05, first, 0, 782) == pytest.approx(0.05 * factor)
        if first:
            assert learning_rate(recipe.schedule, 0.05, first - 1, 781, 782) == pytest.approx(0.5 * factor)


def test_the_demo_student_sees_at_most_ten_labels_a_class() -> None:
    teacher, student = complete("demo/teacher"), complete("demo/student")
    assert teacher.data.few_ratio == 1.0
    assert teacher.data.name == student.data.name == "digits"
    assert 50 <= student.data.few_ratio * dataset_info("digits").train_count <= 100
