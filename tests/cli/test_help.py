"""The help: there for every command, teaching, true about the defaults, and quick."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from tutelage.cli import app
from tutelage.recipes import Recipe
from tutelage.training.flags import FLAGS

from .conftest import Run

TREE = typer.main.get_command(app)


def commands(group: Any = TREE, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())
PATHS = list(COMMANDS)


def test_the_commands_of_the_project_are_there() -> None:
    running = {"demo", "train", "distill", "mutual", "eval", "resume", "probe", "export"}
    looking = {"list", "show", "doctor", "weights import", "weights inspect", "data prepare"}
    assert {" ".join(path) for path in PATHS} == running | looking


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_has_help_and_the_common_options(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    for option in ("--json", "--debug"):
        assert option in result.output


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_examples_in_the_help_parse(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    text = command.help.replace("\\\n", " ")
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("tutelage ")]
    assert 2 <= len(examples) <= 3
    for example in examples:
        words = shlex.split(example)
        assert tuple(words[1 : 1 + len(path)]) == path
        command.make_context(" ".join(path), words[1 + len(path) :])


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_fits_eighty_columns(path: tuple[str, ...]) -> None:
    assert max(len(line) for line in COMMANDS[path].help.splitlines()) <= 78


def parameter(name: str, *path: str) -> Any:
    return next(p for p in COMMANDS[path or ("train",)].params if p.name == name)


@pytest.mark.parametrize(
    "name", ["data", "few_ratio", "val_fraction", "batch_size", "epochs", "seed", "device"]
)
def test_shown_defaults_are_those_of_the_recipe(name: str) -> None:
    value: Any = Recipe.model_validate({"student": {"name": "any"}})
    for part in FLAGS[name].split("."):
        value = getattr(value, part)
    assert parameter(name).show_default == str(value)


def test_a_flag_is_the_same_everywhere() -> None:
    seen: dict[str, tuple[Any, ...]] = {}
    for command in COMMANDS.values():
        for option in command.params:
            if option.name in FLAGS or option.name in {"recipe", "settings", "out", "json", "quiet", "debug"}:
                panel = getattr(option, "rich_help_panel", None)
                facts = (tuple(option.opts), option.metavar, panel)
                assert seen.setdefault(option.name, facts) == facts
    assert set(seen) >= set(FLAGS)


@pytest.mark.parametrize("command", ["demo", "train", "distill", "mutual", "doctor"])
def test_the_method_shown_is_the_commands_own(command: str) -> None:
    shown = {"demo": "kd", "train": "none", "mutual": "hssakd", "doctor": "kd, or none with --model"}
    assert parameter("method", command).show_default == shown.get(command, "kd")


def test_what_is_not_trained_has_help_of_its_own() -> None:
    for command in ("eval", "probe", "export"):
        assert "afresh" not in parameter("weights", command).help
    assert "dropped" in parameter("pretrained", "distill").help
    assert "dropped" not in parameter("pretrained", "eval").help
    assert parameter("batch_size", "eval").show_default == "250"
    assert "learn from" not in parameter("teacher", "export").help
    assert parameter("data", "export").show_default != "digits"
    assert "run" in parameter("data_dir", "export").show_default


@pytest.mark.parametrize("path", [p for p in PATHS if any(o.name == "settings" for o in COMMANDS[p].params)])
def test_examples_of_set_are_settings_of_the_command(path: tuple[str, ...]) -> None:
    from tutelage.training.flags import resolve_evaluation, resolve_flags
    from tutelage.training.probe_config import resolve_probe

    examples = re.findall(r"[\w.]+=[\w.]+", parameter("settings", *path).help)
    assert examples
    if path == ("probe",):
        resolve_probe("packd", {"model.name": "any"}, examples)
    elif path == ("eval",):
        resolve_evaluation(examples, {"model": "any"})
    else:
        resolve_flags("train", None, examples, {"model": "any"})
    assert path != ("export",) or examples == ["student.args.img_size=64"]


def test_no_command_shows_the_help(run: Run) -> None:
    result = run()
    assert result.code == 0
    assert "distill" in result.out


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.code == 0
    assert re.fullmatch(r"tutelage \d+\.\d+\.\d+\n", result.out)


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "timm", "numpy", "sklearn"}
    call = "import sys; from tutelage.cli import main; main(['distill', '--help'])"
    code = f"{call}; print(sys.modules.keys() & {heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
