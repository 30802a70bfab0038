"""The recipes of OFA-KD and PAT: the research code's configs and commands, and what its authors name."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch

from tutelage.methods import create_method, method_class
from tutelage.recipes import ModelRecipe, Recipe, read_recipe, recipe_names, resolve
from tutelage.runs.published import SIZES
from tutelage.training.optimisers import create_optimiser
from tutelage.training.schedules import learning_rate

CNN = ("resnet18", "mobilenetv2_100")
SWIN_T, VIT_S, MIXER = "swin_tiny_patch4_window7_224", "vit_small_patch16_224", "mixer_b16_224"
DEIT_T, SWIN_P, SWIN_N = (
    "deit_tiny_patch16_224",
    "swin_pico_patch4_window7_224",
    "swin_nano_patch4_window7_224",
)
RESMLP = "resmlp_12_224"
CIFAR_PAIRS = [
    *((teacher, student) for student in CNN for teacher in (SWIN_T, VIT_S, MIXER)),
    *((teacher, student) for student in (DEIT_T, SWIN_P) for teacher in ("convnext_tiny", MIXER)),
    ("convnext_tiny", RESMLP),
    (SWIN_T, RESMLP),
]
IMAGENET_PAIRS = [
    *((teacher, student) for student in CNN for teacher in (DEIT_T, SWIN_T, MIXER)),
    *((teacher, student) for student in (DEIT_T, SWIN_N) for teacher in ("resnet50", "convnext_tiny", MIXER)),
    *((teacher, RESMLP) for teacher in ("resnet50", "convnext_tiny", SWIN_T)),
]
MIXES = {"erase": 0.25, "mixup": 0.8, "cutmix": 1.0, "augment": "rand-m9-mstd0.5-inc1"}
PLAIN = {"erase": 0.0, "mixup": 0.0, "cutmix": 0.0, "augment": True, "color_jitter": 0.0}
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "cifar-cnn": {
        "data": {"batch_size": 128, **PLAIN},
        "optimiser": {"name": "sgd", "lr": 0.05, "weight_decay": 2e-3, "clip_grad": None},
        "schedule": {"epochs": 300, "min_lr": 1e-3, "warmup_epochs": 3, "warmup_lr": 1e-4},
        "runtime": {"ema_decay": None},
    },
    "cifar-vit_mlp": {
        "data": {"batch_size": 128, **MIXES},
        "optimiser": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05, "clip_grad": 5.0},
        "schedule": {"epochs": 300, "min_lr": 1e-5, "warmup_epochs": 20, "warmup_lr": 5e-7},
        "runtime": {"ema_decay": None},
    },
    "cifar-pretrain_cnn": {
        "data": {"batch_size": 128, **MIXES},
        "optimiser": {"name": "adamw", "lr": 5e-5, "weight_decay": 0.05, "clip_grad": 5.0},
        "schedule": {"epochs": 300, "min_lr": 1e-6, "warmup_epochs": 20, "warmup_lr": 5e-8},
        "runtime": {"ema_decay": None},
    },
    "imagenet-cnn": {
        "data": {"batch_size": 8 * 64, "crop_share": 0.875, **PLAIN},
        "optimiser": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4, "clip_grad": None},
        "schedule": {"epochs": 100, "kind": "step", "step_epochs": 30, "gamma": 0.1, "warmup_epochs": 3},
        "runtime": {"ema_decay": None},
    },
    "imagenet-vit_mlp": {
        "data": {"batch_size": 8 * 128, "crop_share": 0.9, **MIXES},
        "optimiser": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05, "clip_grad": 5.0},
        "schedule": {"epochs": 300, "min_lr": 1e-6, "warmup_epochs": 20, "warmup_lr": 5e-7},
        "runtime": {"ema_decay": 0.99996},
        "student": {"args": {"drop_rate": 0.0, "drop_path_rate": 0.0}},
    },
    "imagenet-stronger": {
        "data": {
            "batch_size": 8 * 256,
            "crop_share": 0.95,
            "augment": "rand-m7-mstd0.5",
            "erase": 0.0,
            "mixup": 0.1,
            "cutmix": 1.0,
            "repeats": 3,
        },
        "optimiser": {"name": "lamb", "lr": 5e-3, "weight_decay": 0.02, "clip_grad": None},
        "schedule": {"epochs": 300, "min_lr": 1e-6, "warmup_epochs": 5, "warmup_lr": 1e-6},
        "runtime": {"ema_decay": 0.9998},
        "student": {"args": {"drop_rate": 0.0, "drop_path_rate": 0.05}},
    },
}
RATES = {
    "cifar-cnn": "1e-4 .0167333 .0333667 .0499879 .0494646 .0488009 .0453209 .0399007 .0255 .00100134",
    "cifar-vit_mlp": (
        "5e-7 2.548e-5 5.045e-5 7.543e-5 4.9465e-4 4.8801e-4 4.5321e-4 3.9901e-4 2.55e-4 1.001e-5"
    ),
    "imagenet-cnn": "1e-4 .0334 .0667 .1 .1 .01 .001 1e-4 - 1e-4",
    "imagenet-vit_mlp": (
        "5e-7 2.548e-5 5.045e-5 7.543e-5 4.9455e-4 4.8779e-4 4.5235e-4 3.9715e-4 2.505e-4 1.01e-6"
    ),
}
"""What timm's schedulers gave in epochs 0, 1, 2, 3, 20, 30, 60, 90, 150 and the last."""
CROPS = {"resnet18": 0.875, "mobilenetv2_100": 0.875, RESMLP: 0.875, DEIT_T: 0.9, SWIN_P: 0.9, SWIN_N: 0.9}
TEACHER_CROPS = {SWIN_T: 0.9, VIT_S: 0.9, MIXER: 0.875, "convnext_tiny": 0.875}
TEACHER_TAGS = {
    DEIT_T: "fb_in1k",
    SWIN_T: "ms_in1k",
    MIXER: "goog_in21k_ft_in1k",
    "resnet50": "a1_in1k",
    "convnext_tiny": "fb_in1k",
}
"""timm's names of the files that the commands name."""
OFA = {"kd_weight": 1.0, "temperature": 1.0, "label_smoothing": 0.1, "stages": (), "target": "code"}
PAT = {
    "preset": "published",
    "kd_weight": 1.0,
    "temperature": 1.0,
    "feature_weight": 1.0,
    "drift_weight": 1.0,
}


