"""What a figure draws, as data, once: panels of marks. `static` puts them on matplotlib axes, `interactive` into a
plotly figure.

Both renderers get the same numbers, the same order of categories, the same ends of the axes and the same colours, so
that what moves under the mouse is the picture that was there before.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dne_lab.plots.style import INK, Style

Kind = Literal["linear", "log", "category"]
MOST_LISTED = 30  # names in a legend
ROOM = 0.05  # of an axis, beyond the outermost mark
BARE, NUMBER = 0.06, 0.2  # inches: a cell of a matrix at least, and one with a number
BETWEEN, BESIDE = 0.25, 1.1  # inches: between matrices, and beside them for the colour bar and the title of y
TICKS = 13  # whole numbers beside an axis


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Args:
        title: with the unit; lines are told apart by a line break.
        kind: linear, log (base 10) or category; the places of a category axis are 0, 1, 2, ...
        names: of the places of a category axis, or of the ``ticks`` of another.
        ticks: where names or numbers stand; None: at every place of a category axis, else the renderer's choice.
        low, high: fixed ends; None: from the marks, with some room.
        least: the smallest distance between the ends, so that a tenth of a point does not fill the axis.
        reverse: from the top down, or from right to left.
        shown: whether there is anything beside the axis.
    """

    title: str = ""
    kind: Kind = "linear"
    names: tuple[str, ...] = ()
    ticks: tuple[float, ...] | None = None
    low: float | None = None
    high: float | None = None
    least: float = 0.0
    reverse: bool = False
    shown: bool = True

    def places(self, ends: tuple[float, float] = (1.0, 1.0)) -> tuple[float, ...] | None:
        """Where names or numbers stand between these ends, None where the renderer chooses."""
        if self.ticks is not None:
            return self.ticks
        if self.kind == "log":
            return _log_ticks(*ends)
        return tuple(map(float, range(len(self.names)))) if self.kind == "category" else None

    def texts(self, ends: tuple[float, float] = (1.0, 1.0)) -> list[str]:
        """What stands at `places`."""
        places = self.places(ends) or ()
        if self.kind == "category":
            return [self.names[int(place)] for place in places]
        return list(self.names) or [f"{place:g}" for place in places]

    def name_at(self, value: float) -> str:
        """The name at a place of a category axis, empty where there is none."""
        place = round(value) if self.kind == "category" and value == value else -1
        return self.names[place] if 0 <= place < len(self.names) else ""


