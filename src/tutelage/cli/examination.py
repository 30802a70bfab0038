"""What the doctor found, for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from tutelage.cli.console import facts, number, percent, table
from tutelage.cli.views import normalisation

Result = Mapping[str, Any]


def examination(console: Console, result: Result) -> None:
    """Networks, what is tapped and added, loss terms, cost, and what to worry about."""
    for role, network in result["networks"].items():
        facts(console, [(role, network["name"]), *_network(role, network)])
        console.print()
    _print_method(console, result)
    if any(network["taps"]["stages"] for network in result["networks"].values()):
        _print_taps(console, result["networks"], result["cost"]["teacher_backward"])
    if result["parts"]:
        _print_parts(console, result["parts"])
    if result["terms"]:
        rows = [
            (name, term["value"], f"{term['gradient_share']:.1%}") for name, term in result["terms"].items()
        ]
        table(console, ("term", "value", "share of gradient"), rows)
        console.print()
    _print_cost(console, result["cost"], result["estimate"])
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    if not result["warnings"]:
        console.print("no warnings")


def _network(role: str, network: Result) -> list[tuple[str, Any]]:
    test, size, gets = network.get("test"), network["input_size"], network["image_size"]
    own = network["own_normalisation"]
    made_for = "" if size is None or size == gets else f", made for {size[0]}x{size[1]}"
    return [
        ("parameters", number(network["parameters"])),
        ("MACs", number(network["macs"])),
        ("images", f"{gets[0]}x{gets[1]}{made_for}"),
        ("own normalisation", own and normalisation(own)),
        ("weights", "random" if network["random"] and role == "teacher" else None),
        *(("", note) for note in network["notes"]),
        ("hands over", _handed_over(network["taps"])),
        ("test top-1", test and percent(test["top1"])),
        ("expected top-1", percent(network.get("expected_top1"))),
    ]


def _handed_over(taps: Result) -> str:
    """What a network hands over, in words."""
    found = ["logits"]
    if taps["pooled"]:
        found.append(f"pooled vector of {taps['pooled'][0]}")
    if taps["stem"]:
        found.append(f"stem {_shape(taps['stem'])}")
    if taps["tapped"]:
        found.append(f"{len(taps['stages'])} stages")
    if taps["prefix_tokens"]:
        found.append(f"{taps['prefix_tokens']} tokens before the patches with each stage")
    if taps["branches"]:
        found.append(f"branches of {', '.join(map(str, taps['branches']))}")
    return ", ".join(found)


def _print_method(console: Console, result: Result) -> None:
    method = result["method"]
    data = result["data"]
    facts(
        console,
        [
            ("method", method["name"]),
            ("trained parts", f"{number(result['cost']['parts_parameters'])} parameters beside the student"),
            ("state", f"{number(method['state_values'])} values"),
            ("data", f"{data['name']}, {number(data['train_images'])} training images"),
            ("normalisation", normalisation(result["normalisation"])),
        ],
    )
    console.print()


def _print_taps(console: Console, networks: Result, prompted: bool) -> None:
    """A row for each stage, the networks side by side, and where the teacher's prompts stand."""
    columns = ["stage"]
    for role in networks:
        columns += [f"{role}'s module", "gives"]
    rows = []
    for place in range(max(len(network["taps"]["stages"]) for network in networks.values())):
        row: list[Any] = [place + 1]
        for network in networks.values():
            row += _tap(network["taps"]["stages"][place : place + 1])
        if prompted:
            stage = networks["teacher"]["taps"]["stages"][place]
            row += [stage["entrance"], _shape(stage["input"])]
        rows.append(row)
    table(console, [*columns, *(["prompt before", "receives"] if prompted else [])], rows)
    console.print()


def _tap(found: Sequence[Result]) -> list[str]:
    if not found:
        return ["-", "-"]
    stage = found[0]
    gives = _shape(stage["shape"]) if "shape" in stage else f"{stage['channels']} at 1/{stage['reduction']}"
    return [stage["module"], gives]


def _print_parts(console: Console, parts: Sequence[Result]) -> None:
    """A row for each part, and one for the sum of a list of parts and of them all."""
    groups: dict[str, list[Result]] = {}
    for part in parts:
        groups.setdefault(part["name"].rpartition(".")[0] or part["name"], []).append(part)
    rows = []
    for name, members in groups.items():
        rows += [_part(member) for member in members]
        if len(members) > 1:
            rows.append(_sum(f"{name}: {len(members)}", members))
    if len(groups) > 1:
        rows.append(_sum("all", parts))
    table(console, ("part", "is a", "receives", "gives", "parameters", "MACs"), rows)
    console.print()


def _part(part: Result) -> tuple[Any, ...]:
    through = (_shapes(part["inputs"]), _shapes(part["outputs"]))
    return (part["name"], part["kind"], *through, part["parameters"], part["macs"])


def _sum(name: str, parts: Iterable[Result]) -> tuple[Any, ...]:
    totals = (sum(part[key] for part in parts) for key in ("parameters", "macs"))
    return (name, "", "", "", *totals)


def _print_cost(console: Console, cost: Result, estimate: Result | None) -> None:
    passes = {0: None, 1: "one a step"}.get(cost["teacher_passes"], "two a step, one of them with gradients")
    measured = (
        [
            (
                "step",
                f"{estimate['step_seconds']:.3f} s, {number(estimate['images_per_second'])} images/s",
            ),
            ("epoch", f"{number(estimate['steps_per_epoch'])} steps"),
            ("whole run", f"{estimate['training_hours']:.2f} hours"),
            ("memory", f"{number(estimate['peak_memory_mib'])} MiB"),
            ("measured on", estimate["note"]),
        ]
        if estimate
        else []
    )
    facts(
        console,
        [
            ("MACs for an image", _macs(cost)),
            ("teacher's passes", passes),
            ("teacher's answers", _answers(cost["answers"])),
            *measured,
        ],
    )
    console.print()


def _answers(table: Result | None) -> str | None:
    if table is None:
        return None
    return f"{table['known']:.0%} looked up in a table of {table['bytes'] / 2**30:.3g} GiB ({table['kept']})"


def _macs(cost: Result) -> str:
    kinds = {"student": cost["student_macs"], "teacher": cost["teacher_macs"], "parts": cost["parts_macs"]}
    return ", ".join(f"{name} {number(value)}" for name, value in kinds.items() if value)


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    """Shapes in a row; many alike as one with their number."""
    alike = list(dict.fromkeys(map(_shape, shapes)))
    if len(shapes) > 1 and len(alike) == 1:
        return f"{len(shapes)} of {alike[0]}"
    return ", ".join(map(_shape, shapes)) or "-"


def _shape(shape: Sequence[int] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape))
