"""Line charts as inline SVG: no script, no font, no library; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 36
COLOURS = 8
DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Lines of one chart also differ in their dashes, for readers who can't tell the colours apart."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: For the legend; lines after the first of the same name share its colour and legend entry.
        values: One value an epoch; None, NaN and infinities leave a gap.
        faint: Draw it thin, behind the others.
    """

    name: str
    values: Sequence[float | None]
    faint: bool = False


def chart(title: str, lines: Sequence[Line], unit: str) -> str:
    """An HTML figure with the lines over epochs 1, 2, ... and a legend.

    Args:
        title: Caption.
        lines: Curves; those without any finite value are left out.
        unit: What the vertical axis counts, e.g. "%".

    Returns:
        HTML, or the empty string when there is nothing to draw.
    """
    drawn = [line for line in lines if _finite(line.values)]
    if not drawn:
        return ""
    count = max(len(line.values) for line in drawn)
    low, high, step = axis([value for line in drawn for value in _finite(line.values)])
    names = list(dict.fromkeys(line.name for line in drawn))
    grid = "".join(_grid_line(low + i * step, low, high, step) for i in range(round((high - low) / step) + 1))
    epochs = "".join(
        f'<text x="{_x(epoch - 1, count):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{epoch}</text>'
        for epoch in epoch_marks(count)
    )
    curves = "".join(
        _curve(line, names.index(line.name), count, low, high)
        for line in sorted(drawn, key=lambda line: not line.faint)
    )
    summaries = [_summary(line) for line in drawn if not line.faint]
    described = escape(" ".join([f"{title}, over {count} epochs.", *summaries]))
    legend = "".join(_legend(name, place) for place, name in enumerate(names))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">{grid}{epochs}'
        f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">epoch</text>'
        f'<text x="4" y="{TOP - 1}" dominant-baseline="hanging">{escape(unit)}</text>{curves}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def axis(values: Sequence[float]) -> tuple[float, float, float]:
    """Bottom, top and spacing of an axis that holds ``values``; spaced 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def epoch_marks(count: int) -> list[int]:
    """The epochs, counted from 1, marked on an axis of ``count``: the first, round ones, the last."""
    if count <= 6:
        return list(range(1, count + 1))
    step = axis([0, count])[2]
    inner = [round(i * step) for i in range(1, math.ceil(count / step))]
    return [1, *(epoch for epoch in inner if epoch - 1 > step / 3 and count - epoch > step / 3), count]


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _x(place: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (place / (count - 1) if count > 1 else 0.5)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def _grid_line(value: float, low: float, high: float, step: float) -> str:
    y = _y(value, low, high)
    shown = 0.0 if abs(value) < step / 2 else value
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{shown:.4g}</text>'
    )


def _curve(line: Line, place: int, count: int, low: float, high: float) -> str:
    dash = DASHES[place % len(DASHES)]
    style = f'class="c{place % COLOURS}{" faint" if line.faint else ""}"' + (
        f' stroke-dasharray="{dash}"' if dash and not line.faint else ""
    )
    parts: list[list[str]] = [[]]
    for epoch, value in enumerate(line.values):
        if value is None or not math.isfinite(value):
            parts.append([])
        else:
            parts[-1].append(f"{_x(epoch, count):.1f},{_y(value, low, high):.1f}")
    drawn = ""
    for points in parts:
        if len(points) == 1:  # a line of one point would not be seen
            x, y = points[0].split(",")
            drawn += f'<circle {style} cx="{x}" cy="{y}" r="2.5"/>'
        elif points:
            drawn += f'<polyline {style} points="{" ".join(points)}"/>'
    return drawn


def _summary(line: Line) -> str:
    seen = _finite(line.values)
    return f"{line.name}: from {seen[0]:.4g} to {seen[-1]:.4g}."


def _legend(name: str, place: int) -> str:
    dash = DASHES[place % len(DASHES)]
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        '<li><svg viewBox="0 0 28 8" width="28" height="8" aria-hidden="true">'
        f'<line class="c{place % COLOURS}"{pattern} x1="0" x2="28" y1="4" y2="4"/></svg> {escape(name)}</li>'
    )