@dataclass(frozen=True)
class Points:
    """Points of one series, joined by a line if ``dash`` names one.

    Args:
        name: in the legend and under the mouse.
        x, y: numbers; a place on a category axis is its number, perhaps with a shift.
        look: colour and marker.
        dash: as matplotlib names it: - -- : -. or empty.
        low, high: ends of the intervals, NaN where there is none.
        across: the intervals lie along x.
        band: intervals as a band, not as bars.
        filled: hollow if not.
        area: of the markers in square points, one for all or one each; 0: no markers.
        every: a marker at every so many points.
        notes: further words under the mouse, one each: seeds and record, a remark.
        tags: names written beside the marks, one each; empty: none.
        crossed: marks that are crossed out.
        listed: in the legend.
        width: of the line, in points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Style
    dash: str = ""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    across: bool = False
    band: bool = False
    filled: bool = True
    area: float | Sequence[float] = 25.0
    every: int = 1
    notes: Sequence[str] = ()
    tags: Sequence[str] = ()
    crossed: Sequence[bool] = ()
    listed: bool = True
    width: float = 1.4

    def areas(self) -> list[float]:
        """One for each mark."""
        return [float(a) for a in self.area] if isinstance(self.area, Sequence) else [float(self.area)] * len(self.x)

    @property
    def marked(self) -> bool:
        """Whether there are markers."""
        return bool(np.any(np.asarray(self.area, dtype=float) > 0))

    @property
    def dashed(self) -> bool:
        """Whether a marker would hide its dashes on a short line."""
        return self.marked and self.dash not in ("", "-")

    def note(self, place: int) -> str:
        """The further words of one mark."""
        return self.notes[place] if self.notes else ""


@dataclass(frozen=True)
class Bars:
    """Bars of one series: upright, or ``across`` to the right.

    Args:
        name: in the legend and under the mouse.
        places: middle of each bar on the axis that it stands on.
        lengths: from ``base`` on.
        colour: one for all, or one each.
        base: where each begins.
        thick: thickness in units of the axis.
        hatched: with lines across it.
        opacity: 1 is solid.
        low, high: ends of intervals in units of the axis (not from the base on), NaN where there is none.
        notes: further words under the mouse, one each.
        across: lying.
        listed: in the legend.
    """

    name: str
    places: Sequence[float]
    lengths: Sequence[float]
    colour: str | Sequence[str]
    base: Sequence[float] = ()
    thick: float = 0.6
    hatched: bool = False
    opacity: float = 1.0
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    notes: Sequence[str] = ()
    across: bool = False
    listed: bool = True

    def bases(self) -> list[float]:
        """Where each bar begins."""
        return [float(b) for b in self.base] if len(self.base) else [0.0] * len(self.places)

    def ends(self) -> list[float]:
        """Where each bar ends."""
        return [base + float(length) for base, length in zip(self.bases(), self.lengths, strict=True)]

    def note(self, place: int) -> str:
        """The further words of one bar."""
        return self.notes[place] if self.notes else ""


@dataclass(frozen=True)
class Spread:
    """Boxes of a distribution: quartiles, whiskers to 1.5 times their distance, the values beyond as points.

    Args:
        name: in the legend and under the mouse.
        places: middle of each box on the x axis.
        values: of each box.
        colour: of the boxes.
        thick: thickness in units of the axis.
        listed: in the legend.
    """

    name: str
    places: Sequence[float]
    values: Sequence[Sequence[float]]
    colour: str
    thick: float = 0.6
    listed: bool = True

    def quartiles(self, place: int) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of one box."""
        low, middle, high = np.quantile(np.asarray(self.values[place], dtype=float), (0.25, 0.5, 0.75))
        return float(low), float(middle), float(high)


@dataclass(frozen=True)
class Level:
    """A reference line across the whole panel, with an interval of half width ``half``."""

    name: str
    at: float
    colour: str = INK
    dash: str = "--"
    upright: bool = False
    half: float = math.nan
    note: str = ""
    listed: bool = True


@dataclass(frozen=True)
class Words:
    """A text in the panel, its middle at a place moved by ``shift`` points right and up."""

    text: str
    x: float
    y: float
    colour: str = INK
    size: float = 7.0
    shift: tuple[float, float] = (0.0, 0.0)
    beside: Literal["left", "center", "right"] = "center"


@dataclass(frozen=True)
class Cells:
    """A matrix with its colours; the middle of row i, column j is at x = j, y = i.

    Args:
        values: (rows, columns), NaN for no cell.
        title: of the colour bar.
        low, high: ends of the colour scale.
        scale: its name, the same in matplotlib and in plotly (lower case).
        digits: decimals of the numbers in the cells; None: none.
        notes: words under the mouse, one a cell; the value follows.
    """

    values: NDArray[np.float64]
    title: str
    low: float
    high: float
    scale: Literal["cividis", "rdbu_r"] = "cividis"
    digits: int | None = None
    notes: Sequence[Sequence[str]] = ()


Mark = Points | Bars | Spread | Level | Words | Cells


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its marks, those in front last."""

    marks: Sequence[Mark]
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    title: str = ""
    wide: float = 1.0  # beside other panels

    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The ends of x and y, the smaller first; of a log axis in its own units."""
        xs: list[float] = []
        ys: list[float] = []
        for mark in self.marks:
            _extent(mark, xs, ys)
        return _ends(self.x, xs), _ends(self.y, ys)


