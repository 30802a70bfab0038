"""Recipes that extend others: what is taken over, what isn't, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.errors import UserError
from tutelage.recipes import dump, read_recipe, resolve

BASE = """
note: The base.
seed: 3
student: resnet8_cifar
method: {name: dkd, beta: 2, temperature: 5}
optimiser: {lr: 0.2, weight_decay: 1e-3}
schedule: {kind: multistep, milestones: [5, 7, 9], epochs: 10}
"""


@pytest.fixture
def write(tmp_path: Path):
    """A function that writes a recipe into the test's folder and returns its path as text."""
    (tmp_path / "base.yaml").write_text(BASE)

    def make(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    return make


def test_sections_are_merged_key_by_key_and_lists_are_replaced(write):
    values = read_recipe(
        write("extends: base.yaml\noptimiser: {lr: 0.1}\nschedule: {milestones: [2]}\nmethod: {beta: 8}\n")
    )
    assert values == {
        "seed": 3,
        "student": {"name": "resnet8_cifar"},
        "method": {"name": "dkd", "beta": 8, "temperature": 5},
        "optimiser": {"lr": 0.1, "weight_decay": 1e-3},
        "schedule": {"kind": "multistep", "milestones": [2], "epochs": 10},
    }


def test_a_note_is_not_taken_over(write):
    assert resolve(write("extends: base.yaml\n")).note == ""
    assert resolve(write("extends: base.yaml\nnote: Mine.\n")).note == "Mine."


def test_a_chain_is_followed_and_the_nearest_value_wins(write):
    write("extends: base.yaml\nseed: 4\noptimiser: {lr: 0.4}\n", "middle.yaml")
    recipe = resolve(write("extends: middle.yaml\noptimiser: {lr: 0.5}\n"))
    assert (recipe.seed, recipe.optimiser.lr, recipe.optimiser.weight_decay) == (4, 0.5, 1e-3)


@pytest.mark.parametrize("text", ["method: kd", "method: {name: kd}"])
def test_another_method_drops_the_former_ones_settings(write, text):
    assert read_recipe(write(f"extends: base.yaml\n{text}\n"))["method"] == {"name": "kd"}


def test_the_same_method_named_again_keeps_its_settings(write):
    method = read_recipe(write("extends: base.yaml\nmethod: {name: dkd, beta: 1}\n"))["method"]
    assert method == {"name": "dkd", "beta": 1, "temperature": 5}


def test_a_section_can_be_taken_away(write):
    write("student: resnet8_cifar\nteacher: resnet20_cifar\n", "pair.yaml")
    assert resolve(write("extends: pair.yaml\ntask: train\nteacher: null\n")).teacher is None


def test_a_bundled_recipe_can_be_extended_and_flags_come_last(write):
    path = write("extends: crd/vanilla\nschedule: {epochs: 5}\n")
    recipe = resolve(path, {"seed": 9}, ["optimiser.lr=0.3"])
    assert (recipe.schedule.epochs, recipe.seed, recipe.optimiser.lr) == (5, 9, 0.3)
    assert recipe.schedule.milestones == (150, 180, 210) and recipe.student.name == "resnet20_cifar"


def test_a_file_is_looked_for_beside_the_one_that_names_it(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("extends: ../base.yaml\n", "inner/middle.yaml")
    write("extends: inner/middle.yaml\n", "mine.yaml")
    assert resolve("mine.yaml").seed == 3


def test_a_saved_recipe_stands_on_its_own(write, tmp_path):
    recipe = resolve(write("extends: base.yaml\n"))
    (tmp_path / "base.yaml").unlink()
    saved = write(dump(recipe), "saved.yaml")
    assert "extends" not in read_recipe(saved) and resolve(saved) == recipe


def test_reading_twice_gives_values_of_their_own(write):
    path = write("extends: base.yaml\n")
    read_recipe(path)["schedule"]["milestones"].append(99)
    assert read_recipe(path)["schedule"]["milestones"] == [5, 7, 9]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extends: crd/kdd\n", r"mine.yaml extends another .* no recipe 'crd/kdd'; did you mean 'crd/kd'\?"),
        ("extends: missing.yaml\n", "mine.yaml extends another .* no recipe file .*missing.yaml"),
        ("extends: broken.yaml\n", "mine.yaml extends another .* not valid YAML"),
        ("extends: 3\n", r"'extends' in recipe .*mine.yaml can't be 3; give the name"),
        ("extends: [base.yaml]\n", "'extends' in recipe .* can't be"),
        ("extends: mine.yaml\n", "can't extend itself, but .*mine.yaml extends .*mine.yaml"),
        ("extends: there.yaml\n", "can't extend itself, but .*mine.*there.*back.*there"),
        ("extends: crd/vanilla\noptimizer: {lr: 1}\n", "'optimizer' is not a known setting; did you mean"),
        ("extends: base.yaml\nstudent: 3\n", "'student' is a single value, not a section"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(write, tmp_path, text, sentence):
    write("a: [1", "broken.yaml")
    write("extends: back.yaml\n", "there.yaml")
    write(f"extends: ../{tmp_path.name}/there.yaml\n", "back.yaml")
    path = write(text)
    with pytest.raises(UserError, match=sentence) as caught:
        resolve(path)
    assert "\n" not in str(caught.value)


def test_extends_is_no_setting():
    with pytest.raises(UserError, match="'extends' is not a known setting"):
        resolve(None, {"student.name": "resnet8_cifar"}, ["extends=crd/kd"])
