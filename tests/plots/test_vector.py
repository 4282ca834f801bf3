"""Marks as SVG: what widgets draw."""

import math
import re

from dne_lab.plots.marks import Axis, Bars, Level, Panel, Points
from dne_lab.plots.style import Style
from dne_lab.plots.vector import chart, ticks

LOOK = Style("#0072b2", "o", "circle")


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(26.1, 35.2) == [28, 30, 32, 34]
    assert ticks(0.001, 0.0042) == [0.001, 0.002, 0.003, 0.004]
    assert ticks(3, 3) == [3]


def test_a_chart_without_a_point_is_still_a_chart() -> None:
    made = chart(Panel([], title="nothing yet"))
    assert made.startswith("<svg") and made.endswith("</svg>") and "nothing yet" in made


def test_points_stand_where_their_numbers_are_and_say_them() -> None:
    """Equal steps are equal distances, up is more, what is missing is left out, names are letters and no tags."""
    line = Points("a < b", [1, 2, 3], [10.0, 20.0, math.nan], LOOK, "--", filled=False)
    made = chart(Panel([line], Axis("epoch"), Axis("loss")))
    places = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', made)
    (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y in places)
    assert x2 > x1 and y2 < y1 and "a &lt; b, epoch: 2, loss: 20<" in made and made.count("<polyline") == 1
    assert 'fill-opacity="0"' in made and 'stroke-dasharray="6 4"' in made


def test_bars_are_as_long_as_their_numbers() -> None:
    y = Axis("", "category", ("cat", "dog"), reverse=True)
    bars = Bars("", [0, 1], [0.2, 0.4], ["#111111", "#222222"], across=True)
    made = chart(Panel([bars, Level("uniform", 0.3, upright=True)], Axis("softmax", low=0.0, high=0.5), y, "t"), row=20)
    found = re.findall(r'x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="[\d.]+" fill="(#\d+)"', made)
    (left, top, short, first), (_, below, long, _) = found
    assert first == "#111111" and float(long) == 2 * float(short) and float(below) > float(top)
    level = float(re.findall(r'<line x1="([\d.]+)"', made)[0])
    assert abs(level - float(left) - 1.5 * float(short)) < 0.2
    assert "dog, softmax: 0.4" in made and ">0.4<" in made and "uniform" in made
