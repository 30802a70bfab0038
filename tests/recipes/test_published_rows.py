"""Each published row that our methods can repeat has a recipe, and each of these recipes has a row."""

from __future__ import annotations

from functools import cache

import pytest

from tutelage.methods import create_method, method_class
from tutelage.recipes import Recipe, read_recipe, recipe_names, resolve
from tutelage.runs.published import Figure, published_tables
from tutelage.training.schedules import learning_rate

FOLDERS = ("hsakd/", "hssakd/", "dpcd/", "packd/")
LIGHT = ("mobilenetv2_s1_cifar", "mobilenetv2_cifar", "shufflenetv1_cifar", "shufflenetv2_cifar")
REPEATABLE = {"none", "hsakd_teacher", "hsakd", "hssakd", "dpcd", "packd", "ofa", "pat"}
RELEASED_TEACHERS = {"ofa/imagenet", "pat/imagenet"}
"""Tables whose teachers are weights that others released."""
UNPUBLISHED = {"packd/vgg13-mobilenetv2"}
"""In a project's scripts but in none of its tables."""
ROWS = {
    "hsakd/cifar100-networks": 17,
    "hsakd/cifar100": 16,
    "hsakd/few-shot": 4,
    "hsakd/imagenet-networks": 6,
    "hsakd/imagenet": 4,
    "hssakd/mutual": 16,
    "hssakd/mutual-imagenet": 2,
    "dpcd/cifar100-networks": 13,
    "dpcd/cifar100": 10,
    "dpcd/imagenet-networks": 4,
    "dpcd/imagenet": 2,
    "packd/cifar100-networks": 15,
    "packd/cifar100-same": 12,
    "packd/cifar100-different": 10,
    "packd/few-shot": 6,
    "packd/imagenet-networks": 4,
    "packd/imagenet": 2,
    "crd/cifar100-networks": 15,
    "crd/cifar100-same": 13,
    "ofa/cifar100-networks": 9,
    "ofa/cifar100": 12,
    "ofa/imagenet-networks": 5,
    "ofa/imagenet": 15,
    "pat/cifar100": 4,
    "pat/imagenet": 3,
    "pat/cifar100-reproduced": 8,
}
"""Tables whose rows have recipes, with how many figures have one."""
FIGURES = [figure for table in published_tables() for figure in table.figures]
NAMES = [name for name in recipe_names() if name.startswith(FOLDERS)]
IMAGENET = [name for name in NAMES if "/imagenet-" in name]
PACKD_PAIRS = [
    name
    for name in NAMES
    if name.startswith("packd/") and not name.startswith(("packd/vanilla", "packd/kd", "packd/imagenet"))
]


@cache
def complete(name: str) -> Recipe:
    """The recipe with the weights that a user gives by flag."""
    return resolve(
        name, {"teacher.weights": "teacher.safetensors" if "teacher" in read_recipe(name) else None}
    )


def untagged(network: str) -> str:
    """A network's name without that of its pretrained weights."""
    return network.partition(".")[0]


@pytest.mark.parametrize("table", ROWS)
def test_every_row_of_ours_has_a_recipe(table: str) -> None:
    figures = [figure for figure in FIGURES if figure.table == table]
    with_recipe = [figure for figure in figures if figure.recipe]
    assert len(with_recipe) == ROWS[table]
    assert all(f.recipe or f.settings for f in figures if f.method in REPEATABLE)
    assert {figure.recipe for figure in with_recipe} <= set(recipe_names())
    distilled = [figure for figure in with_recipe if figure.teacher is not None]
    teachers = {figure.teacher_recipe for figure in distilled}
    assert teachers <= {*recipe_names(), *([None] if table in RELEASED_TEACHERS else [])}


def test_no_other_row_has_a_recipe() -> None:
    assert {figure.table for figure in FIGURES if figure.recipe or figure.teacher_recipe} == set(ROWS)