@cache
def complete(name: str) -> Recipe:
    """The recipe with the weights that a user gives by flag."""
    teacher = read_recipe(name).get("teacher")
    return resolve(name, {"teacher.weights": "teacher.safetensors" if teacher else None})


def named(folder: str, teacher: str, student: str, prefix: str = "") -> str:
    """Name of the recipe of a pair."""
    return f"{folder}/{prefix}{SIZES.sub('', teacher)}-{SIZES.sub('', student)}"


def pairs(folder: str) -> list[tuple[str, str, str]]:
    """(recipe, teacher, student) of every pair, CIFAR-100 first."""
    return [
        (named(folder, *pair, prefix), *pair)
        for prefix, found in (("", CIFAR_PAIRS), ("imagenet-", IMAGENET_PAIRS))
        for pair in found
    ]


def base_of(name: str, student: str) -> str:
    """Name of the config that a pair's recipe starts from."""
    data = "imagenet" if "imagenet-" in name else "cifar"
    return f"ofa/{data}-{'cnn' if student in CNN else 'vit_mlp'}"


def test_there_are_twelve_and_fifteen_pairs() -> None:
    assert (len(CIFAR_PAIRS), len(IMAGENET_PAIRS)) == (12, 15)
    for folder in ("ofa", "pat"):
        assert {name for name, _, _ in pairs(folder)} <= set(recipe_names())


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_has_the_published_settings(config: str) -> None:
    recipe = complete(f"ofa/{config}")
    for section, expected in CONFIGS[config].items():
        found = getattr(recipe, section).model_dump()
        assert {key: found[key] for key in expected} == expected
    assert recipe.method == {
        **method_class("none").Config().model_dump(),
        "name": "none",
        "label_smoothing": 0.0 if config == "imagenet-stronger" else 0.1,
        "criterion": "bce" if config == "imagenet-stronger" else "ce",
    }
    assert (recipe.task, recipe.seed, recipe.data.drop_last) == ("train", 42, True)
    assert (recipe.optimiser.momentum, recipe.optimiser.decay_all) == (0.9, False)
    assert (recipe.schedule.warmup_by, recipe.schedule.warmup_prefix) == ("epoch", False)
    assert recipe.schedule.kind == ("step" if config == "imagenet-cnn" else "cosine")
    assert (recipe.data.mix_probability, recipe.data.mix_switch, recipe.data.mix_off_epoch) == (1, 0.5, 0)


