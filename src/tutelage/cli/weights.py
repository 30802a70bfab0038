"""The commands for weights files: import and inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tutelage.cli import options
from tutelage.cli.console import facts, finish, number, percent

app = typer.Typer(help="Import weights from other projects, and look into weights files.")

Source = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="safetensors, a torch checkpoint, or npz arrays.", show_default=False
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option("--prefix", metavar="TEXT", help="Which network, where the file holds several."),
]


def per_channel(text: str) -> list[float]:
    """Numbers with commas between them.

    Raises:
        typer.BadParameter: Something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not of the form 0.5,0.5,0.5") from error


@app.command("import")
def import_file(
    source: Source,
    target: Annotated[
        str,
        typer.Option(
            "-o", "--out", metavar="FILE", help="The safetensors file to write.", show_default=False
        ),
    ],
    prefix: Prefix = None,
    model: options.Model = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            metavar="R,G,B",
            help="Mean that the images were normalised with, in 0..1.",
            show_default="known for published weights",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            "--std",
            metavar="R,G,B",
            help="Standard deviation, likewise.",
            show_default="known for published weights",
        ),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    r"""Turn another project's weights into safetensors with a note of facts.

    Reads the checkpoints of RepDistiller, PACKD, mdistiller, HSAKD, DPCD, timm
    and torchvision; nothing in them is executed. Normalisation and published
    accuracy are noted beside the weights, in a JSON file of the same name.
    The network is found by comparing; --model names it where several fit.

    [bold]Examples[/bold]

    tutelage weights import ckpt_epoch_240.pth -o r56.safetensors

    tutelage weights import several.npz --prefix resnet56 -o r56.safetensors

    tutelage weights import mine.pth -o mine.safetensors \
      --model vgg13_cifar --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25
    """
    from tutelage.models.weights import import_weights

    result = import_weights(
        source,
        target,
        prefix=prefix,
        model=model,
        mean=None if mean is None else per_channel(mean),
        std=None if std is None else per_channel(std),
    )
    finish({"out": target, **result}, json, _print_weights)


@app.command("inspect")
def inspect_file(
    source: Source,
    prefix: Prefix = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a weights file holds and which networks it fits.

    [bold]Examples[/bold]

    tutelage weights inspect ckpt_epoch_240.pth

    tutelage weights inspect several.npz --prefix resnet20 --json
    """
    from tutelage.models.weights import inspect_weights

    finish(inspect_weights(source, prefix), json, _print_weights)


def _print_weights(console: Console, result: Mapping[str, Any]) -> None:
    noted = result.get("sidecar") or {}

    def joined(key: str) -> str | None:
        values = result.get(key) or noted.get(key)
        return ", ".join(map(str, values)) if values else None

    facts(
        console,
        [
            ("file", result.get("out") or result["file"]),
            ("format", result["format"]),
            ("weights", result["name"]),
            ("fits", joined("models") or "no network known here"),
            ("classes", result["num_classes"]),
            ("values", result.get("values") and f"{number(result['values'])} in {result['tensors']} tensors"),
            ("mean", joined("mean")),
            ("std", joined("std")),
            ("top-1", percent(result["top1"] or noted.get("top1"))),
            ("dataset", result["dataset"] or noted.get("dataset")),
            ("source", result["source"]),
            ("licence", result["licence"]),
            ("hash", result["weights_hash"]),
            *(("note", note) for note in result["notes"]),
        ],
    )
