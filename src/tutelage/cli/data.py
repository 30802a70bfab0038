"""The command that brings datasets into the form in which they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tutelage.cli import options
from tutelage.cli.console import facts, finish, number

app = typer.Typer(help="Bring datasets into the form in which they are read.")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="imagenet or tiny-imagenet.", show_default=False)],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="ImageNet: the folder with its tar files. TinyImageNet: its zip or unpacked folder.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FOLDER",
            help="The folder to make.",
            show_default="NAME in ./data",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    checksums: Annotated[
        bool,
        typer.Option(
            "--checksums/--no-checksums",
            help="Whether archives must be the official ones, by size and MD5.",
            rich_help_panel=options.DATA,
        ),
    ] = True,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""Put a dataset's images into class folders; its own files stay as they are.

    TinyImageNet's validation images get class folders. ImageNet is unpacked from
    ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
    ILSVRC2012_devkit_t12.tar.gz; stopped, it goes on behind the last whole class.
    The folder appears when it is whole.

    [bold]Examples[/bold]

    tutelage data prepare tiny-imagenet tiny-imagenet-200.zip

    tutelage data prepare imagenet downloads --to data/imagenet
    """
    from tutelage.data.preparation import prepare_data
    from tutelage.data.progress import silence

    with silence(quiet):
        result = prepare_data(name, source, to, checksums=checksums)
    finish(result, json, _print_prepared)


def _print_prepared(console: Console, result: Mapping[str, Any]) -> None:
    counts = f"{number(result['train_images'])} to train, {number(result['val_images'])} to validate"
    facts(
        console,
        [
            ("dataset", f"{result['dataset']}, {number(result['classes'])} classes"),
            ("images", counts),
            ("folder", result["folder"]),
            ("", "it was prepared already" if result["already"] else None),
            ("time", f"{result['seconds']:,.1f} s"),
        ],
    )
