"""What is told about methods, models, datasets and recipes agrees with the things themselves."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from tutelage.data import dataset_info
from tutelage.errors import UserError
from tutelage.methods import method_class, method_names
from tutelage.models.zoo import own_names
from tutelage.recipes import read_recipe, recipe_names, resolve
from tutelage.training.describe import (
    describe,
    describe_dataset,
    describe_method,
    describe_model,
    describe_recipe,
    list_models,
    list_recipes,
)


@pytest.mark.parametrize("name", method_names())
def test_every_setting_of_every_method_is_explained(name: str) -> None:
    told = describe_method(name)
    assert told["summary"] and told["source"] and told["formula"]
    fields = method_class(name).Config.model_fields
    assert [setting["name"] for setting in told["settings"]] == list(fields)
    for setting in told["settings"]:
        assert setting["meaning"] and setting["default"] == fields[setting["name"]].default


def test_ranges_and_types_are_those_of_the_config() -> None:
    settings = {setting["name"]: setting for setting in describe_method("fitnet")["settings"]}
    assert (settings["label_smoothing"]["range"], settings["label_smoothing"]["type"]) == (
        ">= 0, < 1",
        "float",
    )
    assert (settings["stage"]["range"], settings["stage"]["type"]) == (">= 1", "int")


@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [
        ("kd", ["logits"], ["logits"]),
        ("fitnet", ["logits", "stages"], ["logits", "stages"]),
        ("rkd", ["logits", "pooled"], ["logits", "pooled"]),
        ("none", ["logits"], None),
    ],
)
def test_needs(name: str, student: list[str], teacher: list[str] | None) -> None:
    needs = describe_method(name)["needs"]
    assert (needs["student"], needs["teacher"], needs["students"], needs["views"]) == (student, teacher, 1, 1)


def test_a_model_is_told_at_its_own_size_and_class_count() -> None:
    told = describe_model("resnet8x4_cifar")
    model = timm.create_model("resnet8x4_cifar", num_classes=100)
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert told["image_size"] == told["own_image_size"] == [32, 32]
    features = model.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)[1:]
    assert [stage["channels"] for stage in told["stages"]] == [f.shape[1] for f in features]
    assert [stage["reduction"] for stage in told["stages"]] == [32 // f.shape[2] for f in features]


def test_a_model_of_timm_has_its_own_classes() -> None:
    assert describe_model("mobilenetv3_small_050", image_size=64)["num_classes"] == 1000


def test_a_dataset() -> None:
    told, info = describe_dataset("cifar10"), dataset_info("cifar10")
    assert told["class_names"] == list(info.class_names) and told["classes"] == 10
    assert told["views"] == 81 * 2


@pytest.fixture(scope="module")
def recipes() -> dict[str, dict[str, Any]]:
    """What is listed of each recipe; reading them all takes a while."""
    return {entry["name"]: entry for entry in list_recipes()}


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_is_sound_and_has_a_summary(name: str, recipes: dict) -> None:
    told = describe_recipe(name)
    assert told["hash"] == resolve(name).hash()
    entry = recipes[name]
    assert entry["note"] == read_recipe(name)["note"]
    assert entry["summary"] and entry["note"].startswith(entry["summary"])


def test_names_are_told_apart() -> None:
    kinds = {name: describe(name)["kind"] for name in ("kd", "digits", "demo/student", "resnet8_cifar")}
    assert list(kinds.values()) == ["method", "dataset", "recipe", "model"]
    with pytest.raises(UserError, match="did you mean 'fitnet'"):
        describe("fitnett")


def test_patterns_of_models() -> None:
    assert list_models("wrn_16_2_cifar") == ["wrn_16_2_cifar"]
    assert sorted(list_models()) == sorted(own_names())
    assert {"vip_s7", "resnet8_cifar"} <= set(list_models()) and "resnet18" not in list_models()
    assert set(list_models("shufflenet")) >= set(list_models("shufflenet*_cifar")) != set()
    with pytest.raises(UserError, match="no model's name fits"):
        list_models("no_such_network*")
