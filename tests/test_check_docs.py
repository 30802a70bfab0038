"""The docs check finds what it is there to find, and nothing in documents that are right."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main

import check_docs
from command_lines import calls, complaint, disarm


class Kind(str, Enum):
    models = "models"
    methods = "methods"


def small_program() -> typer.Typer:
    app = typer.Typer()
    weights = typer.Typer()
    app.add_typer(weights, name="weights")

    @app.command()
    def distill(
        teacher: Annotated[str, typer.Option("--teacher", "-t")],
        epochs: Annotated[int, typer.Option("--epochs")] = 1,
        amp: Annotated[bool, typer.Option("--amp/--no-amp")] = True,
        settings: Annotated[list[str] | None, typer.Option("--set")] = None,
    ) -> None:
        raise AssertionError("the check must not run the command")

    @app.command("list")
    def listing(kind: Kind) -> None: ...

    @weights.command("import")
    def import_weights(source: Path, out: Annotated[Path, typer.Option("--out", "-o")]) -> None: ...

    @weights.command()
    def inspect(sources: list[Path]) -> None: ...

    return app


TREE = disarm(typer.main.get_command(small_program()))


@pytest.mark.parametrize(
    "line",
    [
        "distill --teacher resnet56_cifar --epochs 3 --no-amp --set a.b=1 --set c=-2",
        "distill --teacher=resnet56_cifar --epochs ${epochs}",
        "distill -t resnet56_cifar",
        "distill --help",
        "--help",
        "list models",
        "weights import a.npz -o b.safetensors",
        "weights inspect a b $c",
    ],
)
def test_takes_a_command_that_exists(line: str) -> None:
    assert complaint(line.split(), TREE) is None


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("distil --teacher x", "distil"),
        ("distill", "--teacher"),
        ("distill --teacher", "--teacher"),
        ("distill --teacher x --epoch 3", "--epoch"),
        ("distill --teacher x --epochs three", "--epochs"),
        ("distill --teacher x stray", "stray"),
        ("list", "KIND"),
        ("list teachers", "teachers"),
        ("weights import -o b", "SOURCE"),
        ("weights inspect", "SOURCES"),
    ],
)
def test_refuses_a_command_the_program_would_refuse(line: str, culprit: str) -> None:
    found = complaint(line.split(), TREE)
    assert found is not None
    name, _, reason = found.partition("': ")
    assert name == f"'tutelage {line}"
    assert culprit.lower() in reason.lower()


def test_finds_commands_among_shell() -> None:
    shell = """\
# tutelage in a comment
A=1 .venv/bin/tutelage list models  # all of them
cd tutelage && tutelage distill \\
    --teacher "a b" > log.txt 2>&1 | tee copy
torchrun --nproc-per-node 2 -m tutelage distill -t x
for seed in 1 2; do tutelage list $seed; done
pip install tutelage
"""
    assert list(calls(shell, prompted=False)) == [
        (1, ["list", "models"]),
        (2, ["distill", "--teacher", "a b", "2"]),
        (4, ["distill", "-t", "x"]),
        (5, ["list", "$seed"]),
    ]


def test_takes_only_prompted_lines_of_a_console_for_commands() -> None:
    console = "$ tutelage list \\\n    models\ntutelage 0.1.0\n$ tutelage list methods\n"
    assert list(calls(console, prompted=True)) == [(0, ["list", "models"]), (3, ["list", "methods"])]


def lines_found(root: Path, document: str) -> list[tuple[int, str]]:
    path = root / "README.md"
    path.write_text(document, encoding="utf-8")
    return [tuple(each) for each in check_docs.check_document(path, root, TREE)]


def test_follows_links_and_anchors(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("# A `guide`: 2 ways!\n# Twice\n# Twice\n", encoding="utf-8")
    right = """\
# Top
[a](docs/guide.md) [b](docs/guide.md#a-guide-2-ways) [c](docs/guide.md#twice-1) [d](#top) [e](docs/)
[web](https://example.org/x#y) `[code](nowhere.md)` <img src="docs/guide.md">
```text
[fenced](nowhere.md)
```
[defined]: docs/guide.md
"""
    assert lines_found(tmp_path, right) == []
    wrong = """\
[a](docs/guild.md)
[b](docs/guide.md#three-ways) [c](#bottom)
<img src="plot.png">

[defined]: ../outside.md
"""
    assert lines_found(tmp_path, wrong) == [
        (1, "link to 'docs/guild.md', which does not exist"),
        (2, "link to 'docs/guide.md#three-ways', but guide.md has no heading '#three-ways'"),
        (2, "link to '#bottom', but README.md has no heading '#bottom'"),
        (3, "link to 'plot.png', which does not exist"),
        (5, "link to '../outside.md', which does not exist"),
    ]


def test_reads_the_code_blocks(tmp_path: Path) -> None:
    document = """\
```python
x = 1
```
1. In a list:

   ```python
   def f():
       return ]
   ```
```bash
tutelage list models
tutelage list \\
  moduls
```
```bash
tutelage list 'models
```
"""
    found = lines_found(tmp_path, document)
    assert [line for line, _ in found] == [8, 12, 16]
    assert "does not compile" in found[0][1]
    assert found[1][1].startswith("'tutelage list moduls': ")
    assert "can't be read" in found[2][1]


def test_finds_machines_and_registries(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    folders = ["work", "tmp", "root", "home"]
    hosts = ["py" + "pi.org", "files.python" + "hosted.org"]
    path.write_text("\n".join([*(f"see /{each}/x" for each in folders), *hosts]), encoding="utf-8")
    assert [each.line for each in check_docs.check_private(path)] == [1, 2, 3, 4, 5, 6]
    path.write_text("https://example.org/home/x ./home/x a/tmp/b runs/tmp/ home/\n", encoding="utf-8")
    assert list(check_docs.check_private(path)) == []
    path.write_bytes(b"\xff\xfe/tmp/")
    assert list(check_docs.check_private(path)) == []