@dataclass(frozen=True)
class Drawing:
    """Panels in rows, and whether a legend names the series."""

    rows: Sequence[Sequence[Panel]]
    legend: bool = True

    @property
    def panels(self) -> list[Panel]:
        """All of them, row by row."""
        return [panel for row in self.rows for panel in row]

    def within(self, width: float) -> "Drawing":
        """Matrices in rows no wider than so many inches, so that what stands in their cells can be read; other panels
        stay where they are."""
        found = [[mark for mark in panel.marks if isinstance(mark, Cells)] for panel in self.panels]
        if not all(found) or not found:
            return self
        beside = BESIDE + max((0.07 * len(name) for row in self.rows for name in row[0].y.names), default=0.0)
        least = max(cells[0].values.shape[1] * (BARE if cells[0].digits is None else NUMBER) for cells in found)
        across = max(1, int((width - beside) / (least + BETWEEN)))
        if across >= max(map(len, self.rows)):
            return self
        x, y = self.rows[-1][0].x.title, self.rows[0][0].y.title
        rows: list[list[Panel]] = []
        for number, panel in enumerate(self.panels):
            if number % across == 0:
                rows.append([])
            below = number + across >= len(self.panels)  # nothing stands below it: titles of axes are said once
            axes = replace(panel.x, title=x if below else ""), replace(panel.y, title="" if number % across else y)
            rows[-1].append(replace(panel, x=axes[0], y=axes[1]))
        return replace(self, rows=rows)

    @property
    def dashed(self) -> bool:
        """Whether its legend has dashed lines with markers, which need longer handles to be told from solid ones."""
        return any(isinstance(mark, Points) and mark.dashed for _, mark in self.listed())

    def listed(self) -> list[tuple[str, Mark]]:
        """The legend: each name once, with the first mark of that name that is in it; of very many the last one says
        how many more there are."""
        found: dict[str, Mark] = {}
        for panel in self.panels if self.legend else []:
            for mark in panel.marks:
                if isinstance(mark, Points | Bars | Spread | Level) and mark.listed and mark.name:
                    found.setdefault(mark.name, mark)
        if len(found) <= MOST_LISTED:
            return list(found.items())
        rest = f"and {len(found) - MOST_LISTED + 1} more"
        return [*list(found.items())[: MOST_LISTED - 1], (rest, Points(rest, [], [], Style(INK, "", ""), area=0.0))]


def one(marks: Iterable[Mark], x: Axis, y: Axis, legend: bool = True) -> Drawing:
    """A drawing of one panel."""
    return Drawing([[Panel(list(marks), x, y)]], legend)


def around(middle: Iterable[float], half: Iterable[float]) -> dict[str, Any]:
    """The ends of intervals of these half widths, as `Points` and `Bars` take them."""
    at, width = np.asarray([*middle], dtype=float), np.asarray([*half], dtype=float)
    return {"low": (at - width).tolist(), "high": (at + width).tolist()}


