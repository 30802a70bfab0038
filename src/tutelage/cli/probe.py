"""The command that probes a network's features."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tutelage.cli import options
from tutelage.cli.console import facts, finish, number, percent


class Protocol(str, Enum):
    """How the classifier is trained."""

    packd = "packd"
    hsakd = "hsakd"
    lbfgs = "lbfgs"


def probe(
    model: options.Model = None,
    weights: Annotated[str | None, options.weights("The weights to probe.")] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Probe the student of this run's folder.",
            rich_help_panel=options.NETWORKS,
        ),
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol",
            help="How the classifier is trained (docs/transfer.md compares them).",
            rich_help_panel=options.TRAINING,
        ),
    ] = Protocol.packd,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = None,
    few_ratio: options.FewRatio = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    device: options.Device = None,
    settings: Annotated[
        list[str] | None,
        options.settings("Change any setting of the protocol", "sgd.lr=0.05 or data.image_size=96"),
    ] = None,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""Train a linear classifier on a frozen network's features, and test it.

    Shows how well features carry over to other images. The network's weights
    stay as they are; features are computed once where the images allow it. The
    result is the last epoch's; the best one on the test images stands beside it.

    [bold]Examples[/bold]

    tutelage probe --run runs/student --data stl10 --data-dir data

    tutelage probe --model mobilenetv2_s1_cifar --weights mv2.safetensors \
      --protocol hsakd --data tiny-imagenet --data-dir data

    tutelage probe --model vit_small_patch16_224 --protocol lbfgs \
      --set model.args.pretrained=true --data stl10 --data-dir data
    """
    from tutelage.data.progress import silence
    from tutelage.training.probe import probe as job
    from tutelage.training.progress import Reporter

    with silence(quiet):
        result = job(
            model,
            weights=weights,
            run=run,
            protocol=protocol.value,
            data=data,
            data_dir=data_dir,
            download=download,
            few_ratio=few_ratio,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=device,
            out=out,
            settings=settings or (),
            reporter=Reporter(quiet),
        )
    finish(result, json, _print_probe)


def _print_probe(console: Console, result: Mapping[str, Any]) -> None:
    data, model, summary = result["data"], result["model"], result["summary"]
    last, best, choice = summary["last"], summary["best"], result["choice"]
    changed = ", ".join(f"{key}={value}" for key, value in result["departures"].items())
    published = result["run"]["published"] if result["run"] else []
    counts = f"{number(data['train_images'])} to train, {number(data['test_images'])} to test"
    facts(
        console,
        [
            ("model", f"{model['name']}, {number(model['features'])} features, weights {model['weights']}"),
            ("data", f"{data['name']}, {counts}, {data['image_size']}x{data['image_size']}"),
            ("protocol", result["protocol"]),
            ("changed", changed or None),
            ("strength", choice and f"{choice['strength']:.3g}, chosen on held-out training images"),
            ("result", _accuracy(last["test"])),
            ("best epoch", best and f"{_accuracy(best['test'])} (epoch {best['epoch'] + 1}, chosen on test)"),
            ("published", ", ".join(f"{row['project']} {percent(row['top1'])}" for row in published) or None),
            ("time", f"{result['seconds']:,.1f} s"),
            ("record", result["out"]),
        ],
    )


def _accuracy(test: Mapping[str, Any]) -> str:
    return f"test top-1 {percent(test['top1'])}, top-5 {percent(test['top5'])}"
