"""The command that hands a trained network on: export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tutelage.cli import options
from tutelage.cli.console import facts, finish, number, table

FILES = "Files"


def export(
    target: Annotated[
        str,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            help="The folder to make; it must be new or empty.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="The folder of the run whose student is exported.",
            rich_help_panel=options.NETWORKS,
        ),
    ] = None,
    best: Annotated[
        bool,
        typer.Option("--best", help="Its best epoch instead of the last.", rich_help_panel=options.NETWORKS),
    ] = False,
    ema: Annotated[
        bool,
        typer.Option(
            "--ema",
            help="The moving average of its weights (with --best: at its best).",
            rich_help_panel=options.NETWORKS,
        ),
    ] = False,
    model: options.Model = None,
    weights: Annotated[str | None, options.weights("The weights to export, in place of a run.")] = None,
    teacher: Annotated[
        str | None,
        options.teacher("A network to compare size and speed with; needs no weights.", "the run's"),
    ] = None,
    data: Annotated[
        str | None, options.data("The dataset that --weights are for.", "the one noted beside them")
    ] = None,
    data_dir: Annotated[str | None, options.data_dir("the run's, or ./data")] = None,
    settings: Annotated[
        list[str] | None, options.settings("Change how --weights are used", "student.args.img_size=64")
    ] = None,
    program: Annotated[
        bool, typer.Option(help="Write torch.export's model.pt2.", rich_help_panel=FILES)
    ] = True,
    onnx: Annotated[bool, typer.Option(help="Write model.onnx.", rich_help_panel=FILES)] = True,
    latency: Annotated[
        bool,
        typer.Option(help="Measure how long student and teacher take on this CPU.", rich_help_panel=FILES),
    ] = True,
    push_to: Annotated[
        str | None,
        typer.Option(
            "--push-to",
            metavar="OWNER/NAME",
            help="Upload the folder to this repository on the Hugging Face hub.",
            rich_help_panel=FILES,
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="Make that repository a private one.", rich_help_panel=FILES),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""Hand a trained network on: for timm, the hub, torch.export and ONNX.

    Writes the plain network, without heads and parts of the method, checks
    that every file answers as the network does, and compares size and speed
    with the teacher's.

    [bold]Examples[/bold]

    tutelage export --run runs/student --out exported

    tutelage export --run runs/student --best --no-onnx --out exported

    tutelage export --model resnet20_cifar --weights r20.safetensors \
      --teacher resnet56_cifar --data cifar100 --data-dir data --out exported
    """
    from tutelage.training.export import export as job
    from tutelage.training.progress import Reporter

    result = job(
        run,
        out=target,
        best=best,
        ema=ema,
        model=model,
        weights=weights,
        teacher=teacher,
        data=data,
        data_dir=data_dir,
        settings=settings or (),
        program=program,
        onnx=onnx,
        latency=latency,
        push_to=push_to,
        private=private,
        reporter=Reporter(quiet),
    )
    finish(result, json, _print_export)


def _print_export(console: Console, result: Mapping[str, Any]) -> None:
    config = result["config"]["pretrained_cfg"]
    height, width = config["input_size"][-2:]
    checks = [
        (f"{file}, {count} image{'s' * (count != '1')}", f"logits at most {difference:.1e} apart")
        for file, found in result["checks"].items()
        for count, difference in found.items()
    ]
    facts(
        console,
        [
            ("network", f"{result['model']}, {number(result['config']['num_classes'])} classes"),
            ("images", f"{height}x{width}, {config['interpolation']}, crop {config['crop_pct']:g}"),
            *(("file", f"{name}, {number(size)} bytes") for name, size in result["files"].items()),
            ("checked on", result["images"]),
            ("timm", "loads the same network to the bit"),
            *checks,
        ],
    )
    console.print()
    rows = result["networks"]
    titles = list(dict.fromkeys(title for row in rows for title in row))
    table(console, titles, ([row.get(title) for title in titles] for row in rows))
    console.print()
    measured = result["measured_on"]
    facts(
        console,
        [
            ("measured on", measured and f"{measured['device']}, {measured['threads']} threads"),
            ("pushed to", result["pushed_to"]),
            ("folder", result["out"]),
        ],
    )
