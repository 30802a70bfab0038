"""The commands that look things up: list and show."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console

from tutelage.cli import options
from tutelage.cli.console import facts, finish, number, table


class Kind(str, Enum):
    """What can be listed."""

    models = "models"
    methods = "methods"
    datasets = "datasets"
    recipes = "recipes"


def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)],
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="For models: part of the name, or a pattern with *.", show_default="Tutelage's own"
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="For models: all that timm has.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the models, methods, datasets or recipes there are.

    [bold]Examples[/bold]

    tutelage list methods

    tutelage list models "vit_tiny*"

    tutelage list datasets --json
    """
    from tutelage.training import describe

    match kind:
        case Kind.models:
            entries: list[Any] = describe.list_models(pattern or ("*" if everything else None))
        case Kind.methods:
            entries = describe.list_methods()
        case Kind.datasets:
            entries = describe.list_datasets()
        case Kind.recipes:
            entries = describe.list_recipes()
    finish({kind.value: entries}, json, _print_entries)


def show(
    name: Annotated[
        str,
        typer.Argument(help="A method, model, dataset or recipe, or a recipe's file.", show_default=False),
    ],
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", metavar="N", help="For a model: side of the images.", show_default="its own"
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            "--num-classes", metavar="N", help="For a model: number of classes.", show_default="its own"
        ),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what is known about a method, model, dataset or recipe.

    A method: its settings with meaning and default, its needs, its source.
    A model: parameters, MACs, stages, normalisation. A dataset: its facts.
    A recipe: all its settings with the defaults filled in.

    [bold]Examples[/bold]

    tutelage show dkd

    tutelage show resnet20_cifar --num-classes 10

    tutelage show runs/first/recipe.yaml
    """
    from tutelage.training.describe import describe

    finish(describe(name, num_classes, image_size), json, _print_description)


def _print_entries(console: Console, result: Mapping[str, list[Any]]) -> None:
    for kind, entries in result.items():
        if not entries:
            console.print(f"there are no {kind}")
        elif isinstance(entries[0], str):
            for name in entries:
                console.print(name, soft_wrap=True)
        else:
            keys = [key for key in entries[0] if key != "note"]
            titles = [key.replace("_", " ") for key in keys]
            table(console, titles, ([entry[key] for key in keys] for entry in entries))


def _print_description(console: Console, result: Mapping[str, Any]) -> None:
    PRINTERS[result["kind"]](console, result)


def _print_method(console: Console, result: Mapping[str, Any]) -> None:
    needs = result["needs"]
    facts(
        console,
        [
            ("method", f"{result['name']}: {result['summary']}"),
            ("source", result["source"]),
            ("loss", result["formula"]),
            ("needs", f"student: {', '.join(needs['student'])}"),
            ("", needs["teacher"] and f"teacher: {', '.join(needs['teacher'])}"),
            ("students", needs["students"] if needs["students"] > 1 else None),
            ("views", needs["views"] if needs["views"] > 1 else None),
            ("defaults", result["defaults"]),
        ],
    )
    console.print()
    columns = ("name", "default", "type", "range", "meaning")
    rows = [[entry[column] for column in columns] for entry in result["settings"]]
    table(console, ("setting", *columns[1:]), rows)


def _print_model(console: Console, result: Mapping[str, Any]) -> None:
    height, width = result["image_size"]
    facts(
        console,
        [
            ("model", result["name"]),
            ("parameters", number(result["parameters"])),
            ("MACs", f"{number(result['macs'])} at {height}x{width}"),
            ("classes", result["num_classes"]),
            ("pooled features", result["pooled_width"]),
            ("mean", result["mean"] and ", ".join(map(str, result["mean"]))),
            ("std", result["std"] and ", ".join(map(str, result["std"]))),
            ("schema hash", result["schema_hash"]),
            ("stages", result["stages_note"]),
        ],
    )
    if result["stages"]:
        console.print()
        rows = [
            (place, stage["channels"], f"1/{stage['reduction']}", stage["module"], stage["boundary"])
            for place, stage in enumerate(result["stages"], start=1)
        ]
        table(console, ("stage", "channels", "side", "ends with", "begins with"), rows)


def _print_dataset(console: Console, result: Mapping[str, Any]) -> None:
    names = result["class_names"]
    counts = f"{number(result['train_images'])} to train, {number(result['test_images'])} to test"
    classes = f"{result['classes']}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
    facts(
        console,
        [
            ("dataset", result["name"]),
            ("images", result["train_images"] and counts),
            ("size", f"{result['image_size']}x{result['image_size']}"),
            ("classes", result["classes"] and classes),
            ("mean", ", ".join(map(str, result["mean"]))),
            ("std", ", ".join(map(str, result["std"]))),
            (
                "augmentation",
                f"random crop with padding {result['crop_padding']}{' and flip' if result['flip'] else ''}, "
                f"{result['views']} views an image",
            ),
            ("source", result["source"]),
            ("licence", result["licence"]),
        ],
    )
    if result["linear_probes"]:
        console.print("\nPublished linear probes (tutelage probe), in percent")
        columns = ("project", "label", "teacher", "student")
        rows = [
            [*(row[column] for column in columns), f"{row['top1']:.2f}"] for row in result["linear_probes"]
        ]
        table(console, (*columns, "top-1"), rows)


def _print_recipe(console: Console, result: Mapping[str, Any]) -> None:
    console.print(f"# {result['name']}, hash {result['hash']}", soft_wrap=True)
    console.print(result["yaml"], soft_wrap=True, end="")


PRINTERS = {
    "method": _print_method,
    "model": _print_model,
    "dataset": _print_dataset,
    "recipe": _print_recipe,
}
