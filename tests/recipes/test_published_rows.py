"""Each published row that our methods can repeat has a recipe, and each of these recipes has a row."""

from __future__ import annotations

from functools import cache

import pytest

from tutelage.recipes import Recipe, read_recipe, recipe_names, resolve
from tutelage.runs.published import Figure, published_tables

FOLDERS = ("hsakd/", "hssakd/", "dpcd/")
LIGHT = ("mobilenetv2_s1_cifar", "mobilenetv2_cifar", "shufflenetv1_cifar", "shufflenetv2_cifar")
REPEATABLE = {"none", "hsakd_teacher", "hsakd", "hssakd", "dpcd"}
ROWS = {
    "hsakd/cifar100-networks": 17,
    "hsakd/cifar100": 16,
    "hsakd/few-shot": 4,
    "hssakd/mutual": 16,
    "dpcd/cifar100-networks": 13,
    "dpcd/cifar100": 10,
}
"""Tables whose rows have recipes, with how many figures of our methods each holds."""
FIGURES = [figure for table in published_tables() for figure in table.figures]
NAMES = [name for name in recipe_names() if name.startswith(FOLDERS)]


@cache
def complete(name: str) -> Recipe:
    """The recipe with the weights that a user gives by flag."""
    return resolve(
        name, {"teacher.weights": "teacher.safetensors" if "teacher" in read_recipe(name) else None}
    )


def repeatable(table: str) -> list[Figure]:
    return [figure for figure in FIGURES if figure.table == table and figure.method in REPEATABLE]


@pytest.mark.parametrize("table", ROWS)
def test_every_row_of_ours_has_a_recipe(table: str) -> None:
    figures = repeatable(table)
    assert len(figures) == ROWS[table]
    assert {figure.recipe for figure in figures} <= set(NAMES)
    distilled = [figure for figure in figures if figure.teacher is not None]
    assert {figure.teacher_recipe for figure in distilled} <= set(NAMES)


def test_every_recipe_has_a_row() -> None:
    named = {name for figure in FIGURES for name in (figure.recipe, figure.teacher_recipe) if name}
    assert sorted(named) == NAMES


@pytest.mark.parametrize("figure", [f for f in FIGURES if f.recipe], ids=lambda f: f"{f.table}-{f.recipe}")
def test_a_recipe_is_its_row(figure: Figure) -> None:
    recipe = complete(figure.recipe)
    teacher = recipe.teacher.name if recipe.teacher else None
    assert (recipe.student.name, teacher) == (figure.student, figure.teacher)
    assert (recipe.data.name, recipe.data.few_ratio) == (figure.dataset, figure.few_ratio)
    assert recipe.method["name"] == figure.method
    assert figure.settings.items() <= recipe.method.items()
    assert f"{figure.value:.2f}" in recipe.note


@pytest.mark.parametrize(
    "figure", [f for f in FIGURES if f.teacher_recipe], ids=lambda f: f"{f.label}-{f.recipe}"
)
def test_the_teachers_recipe_makes_the_teacher(figure: Figure) -> None:
    recipe = complete(figure.teacher_recipe)
    assert (recipe.task, recipe.teacher, recipe.student.name) == ("train", None, figure.teacher)
    assert recipe.method["name"] == f"{figure.method}_teacher"
    assert recipe.method["frozen"] is ("frozen" in figure.teacher_recipe)


def test_a_star_stands_for_the_joint_teacher() -> None:
    rows = {f.label: f.teacher_recipe for f in FIGURES if f.table == "hsakd/cifar100" and f.teacher_recipe}
    assert {label: complete(name).method["frozen"] for label, name in rows.items()} == {
        "HSAKD": True,
        "HSAKD*": False,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_are_those_of_the_research_code(name: str) -> None:
    recipe = complete(name)
    short = "teacher_frozen" in name
    benchmark = name.startswith("dpcd/vanilla")
    schedule = (
        recipe.schedule.kind,
        recipe.schedule.epochs,
        recipe.schedule.milestones,
        recipe.schedule.gamma,
    )
    assert schedule == (
        ("multistep", 100, (30, 60, 90), 0.1) if short else ("multistep", 240, (150, 180, 210), 0.1)
    )
    assert recipe.schedule.warmup_epochs == 0
    optimiser = recipe.optimiser
    assert optimiser.name == ("momentum" if benchmark else "sgd")
    assert optimiser.lr == (0.01 if recipe.student.name in LIGHT else 0.05)
    assert (optimiser.momentum, optimiser.weight_decay, optimiser.decay_all) == (0.9, 5e-4, True)
    assert (recipe.data.name, recipe.data.batch_size, recipe.data.val_fraction) == ("cifar100", 64, 0)
    assert recipe.seed == (1 if name.startswith("hsakd/teacher-") else 0)
    assert recipe.method.get("temperature", 3) == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hssakd/")])
def test_the_networks_that_teach_each_other_are_of_one_kind(name: str) -> None:
    recipe = complete(name)
    assert recipe.task == "train"
    assert recipe.method["networks"] == 2
    assert [peer.name for peer in recipe.peers] == [recipe.student.name]


@pytest.mark.parametrize(
    ("teacher", "beta", "limits"),
    [
        ("wrn_40_2", 6, (5, 8)),
        ("vgg13", 6, (5, 8)),
        ("resnet32x4", 8, (6, 10)),
        ("resnet50", 8, (6, 10)),
        ("resnet56", 2, (1, 4)),
    ],
)
def test_dpcd_weighs_by_the_teacher_and_never_counts_steps(teacher: str, beta: int, limits: tuple) -> None:
    recipes = [complete(name) for name in NAMES if name.startswith(f"dpcd/{teacher}-")]
    assert recipes
    for recipe in recipes:
        assert (recipe.method["base_beta"], recipe.method["beta_range"]) == (beta, limits)
        assert recipe.method["schedule"] == "published"