def test_every_recipe_has_a_row() -> None:
    named = {name for figure in FIGURES for name in (figure.recipe, figure.teacher_recipe) if name}
    assert sorted({name for name in named if name.startswith(FOLDERS)} | UNPUBLISHED) == NAMES


@pytest.mark.parametrize("figure", [f for f in FIGURES if f.recipe], ids=lambda f: f"{f.table}-{f.recipe}")
def test_a_recipe_is_its_row(figure: Figure) -> None:
    recipe = complete(figure.recipe)
    teacher = untagged(recipe.teacher.name) if recipe.teacher else None
    assert (untagged(recipe.student.name), teacher) == (figure.student, figure.teacher)
    assert (recipe.data.name, recipe.data.few_ratio) == (figure.dataset, figure.few_ratio)
    assert recipe.method["name"] == figure.method
    assert figure.settings.items() <= recipe.method.items()
    assert f"{figure.value:.2f}" in recipe.note


@pytest.mark.parametrize(
    "figure", [f for f in FIGURES if f.teacher_recipe], ids=lambda f: f"{f.label}-{f.recipe}"
)
def test_the_teachers_recipe_makes_the_teacher(figure: Figure) -> None:
    recipe = complete(figure.teacher_recipe)
    made = untagged(recipe.student.name)
    assert (recipe.task, recipe.teacher, made) == ("train", None, figure.teacher)
    assert recipe.method["name"] == method_class(figure.method).teacher_method
    assert recipe.method.get("frozen", False) is ("frozen" in figure.teacher_recipe)
    assert recipe.data.name == figure.dataset and recipe.data.few_ratio == 1


@pytest.mark.parametrize("table", ["hsakd/cifar100", "hsakd/imagenet"])
def test_a_star_stands_for_the_joint_teacher(table: str) -> None:
    rows = {f.label: f.teacher_recipe for f in FIGURES if f.table == table and f.teacher_recipe}
    assert {label: complete(name).method["frozen"] for label, name in rows.items()} == {
        "HSAKD": True,
        "HSAKD*": False,
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IMAGENET])
def test_the_settings_are_those_of_the_research_code(name: str) -> None:
    recipe = complete(name)
    short = "teacher_frozen" in name
    benchmark = name.startswith(("dpcd/vanilla", "packd/"))
    milestones = (149, 179, 209) if name in PACKD_PAIRS else (150, 180, 210)
    schedule = (
        recipe.schedule.kind,
        recipe.schedule.epochs,
        recipe.schedule.milestones,
        recipe.schedule.gamma,
    )
    assert schedule == (
        ("multistep", 100, (30, 60, 90), 0.1) if short else ("multistep", 240, milestones, 0.1)
    )
    assert recipe.schedule.warmup_epochs == 0
    optimiser = recipe.optimiser
    assert optimiser.name == ("momentum" if benchmark else "sgd")
    assert optimiser.lr == (0.01 if recipe.student.name in LIGHT else 0.05)
    assert (optimiser.momentum, optimiser.weight_decay, optimiser.decay_all) == (0.9, 5e-4, True)
    assert (recipe.data.name, recipe.data.batch_size, recipe.data.val_fraction) == ("cifar100", 64, 0)
    assert recipe.seed == (1 if name.startswith("hsakd/teacher-") else 0)
    temperature = 4 if name.startswith("packd/") else 3
    assert recipe.method.get("temperature", temperature) == temperature