@pytest.mark.parametrize("config", [name for name in CONFIGS if name.startswith("cifar")])
def test_cifar_images_are_enlarged_and_normalised_as_there(config: str) -> None:
    data = complete(f"ofa/{config}").data
    assert (data.name, data.image_size) == ("cifar100", 224)
    assert (data.mean, data.std) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


@pytest.mark.parametrize("config", RATES)
def test_the_learning_rates_are_those_of_timms_schedulers(config: str) -> None:
    recipe = complete(f"ofa/{config}")
    last = recipe.schedule.epochs - 1
    for epoch, text in zip((0, 1, 2, 3, 20, 30, 60, 90, 150, last), RATES[config].split(), strict=True):
        if text != "-":
            for step in (0, 389):
                rate = learning_rate(recipe.schedule, recipe.optimiser.lr, epoch, step, 390)
                rounding = 4e-3 if epoch == last else 2e-4
                assert rate == pytest.approx(float(text), rel=rounding), epoch


def test_norms_and_biases_are_not_decayed_and_positions_are() -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24)
    optimiser = create_optimiser(torch.nn.ModuleList([net]), complete("ofa/cifar-vit_mlp").optimiser)
    decays = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert decays[id(net.pos_embed)] == decays[id(net.cls_token)] == decays[id(net.head.weight)] == 0.05
    assert decays[id(net.norm.weight)] == decays[id(net.head.bias)] == 0
    sgd = create_optimiser(net, complete("ofa/cifar-cnn").optimiser)
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in sgd.param_groups)


@pytest.mark.parametrize(("name", "teacher", "student"), [*pairs("ofa"), *pairs("pat")])
def test_a_pair_is_its_config(name: str, teacher: str, student: str) -> None:
    recipe, base = complete(name), complete(base_of(name, student))
    assert recipe.teacher is not None
    assert (recipe.task, recipe.student.name) == ("distill", student)
    assert not recipe.teacher.own_normalisation
    if recipe.data.name == "imagenet":
        assert recipe.teacher.name.startswith(f"{teacher}.") and recipe.teacher.pretrained
    else:
        assert recipe.teacher.name == teacher and not recipe.teacher.args
    assert (recipe.data.crop_share, recipe.data.interpolation) == (CROPS[student], "random")
    free = {"batch_size", "crop_share"}
    assert recipe.data.model_dump(exclude=free) == base.data.model_dump(exclude=free)
    assert recipe.optimiser.model_dump(exclude={"lr"}) == base.optimiser.model_dump(exclude={"lr"})
    assert recipe.schedule.model_dump(exclude={"min_lr"}) == base.schedule.model_dump(exclude={"min_lr"})
    assert recipe.student.args == base.student.args
    free = {"ema_decay"}
    assert recipe.runtime.model_dump(exclude=free) == base.runtime.model_dump(exclude=free)


@pytest.mark.parametrize(("name", "teacher", "student"), pairs("ofa"))
def test_ofa_has_what_its_authors_name(name: str, teacher: str, student: str) -> None:
    recipe, base, cnn = complete(name), complete(base_of(name, student)), student in CNN
    cifar = recipe.data.name == "cifar100"
    assert OFA.items() <= recipe.method.items()
    eps = 1.5 if (name, student) == ("ofa/imagenet-deit_tiny-resnet18", "resnet18") else 1.0
    assert recipe.method["eps"] == (eps,) and recipe.method["stage_weights"] == (1.0,)
    assert recipe.method["ofa_weight"] == (0.1 if cifar and cnn else 1.0)
    assert recipe.data.batch_size == (512 if cnn and not cifar else 1024)
    assert recipe.optimiser.lr == (0.1 if cnn else 5e-4)
    assert recipe.schedule.min_lr == (1e-6 if cifar and not cnn else base.schedule.min_lr)
    assert recipe.runtime.ema_decay == (None if cnn else 0.99996)


@pytest.mark.parametrize(("name", "teacher", "student"), pairs("pat"))
def test_pat_is_its_commands(name: str, teacher: str, student: str) -> None:
    recipe, base, cnn = complete(name), complete(base_of(name, student)), student in CNN
    cifar = recipe.data.name == "cifar100"
    defaults = method_class("pat").Config().model_dump()
    assert recipe.method == {**defaults, **PAT, "name": "pat", "label_smoothing": 0.1}
    assert (recipe.method["regions"], recipe.method["dim"], recipe.method["heads"]) == (16, 512, 8)
    assert recipe.data.batch_size == (128 if cifar else 4 * (64 if cnn else 128))
    assert recipe.optimiser.lr == base.optimiser.lr and recipe.schedule == base.schedule
    assert recipe.runtime.ema_decay == (0.9998 if cifar or cnn else 0.99996)


