"""One HTML page for a run or for several: complete in itself, without scripts or anything fetched."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.files import write_text
from tutelage.runs.curves import Line, chart
from tutelage.runs.record import RunFolder
from tutelage.runs.tables import NUMBERS_FROM, Row, cells, summarise

STYLE = """
:root{color-scheme:light dark;--ground:#fdfdfc;--ink:#1d2329;--soft:#5a6572;--rule:#d9dde2;--panel:#f3f4f6;
--c0:#0b62b8;--c1:#b34700;--c2:#147a3d;--c3:#8a2da5;--c4:#a80f3c;--c5:#5f5a00;--c6:#00737c;--c7:#555}
@media(prefers-color-scheme:dark){:root{--ground:#14181c;--ink:#e8ebee;--soft:#a3adb8;--rule:#39424c;
--panel:#1e242a;--c0:#6db3f8;--c1:#f5a05a;--c2:#6fd195;--c3:#d59bec;--c4:#f78da7;--c5:#d9d04f;--c6:#5fd3dc;
--c7:#bbb}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--ground);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem}
.note{border-left:.25rem solid var(--c0);padding-left:.75rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;overflow-wrap:normal}
caption{text-align:left;color:var(--soft);padding-bottom:.25rem}
th,td{padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
.facts th{font-weight:400;color:var(--soft);white-space:nowrap}
.facts td{overflow-wrap:anywhere}
.n{text-align:right;white-space:nowrap}
pre{background:var(--panel);padding:.75rem;overflow-x:auto;font-size:.85rem}
details{border-top:1px solid var(--rule);padding:.5rem 0}summary{cursor:pointer;padding:.25rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem}
figure{margin:0}figcaption{font-weight:600}svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px}
.legend{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.9rem}
.legend svg{display:inline-block;width:28px}
polyline,line,circle{fill:none;stroke-width:2}.faint{stroke-width:1;opacity:.45}
.grid{stroke:var(--rule);stroke-width:1}
""" + "".join(f".c{i}{{stroke:var(--c{i})}}circle.c{i}{{fill:var(--c{i})}}\n" for i in range(8))

SPLITS = (
    ("train", "training"),
    ("val", "validation"),
    ("test", "test"),
    ("ema_test", "test, moving average"),
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_page(
    path: str | Path, folders: Iterable[RunFolder | str | Path], title: str | None = None, note: str = ""
) -> Path:
    """Write the page of one run or of several that follow the same protocol.

    Args:
        path: The HTML file to write, atomically.
        folders: The runs. A single one may be unfinished; it then has curves and facts but no table.
        title: Headline; None names the run or counts them.
        note: A sentence to put under the headline.

    Returns:
        ``path``.

    Raises:
        UserError: A folder holds no run or a damaged one, or several runs can't be in one table.
        TutelageError: The file can't be written.
    """
    runs = [run if isinstance(run, RunFolder) else RunFolder.open(Path(run)) for run in folders]
    if not runs:
        raise UserError("there is no run to make a page of; give one or more run folders")
    unfinished = len(runs) == 1 and runs[0].facts().get("status") != "finished"
    rows = [] if unfinished else summarise(runs)
    heading = title or (f"Run {_name(runs[0])}" if len(runs) == 1 else f"{len(runs)} runs")
    body = [f"<h1>{escape(heading)}</h1>"]
    if note:
        body.append(f'<p class="note">{escape(note)}</p>')
    if rows:
        body.append(_summary(rows))
    if len(runs) > 1:
        body.append(f'<div class="charts">{_comparison(rows)}</div><h2>The runs</h2>')
    body += [_run(run, open_=len(runs) == 1) for run in runs]
    write_text(Path(path), _document(heading, "\n".join(body)))
    return Path(path)


def _document(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _summary(rows: Sequence[Row]) -> str:
    headings, body = cells(rows)
    caption = (
        "Top-1 accuracy on the test images in percent: mean ± sample standard deviation over the seeds, "
        "where there are several. The last epoch is the result; the best one is shown because papers do so."
    )
    return "<h2>Summary</h2>" + _table(caption, headings, body, NUMBERS_FROM)


def _comparison(rows: Sequence[Row]) -> str:
    """Test accuracy over epochs: a line a row for the mean, a faint one a seed."""
    lines = []
    for row, label in zip(rows, _labels(rows), strict=True):
        seeds = [_values(RunFolder(Path(run)).metrics(), "test", "top1") for run in row.runs]
        means = [_mean(values) for values in zip(*seeds, strict=False)]
        lines.append(Line(label, means))
        if len(seeds) > 1:
            lines += [Line(label, values, faint=True) for values in seeds]
    return chart("Test top-1: mean over seeds, each seed faint", lines, "%")


def _labels(rows: Sequence[Row]) -> list[str]:
    several = len({row.student for row in rows}) > 1
    return [
        " ".join(part for part in (row.student if several else "", row.method, row.variant) if part)
        for row in rows
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    seen = [value for value in values if value is not None]
    return statistics.fmean(seen) if len(seen) == len(values) else None


def _run(run: RunFolder, open_: bool) -> str:
    """A run's curves, facts, numbers and recipe.

    Raises:
        UserError: Its record lacks what every record has.
    """
    try:
        return _run_section(run, open_)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"the record in {run.path} is damaged ({type(error).__name__}: {error}); "
            "restore run.json and metrics.jsonl, or leave the run out"
        ) from error


def _run_section(run: RunFolder, open_: bool) -> str:
    facts, metrics = run.facts(), run.metrics()
    recipe = run.recipe.read_text(encoding="utf-8", errors="replace")
    task = "train" if facts.get("task") == "train" else "distill"
    parts = [
        f'<div class="charts">{_charts(metrics)}</div>',
        _facts_table(run, facts),
        f"<details><summary>Numbers of every epoch</summary>{_epochs(metrics)}</details>",
        "<details><summary>Recipe, and the command that repeats the run</summary>"
        f"<pre>tutelage {task} --recipe {escape(_name(run))}/recipe.yaml --out NEW_FOLDER</pre>"
        f"<pre>{escape(recipe)}</pre></details>",
    ]
    headline = f"{_name(run)}: {facts.get('method')}, seed {facts.get('seed')}, {_outcome(facts)}"
    return (
        f"<details{' open' if open_ else ''}><summary><strong>{escape(headline)}</strong></summary>\n"
        + "\n".join(parts)
        + "</details>"
    )


def _outcome(facts: Mapping[str, Any]) -> str:
    if facts.get("status") != "finished":
        return str(facts.get("status"))
    return f"{_percent(facts['summary']['last']['test']['top1'])} after the last epoch"


def _charts(metrics: Sequence[dict[str, Any]]) -> str:
    accuracy = [Line(name, _values(metrics, split, "top1")) for split, name in SPLITS]
    terms = list(dict.fromkeys(term for epoch in metrics for term in epoch["train"]["terms"]))
    losses = [Line("sum", _values(metrics, "train", "loss"))] if len(terms) != 1 else []
    losses += [Line(term, [epoch["train"]["terms"].get(term) for epoch in metrics]) for term in terms]
    rate = [Line("learning rate", [epoch["lr"] for epoch in metrics])]
    return (
        chart("Top-1 accuracy", accuracy, "%")
        + chart("Training loss by term, as weighted", losses, "")
        + chart("Learning rate at the end of the epoch", rate, "")
    )


def _values(metrics: Sequence[dict[str, Any]], split: str, key: str) -> list[float | None]:
    return [(epoch.get(split) or {}).get(key) for epoch in metrics]


def _facts_table(run: RunFolder, facts: Mapping[str, Any]) -> str:
    pairs: list[tuple[str, Any]] = [
        ("folder", _name(run)),
        ("status", facts.get("status")),
        ("stopped because", facts.get("reason")),
        ("started", facts.get("created")),
        ("recipe hash", facts.get("recipe_hash")),
        *((f"protocol: {_spoken(key)}", value) for key, value in (facts.get("protocol") or {}).items()),
        *_network_facts("student", facts.get("student")),
        *_network_facts("teacher", facts.get("teacher")),
        *((f"normalisation: {key}", value) for key, value in (facts.get("normalisation") or {}).items()),
        ("number format", facts.get("amp")),
        ("compiled", facts.get("compiled")),
        *((_spoken(key), value) for key, value in (facts.get("hardware") or {}).items()),
        ("versions", ", ".join(f"{name} {value}" for name, value in (facts.get("versions") or {}).items())),
    ]
    summary = facts.get("summary") or {}
    pairs += [(_spoken(key), summary.get(key)) for key in ("training_seconds", "images_per_second")]
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_shown(value))}</td></tr>'
        for name, value in pairs
        if value is not None
    )
    return (
        f'<div class="wide"><table class="facts"><caption>Facts</caption><tbody>{lines}</tbody></table></div>'
    )


def _network_facts(role: str, network: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    if not network:
        return []
    pairs = [
        (f"{role}: {_spoken(key)}", value) for key, value in network.items() if not isinstance(value, dict)
    ]
    if network.get("test"):
        pairs.append((f"{role}: test top-1 when the run began", _percent(network["test"]["top1"])))
    return pairs


def _epochs(metrics: Sequence[dict[str, Any]]) -> str:
    splits = [(split, name) for split, name in SPLITS if any(epoch.get(split) for epoch in metrics)]
    headings = ["epoch", "phase", "learning rate", "training loss"]
    headings += [f"{name} {key}" for _, name in splits for key in ("top-1", "top-5")]
    headings += ["seconds", "images/s"]
    body = []
    for number, epoch in enumerate(metrics):
        line = [str(number + 1), str(epoch["phase"]), f"{epoch['lr']:.4g}", f"{epoch['train']['loss']:.4f}"]
        for split, _ in splits:
            part = epoch.get(split) or {}
            line += [f"{part[key]:.2f}" if key in part else "-" for key in ("top1", "top5")]
        body.append([*line, f"{epoch['seconds']:.1f}", f"{epoch['images_per_second']:,.0f}"])
    return _table("Accuracies in percent", headings, body, 2)


def _table(caption: str, headings: Sequence[str], body: Sequence[Sequence[str]], numbers_from: int) -> str:
    """A table whose columns from ``numbers_from`` on are flush right and whose first names the row."""
    marks = ["" if place < numbers_from else ' class="n"' for place in range(len(headings))]
    head = "".join(
        f'<th scope="col"{mark}>{escape(heading)}</th>' for heading, mark in zip(headings, marks, strict=True)
    )
    lines = []
    for first, *rest in body:
        row = "".join(f"<td{mark}>{escape(cell)}</td>" for cell, mark in zip(rest, marks[1:], strict=True))
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{row}</tr>')
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _name(run: RunFolder) -> str:
    """The folder's own name; the way to it is nobody else's business."""
    return run.path.resolve().name


def _spoken(key: str) -> str:
    return str(key).replace("_", " ")


def _percent(value: float) -> str:
    return f"{value:.2f}%"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ", ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