@pytest.mark.parametrize("name", IMAGENET)
def test_the_imagenet_settings_are_those_of_the_research_code(name: str) -> None:
    recipe = complete(name)
    schedule, optimiser = recipe.schedule, recipe.optimiser
    assert (schedule.kind, schedule.epochs, schedule.milestones) == ("multistep", 100, (30, 60, 90))
    assert (schedule.gamma, schedule.warmup_epochs) == (0.1, 0)
    assert (optimiser.name, optimiser.lr, optimiser.momentum) == ("momentum", 0.1, 0.9)
    assert (optimiser.weight_decay, optimiser.decay_all) == (1e-4, True)
    batches = {"dpcd/imagenet-resnet34-resnet18": 128, "packd/imagenet-resnet34-resnet18": 1024}
    assert (recipe.data.name, recipe.data.batch_size) == ("imagenet", batches.get(name, 256))
    assert recipe.data.interpolation == "bilinear"  # torchvision's transforms have no other by default
    assert recipe.seed == (1 if name == "hsakd/imagenet-teacher-resnet34" else 0)
    temperature = {"dpcd": 1, "hsakd": 3, "hssakd": 3, "packd": 3}
    assert recipe.method.get("temperature") == temperature.get(recipe.method["name"])


@pytest.mark.parametrize("name", [name for name in NAMES if "teacher" in name])
def test_hsakd_chooses_its_teachers_by_joint_accuracy(name: str) -> None:
    assert complete(name).selection == ("joint" if name.startswith("hsakd/") else "backbone")


def test_dpcd_on_imagenet_is_the_script_that_could_run() -> None:
    recipe = complete("dpcd/imagenet-resnet34-resnet18")
    changed = {
        "base_beta": 0.5,
        "beta_range": (0.4, 1.0),
        "temperature": 1,
        "ced_beta": 2,
        "warmup_epochs": 0,
        "history_size": 20000,
        "threshold_steps": (20000, 50000),
        "sensitivity_steps": 100000,
        "schedule": "published",
    }
    assert recipe.method == {**method_class("dpcd").Config().model_dump(), **changed, "name": "dpcd"}


def test_packd_is_the_released_script() -> None:
    common = {
        "ce_weight": 1,
        "kd_weight": 1,
        "mix_kd_weight": 1,
        "sum_mixes": False,
        "contrast_weight": 0.8,
        "contrast_temperature": 0.07,
        "negatives": 16384,
        "first_negative": "own",
        "mix": True,
        "turn": True,
        "transport_cost": "distance",
        "transport_epsilon": 0.1,
        "transport_threshold": 0.1,
    }
    bank = {
        "memory": "bank",
        "mixes": 3,
        "smallest_share": 0,
        "fresh_anchor": True,
        "embedding_dim": 128,
        "momentum": 0.5,
    }
    queue = {"memory": "queue", "mixes": 1, "smallest_share": 0.1, "fresh_anchor": False, "queue_size": 24960}
    assert len(PACKD_PAIRS) == 12 + 3
    assert all({**common, **bank}.items() <= complete(name).method.items() for name in PACKD_PAIRS)
    assert {**common, **queue}.items() <= complete("packd/imagenet-resnet34-resnet18").method.items()


@pytest.mark.parametrize("name", PACKD_PAIRS)
def test_packds_rate_falls_where_the_code_lets_it_fall_with_the_filling_epoch_counted(name: str) -> None:
    recipe = complete(name)
    head, fill, main = create_method("packd", **recipe.method_settings).phases()
    assert (head.epochs, head.lr) == (60, 0.05)
    assert (fill.epochs, fill.update, main.epochs) == (1, False, None)
    for shown in range(2, 242):  # the code's epochs, counted from 1; it makes no steps in the first
        expected = recipe.optimiser.lr * 0.1 ** sum(shown > mark for mark in (150, 180, 210))
        rate = learning_rate(recipe.schedule, recipe.optimiser.lr, shown - 1 - fill.epochs, 0, 782)
        assert rate == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("packd/kd-")])
def test_packds_kd_is_repdistillers(name: str) -> None:
    recipe, row = complete(name), complete("crd/kd")
    assert recipe.method == row.method
    assert (recipe.optimiser.name, recipe.schedule) == (row.optimiser.name, row.schedule)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hssakd/")])
def test_the_networks_that_teach_each_other_are_of_one_kind(name: str) -> None:
    recipe = complete(name)
    assert (recipe.task, recipe.teacher) == ("train", None)
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
