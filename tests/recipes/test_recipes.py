"""Recipes: defaults, overrides, refusals, and that a saved one reads back equal."""

from __future__ import annotations

import pytest
import yaml

from tutelage.errors import UserError
from tutelage.recipes import dump, resolve, validate

STUDENT = {"student.name": "resnet8_cifar"}


def test_flags_and_settings_override_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "student: resnet8_cifar\nmethod: {name: kd, temperature: 2}\noptimiser: {weight_decay: 5e-4}\n"
    )
    recipe = resolve(
        str(path), {"seed": 3, "schedule.epochs": None}, ["method.temperature=6", "data.name=shapes"]
    )
    assert (recipe.seed, recipe.method["temperature"], recipe.data.name) == (3, 6.0, "shapes")
    assert recipe.optimiser.weight_decay == 5e-4 and recipe.method["kd_weight"] == 0.9


def test_a_saved_recipe_reads_back_equal(tmp_path):
    recipe = resolve(None, STUDENT, ["method.name=dkd", "method.beta=2", "schedule.milestones=[3, 5]"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe))
    again = resolve(str(path))
    assert again == recipe and again.hash() == recipe.hash()


def test_choosing_another_method_drops_the_former_ones_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("student: {name: resnet8_cifar}\nmethod: {name: dkd, beta: 2}\n")
    assert resolve(str(path), {"method.name": "kd"}).method["name"] == "kd"
    assert resolve(str(path), {"method.name": "dkd"}).method["beta"] == 2


def test_the_hash_is_of_what_determines_the_result():
    def hashed(*settings):
        return resolve(None, STUDENT, settings).hash()

    assert hashed() == hashed("data.dir=elsewhere", "runtime.device=cpu", "note=hello")
    assert len({hashed(), hashed("seed=1"), hashed("optimiser.lr=0.1"), hashed("schedule.epochs=7")}) == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["optimiser.learning_rate=0.1"], "'optimiser.learning_rate' is not a known setting"),
        (["optimiser.momentun=0.1"], "did you mean 'momentum'"),
        (["schedules.epochs=3"], "did you mean 'schedule'"),
        (
            ["method.name=kdd"],
            "there is no method 'kdd'; did you mean 'dkd'|there is no method 'kdd'; did you mean 'kd'",
        ),
        (["method.name=kd", "method.temprature=3"], "did you mean 'temperature'"),
        (["schedule.epochs=0"], "'schedule.epochs' can't be 0"),
        (["schedule.kind=linear"], "'schedule.kind' can't be 'linear'"),
        (["data.few_ratio=1.5"], "'data.few_ratio' can't be 1.5"),
        (["data.mean=[123.7, 116.3, 103.5]"], r"'data.mean.0' can't be 123.7: .* less than or equal to 1"),
        (["data.mean=[0.5, -0.1, 0.5]"], "'data.mean.1' can't be -0.1"),
        (["data.std=[0.2, 0.2, 0]"], "'data.std.2' can't be 0: .* greater than 0"),
        (["data.std=[58.4, 57.1, 57.4]"], "'data.std.0' can't be 58.4"),
        (["data.std=[.nan, 0.2, 0.2]"], "'data.std.0' can't be nan"),
        (["seed"], "must have the form key.path=value"),
        (["seed.deep=1", "seed=2", "seed.deep=1"], "single value, not a section"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        resolve(None, STUDENT, settings)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipe_are_refused(tmp_path):
    for text, sentence in (
        ("a: [1", "not valid YAML, line"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("seed: 1\nseed: 2\nstudent: resnet8_cifar\n", "not valid YAML"),
    ):
        path = tmp_path / "broken.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match=sentence):
            resolve(str(path))
    with pytest.raises(UserError, match="no recipe file"):
        resolve(str(tmp_path / "missing.yaml"))
    with pytest.raises(UserError, match="no recipe 'crd/kdd'"):
        resolve("crd/kdd")
    with pytest.raises(UserError, match=r"'student' is missing"):
        validate({})


def test_hostile_yaml_is_not_executed(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "hostile.yaml"
    path.write_text(f"student: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        resolve(str(path))
    assert not marker.exists()
    assert yaml.safe_load("a: 1") == {"a": 1}
