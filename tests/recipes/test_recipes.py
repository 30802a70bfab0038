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


@pytest.mark.parametrize(
    "text", ["1e5", "12e5", "5e-4", "-1E+3", "2.e3", "1.5e3", "off", "1:30", "1_000", "null", "~", "a: b"]
)
def test_words_that_look_like_values_read_back_as_words(tmp_path, text):
    recipe = resolve(None, {**STUDENT, "note": text, "data.dir": text})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe))
    assert resolve(str(path)) == recipe
    assert yaml.safe_load(path.read_text())["data"]["dir"] == text


def test_sections_can_be_set_by_their_name_alone(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("student: resnet8_cifar\nmethod: {name: dkd, beta: 2}\ndata: {batch_size: 8}\n")
    settings = ["method=kd", "student=resnet20_cifar", "data=cifar10", "teacher=resnet56_cifar"]
    recipe = resolve(str(path), settings=settings)
    assert recipe.method["name"] == "kd" and "beta" not in recipe.method
    assert (recipe.student.name, recipe.data.name) == ("resnet20_cifar", "cifar10")
    assert recipe.teacher is not None and recipe.teacher.name == "resnet56_cifar"
    assert recipe.data.batch_size == 8  # as with --data, the other settings stay
    assert resolve(str(path), settings=["method=dkd"]).method["beta"] == 2


def test_choosing_another_method_drops_the_former_ones_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("student: {name: resnet8_cifar}\nmethod: {name: dkd, beta: 2}\n")
    assert resolve(str(path), {"method.name": "kd"}).method["name"] == "kd"
    assert resolve(str(path), {"method.name": "dkd"}).method["beta"] == 2


def hashed(*settings, method="none"):
    return resolve(None, {**STUDENT, "method.name": method}, settings).hash()


@pytest.mark.parametrize(
    "setting",
    [
        *("note=hello", "data.dir=elsewhere", "data.download=true", "data.eval_batch_size=10"),
        *("runtime.device=cpu", "runtime.workers=1", "runtime.threads=1", "runtime.checkpoint_steps=5"),
        *("runtime.tensorboard=false", "runtime.reuse_stages=false", "runtime.teacher_answers=off"),
        "runtime.cache_gib=1",
    ],
)
def test_what_does_not_determine_the_result_is_not_in_the_hash(setting):
    assert hashed() == hashed(setting)


def test_the_hash_is_of_what_determines_the_result():
    different = ["seed=1", "optimiser.lr=0.1", "schedule.epochs=7", "runtime.amp=bf16", "data.batch_size=8"]
    assert len({hashed(), *map(hashed, different)}) == 1 + len(different)


@pytest.mark.parametrize("part", ["student: {name: a, ", "teacher: {name: a, ", "peers: [{name: a, "])
def test_whether_there_are_weights_is_in_the_hash_and_where_they_lie_is_not(part):
    def with_weights(value):
        given = yaml.safe_load(f"{part}weights: {value}" + ("}]" if "[" in part else "}"))
        return validate({"student": {"name": "a"}, "method": {"name": "hssakd"}, **given}).hash()

    assert with_weights("/here/x.safetensors") == with_weights("/there/y.safetensors")
    assert with_weights("/here/x.safetensors") != with_weights("null")


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
