"""Results of jobs for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from tutelage.cli.console import facts, number, percent

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
            *(("", note) for note in student.get("notes", ())),
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
            ("images", "x".join(map(str, result["image_size"]))),
            *(("weights", note) for note in result["notes"]),
            ("normalisation", normalisation(result)),
            ("device", result["device"]),
        ],
    )


def _branches(branches: Result) -> str:
    """Accuracy of each branch over all rotations, shallowest first."""
    keys = ("joint_top1", "class_top1")
    joint, classes = (", ".join(f"{value:.2f}%" for value in branches[key]) for key in keys)
    return f"joint {joint}; class {classes}"


def normalisation(values: Result) -> str:
    """Mean and standard deviation in one line."""
    mean, std = ("/".join(f"{value:.4f}" for value in values[key]) for key in ("mean", "std"))
    return f"mean {mean}, std {std}"


def _accuracy(record: Result) -> str:
    return ", ".join(_split(split, record[split]) for split in ("val", "test") if record.get(split))


def _split(name: str, measured: Result) -> str:
    return f"{name} top-1 {percent(measured['top1'])}, top-5 {percent(measured['top5'])}"