@pytest.mark.parametrize("student", ["resnet18", RESMLP])
def test_ofa_by_pats_commands_differs_from_pat_in_the_method_alone(student: str) -> None:
    ofa, pat = complete(named("pat", f"ofa-{SWIN_T}", student)), complete(named("pat", SWIN_T, student))
    parts = ("task", "data", "student", "teacher", "optimiser", "schedule", "runtime", "seed")
    assert all(getattr(ofa, part) == getattr(pat, part) for part in parts)
    assert {**OFA, "name": "ofa", "ofa_weight": 1.0, "eps": (1.0,)}.items() <= ofa.method.items()


def test_fitnet_by_pats_commands_has_kd_beside_all_stages() -> None:
    fitnet, pat = complete("pat/fitnet-swin_tiny-resnet18"), complete("pat/swin_tiny-resnet18")
    assert (fitnet.data, fitnet.optimiser, fitnet.schedule, fitnet.runtime) == (
        pat.data,
        pat.optimiser,
        pat.schedule,
        pat.runtime,
    )
    expected = {
        "hint_weight": 1,
        "stages": (1, 2, 3, 4),
        "kd_weight": 1,
        "temperature": 1,
        "projector": "family",
    }
    assert expected.items() <= fitnet.method.items()


@pytest.mark.parametrize(
    ("data", "students"), [("", CROPS.keys() - {SWIN_N}), ("imagenet-", CROPS.keys() - {SWIN_P})]
)
def test_a_student_alone_is_its_config(data: str, students: set[str]) -> None:
    for student in students:
        name = f"ofa/{data}vanilla-{SIZES.sub('', student)}"
        recipe, base = complete(name), complete(base_of(name, student))
        assert (recipe.student.name, recipe.data.crop_share) == (student, CROPS[student])
        assert recipe.student.args == base.student.args and recipe.method == base.method
        assert (recipe.optimiser, recipe.schedule) == (base.optimiser, base.schedule)


@pytest.mark.parametrize("teacher", TEACHER_CROPS)
def test_a_teacher_is_fine_tuned_from_weights_that_timm_has(teacher: str) -> None:
    recipe, base = complete(f"ofa/teacher-{SIZES.sub('', teacher)}"), complete("ofa/cifar-pretrain_cnn")
    assert recipe.student.name.startswith(f"{teacher}.")
    known = timm.get_pretrained_cfg(recipe.student.name)
    assert known is not None and known.has_weights and known.num_classes == 1000
    assert (recipe.student.args, recipe.student.own_normalisation) == ({"pretrained": True}, False)
    assert recipe.data.crop_share == TEACHER_CROPS[teacher]
    assert (recipe.optimiser, recipe.schedule, recipe.method) == (base.optimiser, base.schedule, base.method)


@pytest.mark.parametrize(("name", "teacher", "student"), [*pairs("ofa"), *pairs("pat")])
def test_a_note_says_where_the_teacher_is_from(name: str, teacher: str, student: str) -> None:
    note = complete(name).note
    assert "--teacher-weights FILE" in note
    if "imagenet-" in name:
        tag = TEACHER_TAGS[teacher]
        assert complete(name).teacher == ModelRecipe(
            name=f"{teacher}.{tag}",
            weights="teacher.safetensors",
            args={"pretrained": True},
            own_normalisation=False,
        )
        known = timm.get_pretrained_cfg(f"{teacher}.{tag}")
        assert known is not None and known.has_weights and f"{teacher}.{tag};" in note
    else:
        assert f"ofa/teacher-{SIZES.sub('', teacher)}" in note
    assert create_method(complete(name).method["name"]).name in name


def test_no_swin_transformer_loses_its_stochastic_depth_on_cifar() -> None:
    for config, rate in (("ofa/vanilla-swin_pico", 0.1), ("ofa/imagenet-vanilla-swin_nano", 0.0)):
        student = complete(config).student
        with torch.device("meta"):
            net = timm.create_model(student.name, **student.args)
        assert getattr(net.layers[-1].blocks[-1].drop_path1, "drop_prob", 0.0) == pytest.approx(rate)
