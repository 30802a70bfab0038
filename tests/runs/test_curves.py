"""Charts: axes that hold the values, points where they belong, gaps where nothing is."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.runs.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, axis, chart, epoch_marks

VALUES = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(st.lists(VALUES, min_size=1, max_size=8))
def test_an_axis_holds_its_values_in_few_round_steps(values: list[float]) -> None:
    low, high, step = axis(values)
    slack = step * 1e-6
    assert low - slack <= min(values) and max(values) <= high + slack
    assert 1 <= round((high - low) / step) <= 7
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-6


def test_an_axis_of_percentages_has_the_marks_people_expect() -> None:
    assert axis([12.0, 96.5]) == pytest.approx((0, 100, 20))
    assert axis([71.0, 89.0]) == pytest.approx((70, 90, 5))
    assert axis([3.0, 3.0])[0] < 3 < axis([3.0, 3.0])[1]


@given(st.integers(1, 2000))
def test_epoch_marks_begin_and_end_with_the_run(count: int) -> None:
    marks = epoch_marks(count)
    assert marks[0] == 1 and marks[-1] == count
    assert marks == sorted(set(marks)) and len(marks) <= 8


def polylines(html: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(float(part) for part in point.split(",")) for point in points.split()]
        for points in re.findall(r'<polyline [^>]*points="([^"]*)"', html)
    ]


def test_points_lie_where_their_values_are() -> None:
    (points,) = polylines(chart("t", [Line("a", [0.0, 25.0, 100.0])], "%"))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    expected = [(LEFT + x * width, TOP + (1 - y) * height) for x, y in ((0, 0), (0.5, 0.25), (1, 1))]
    assert points == [pytest.approx(point, abs=0.06) for point in expected]


def test_what_is_not_finite_leaves_a_gap() -> None:
    html = chart("t", [Line("a", [1.0, 2.0, math.nan, None, math.inf, 3.0, 4.0, None, 5.0])], "")
    assert [len(points) for points in polylines(html)] == [2, 2]
    assert html.count("<circle") == 1
    assert not re.search(r'(points|cx|cy|y1)="[^"]*(nan|inf|None)', html)


def test_lines_without_values_are_left_out_and_an_empty_chart_is_nothing() -> None:
    assert chart("t", [Line("a", []), Line("b", [None, math.nan])], "") == ""
    html = chart("t", [Line("empty", [None, None]), Line("full", [1.0, 2.0])], "")
    assert "full" in html and "empty" not in html


def test_faint_lines_share_the_legend_entry_and_colour_of_their_name() -> None:
    lines = [Line("a", [1.0, 2.0]), Line("b", [2.0, 3.0]), Line("b", [2.0, 4.0], faint=True)]
    html = chart("t", lines, "")
    assert html.count("<li>") == 2
    assert re.findall(r'<polyline class="([^"]*)"', html) == ["c1 faint", "c0", "c1"]


def test_one_epoch_is_a_point() -> None:
    assert chart("t", [Line("a", [3.0])], "").count("<circle") == 1
