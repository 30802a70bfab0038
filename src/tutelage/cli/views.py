"""Results of jobs for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from tutelage.cli.console import facts, number, percent, table

Result = Mapping[str, Any]


def demo(console: Console, result: Result) -> None:
    """The demo's table, what it means, and where its page is."""
    from tutelage.runs.tables import Row, as_table

    console.print(as_table([Row(**row) for row in result["rows"]]))
    console.print()
    console.print(result["note"])
    console.print()
    facts(console, [("page", result["page"]), ("time", f"{result['seconds']:,.0f} s")])


def run(console: Console, result: Result) -> None:
    """A finished run: what was trained, what came out, where it lies."""
    student, teacher, summary = result["student"], result["teacher"], result["summary"]
    last, best = summary["last"], summary["best"]
    facts(
        console,
        [
            ("student", f"{student['name']}, {number(student['parameters'])} parameters"),
            ("method", result["method"]),
            ("teacher", teacher and f"{teacher['name']}, test top-1 {percent(teacher['test']['top1'])}"),
            ("last epoch", _accuracy(last)),
            ("peers", ", ".join(f"{peer['top1']:.2f}%" for peer in last.get("peers", ())) or None),
            ("branches", last["test"].get("branches") and _branches(last["test"]["branches"])),
            ("EMA", last.get("ema_test") and _split("test", last["ema_test"])),
            ("best epoch", f"{_accuracy(best)} (epoch {best['epoch'] + 1}, chosen on {best['by']})"),
            ("time", f"{summary['training_seconds']:,.1f} s"),
            ("speed", f"{number(summary['images_per_second'])} images/s in the last epoch"),
            ("record", result["out"]),
        ],
    )


def evaluation(console: Console, result: Result) -> None:
    """Accuracy of a network, beside what its weights were noted with."""
    facts(
        console,
        [
            ("model", f"{result['model']} on {result['data']}, {number(result['images'])} test images"),
            ("top-1", percent(result["top1"])),
            ("top-5", percent(result["top5"])),
            ("branches", result.get("branches") and _branches(result["branches"])),
            ("loss", f"{result['loss']:.4f}"),
            ("expected top-1", percent(result["expected_top1"])),
            ("normalisation", _normalisation(result)),
            ("device", result["device"]),
        ],
    )


def examination(console: Console, result: Result) -> None:
    """What the doctor found: networks, loss terms, cost, and what to worry about."""
    for role, network in result["networks"].items():
        facts(console, [(role, network["name"]), *_network(network)])
        console.print()
    method, estimate = result["method"], result["estimate"]
    facts(
        console,
        [
            ("method", method["name"]),
            ("trained parts", f"{number(method['trainable_parameters'])} parameters beside the student"),
            ("state", f"{number(method['state_values'])} values"),
            ("normalisation", _normalisation(result["normalisation"])),
        ],
    )
    console.print()
    rows = [(name, term["value"], f"{term['gradient_share']:.1%}") for name, term in result["terms"].items()]
    table(console, ("term", "value", "share of gradient"), rows)
    console.print()
    facts(
        console,
        [
            ("step", f"{estimate['step_seconds']:.3f} s, {number(estimate['images_per_second'])} images/s"),
            ("epoch", f"{number(estimate['steps_per_epoch'])} steps"),
            ("whole run", f"{estimate['training_hours']:.2f} hours"),
            ("memory", f"{number(estimate['peak_memory_mib'])} MiB"),
            ("measured on", estimate["note"]),
        ],
    )
    console.print()
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    if not result["warnings"]:
        console.print("no warnings")


def _branches(branches: Result) -> str:
    """Accuracy of each branch over all rotations, shallowest first."""
    keys = ("joint_top1", "class_top1")
    joint, classes = (", ".join(f"{value:.2f}%" for value in branches[key]) for key in keys)
    return f"joint {joint}; class {classes}"


def _network(network: Result) -> list[tuple[str, Any]]:
    test, size = network.get("test"), network["input_size"]
    own = network["own_normalisation"]
    stages = [f"{channels} channels at 1/{reduction}" for channels, reduction in network["stages"]]
    return [
        ("parameters", number(network["parameters"])),
        ("MACs", number(network["macs"])),
        ("stages", ", ".join(stages)),
        ("made for", size and f"{size[0]}x{size[1]} images"),
        ("own normalisation", own and _normalisation(own)),
        ("test top-1", test and percent(test["top1"])),
        ("expected top-1", percent(network.get("expected_top1"))),
    ]


def _normalisation(values: Result) -> str:
    mean, std = ("/".join(f"{value:.4f}" for value in values[key]) for key in ("mean", "std"))
    return f"mean {mean}, std {std}"


def _accuracy(record: Result) -> str:
    return ", ".join(_split(split, record[split]) for split in ("val", "test") if record.get(split))


def _split(name: str, measured: Result) -> str:
    return f"{name} top-1 {percent(measured['top1'])}, top-5 {percent(measured['top5'])}"