def whole_ticks(numbers: Iterable[Any], most: int = TICKS) -> tuple[float, ...]:
    """Ticks at these whole numbers, thinned to at most ``most``, the last one among them."""
    found = sorted({float(n) for n in numbers if n == n})
    return tuple(found[:: -max(1, -(-len(found) // most))][::-1])


def logarithmic(values: Iterable[float], beyond: float) -> bool:
    """Whether positive values spread over more than this factor, so that an axis of theirs is logarithmic."""
    there = [value for value in values if value == value]
    return bool(there) and max(there) > beyond * min(there) > 0


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten, and 2 and 5 times them where there are less than two decades."""
    steps = (1, 2, 5) if high < 100 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = (float(f"{step}e{power}") for power in powers for step in steps)
    return tuple(tick for tick in found if low <= tick <= high)


# What is said under the mouse ---------------------------------------------------------------------------------------


def hover(mark: Points | Bars | Spread | Level, panel: Panel, i: int = 0) -> list[str]:
    """The lines about a point, bar, box or level: its series, its values with their interval, further words."""
    if isinstance(mark, Spread):
        low, middle, high = (_number(value) for value in mark.quartiles(i))
        value = f"{_plain(panel.y.title)}: median {middle} (quartiles {low} and {high})"
        return [mark.name, _value(panel.x, mark.places[i]), value, f"{len(mark.values[i])} values"]
    if isinstance(mark, Level):
        half = f" ± {_number(mark.half)} (95% interval)" if mark.half == mark.half else ""
        return [mark.name, f"{_plain((panel.x if mark.upright else panel.y).title)}: {_number(mark.at)}{half}"]
    if isinstance(mark, Bars):
        stands, along = (panel.y, panel.x) if mark.across else (panel.x, panel.y)
        lines = [
            _value(stands, mark.places[i]),
            f"{_plain(along.title)}: {_number(mark.lengths[i])}{_interval(mark, i)}",
        ]
    else:
        ends = ("", _interval(mark, i)) if not mark.across else (_interval(mark, i), "")
        lines = [_value(panel.x, mark.x[i]) + ends[0], _value(panel.y, mark.y[i]) + ends[1]]
    return list(filter(None, [mark.name, *lines, mark.note(i)]))


def _interval(mark: Points | Bars, i: int) -> str:
    if not len(mark.low) or not math.isfinite(mark.low[i]):
        return ""
    return f" (95% interval {_number(mark.low[i])} to {_number(mark.high[i])})"


def _value(axis: Axis, value: float) -> str:
    if axis.kind == "category":
        return axis.name_at(value).replace("\n", " ")
    if axis.ticks is not None and all(tick == round(tick) for tick in axis.ticks):
        value = round(value)  # of whole numbers; several marks at one stand side by side
    return f"{_plain(axis.title)}: {_number(value)}"


def _plain(title: str) -> str:
    return title.split("\n")[0]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}" if abs(value) < 10 else f"{value:,.2f}"


# Ends of the axes -------------------------------------------------------------------------------------------------


def _extent(mark: Mark, xs: list[float], ys: list[float]) -> None:
    """Adds what a mark needs of the axes."""
    if isinstance(mark, Points):
        xs += mark.x
        ys += mark.y
        (xs if mark.across else ys).extend([*mark.low, *mark.high])
    elif isinstance(mark, Bars):
        along, beside = (xs, ys) if mark.across else (ys, xs)
        along += [*mark.bases(), *mark.ends(), *mark.low, *mark.high]
        beside += [p + side * mark.thick / 2 for p in mark.places for side in (-1, 1)]
    elif isinstance(mark, Spread):
        ys += [v for values in mark.values for v in values]
        xs += [p + side * mark.thick / 2 for p in mark.places for side in (-1, 1)]
    elif isinstance(mark, Level):
        half = mark.half if mark.half == mark.half else 0.0
        (xs if mark.upright else ys).extend([mark.at - half, mark.at + half])
    elif isinstance(mark, Words):
        xs.append(mark.x)
        ys.append(mark.y)


def _ends(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    if axis.kind == "category":
        return -0.6 if axis.low is None else axis.low, len(axis.names) - 0.4 if axis.high is None else axis.high
    there = [float(v) for v in values if math.isfinite(v) and (axis.kind != "log" or v > 0)]
    low, high = (min(there), max(there)) if there else (0.0, 1.0)
    if axis.kind == "log":
        room = (high / low) ** ROOM if high > low else 2.0
        return axis.low or low / room, axis.high or high * room
    if high - low < axis.least:
        middle = (low + high) / 2
        low, high = middle - axis.least / 2, middle + axis.least / 2
    room = ROOM * (high - low) or 0.5
    return low - room if axis.low is None else axis.low, high + room if axis.high is None else axis.high
