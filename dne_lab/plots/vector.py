"""Marks as SVG: the third renderer beside `static` and `interactive`, for the charts of widgets, which change with
every key and stand on a page of any theme."""

import math
from collections.abc import Iterator
from html import escape

import numpy as np

from dne_lab.plots.marks import Axis, Bars, Cells, Level, Panel, Points, hover
from dne_lab.plots.style import INK as EDGE
from dne_lab.plots.style import edged

INK = "var(--jp-ui-font-color1, #222)"
TEXT = f'style="font: 12px sans-serif; fill: {INK}"'
DASHES = {"": "0 100", "-": "", "--": "6 4", ":": "2 3", "-.": "6 3 2 3"}
ABOVE, BELOW, LETTER, LINE = 24, 36, 6.6, 18  # pixels: above and below the panel, a letter, a line of the legend
SIZE, MANY = (430, 240), 30  # of a panel without rows; from so many points on they are small


def opening(width: float, height: float, title: str) -> str:
    """The opening tag of a drawing of so many pixels; ``title`` is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(title)}" style="overflow: visible; display: block">'
    )


def words(x: float, y: float, text: str, anchor: str = "start", size: float = 12) -> str:
    """A text whose start, middle or end is at x."""
    style = f'style="font: {size:g}px sans-serif; fill: {INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(text)}</text>'


def chart(panel: Panel, row: float = 0.0, size: tuple[int, int] = SIZE) -> str:
    """A panel of `Points`, lying `Bars`, `Level` and `Cells` marks on linear and category axes; every mark says its
    numbers.

    Args:
        row: pixels of each place of a category axis y; its names stand at the left, and at the right the numbers of the
            last bars. Cells are that wide, too.
        size: width and height of a panel without rows, with what stands beside it.
    """
    at = _Places(panel, row, size)
    parts = [opening(at.width, at.foot + LINE * len(at.listed), panel.title or panel.y.title)]
    parts.append(words(0, 13, panel.title or panel.y.title))
    parts += _axes(panel, at)
    bars = [mark for mark in panel.marks if isinstance(mark, Bars)]
    for mark in panel.marks:
        if isinstance(mark, Points):
            parts += _points(mark, panel, at)
        elif isinstance(mark, Bars):
            parts += _bars(mark, panel, at, numbered=mark is bars[-1])
        elif isinstance(mark, Cells):
            parts += _cells(mark, panel, at)
        elif isinstance(mark, Level):
            parts.append(_level(mark, at))
    for place, listed in enumerate(at.listed):
        y = at.foot + LINE * place + 8
        if isinstance(listed, Points):
            parts.append(f'<line x1="{at.left}" x2="{at.left + 32}" y1="{y}" y2="{y}" {_pen(listed)}/>')
        else:
            parts.append(
                f'<rect x="{at.left + 11}" y="{y - 5}" width="10" height="10" fill="{listed.colour}" '
                f'stroke="{EDGE}" stroke-width="0.5"/>'
            )
        parts.append(words(at.left + 38, y + 4, listed.name))
    return "".join([*parts, "</svg>"])


class _Places:
    """Where the panel lies in the drawing, and its values in it, in pixels."""

    def __init__(self, panel: Panel, row: float, size: tuple[int, int]) -> None:
        self.listed = [m for m in panel.marks if isinstance(m, Points | Bars) and m.listed and m.name]
        longest = max(map(len, panel.y.names), default=0)
        self.left = 8 + LETTER * longest if row else 52.0
        self.right = self.left + 220 if row else size[0] - 16.0
        self.width = self.right + (48 if row else 16)
        self.bottom = ABOVE + row * len(panel.y.names) if row else size[1] - BELOW
        levels = any(isinstance(mark, Level) for mark in panel.marks)
        self.foot = self.bottom + (BELOW if panel.x.shown else 20 if levels else 4)  # where the legend begins
        self.x, self.y = panel.ends()
        if row:
            self.y = (-0.5, len(panel.y.names) - 0.5)
        self.reverse = panel.y.reverse
        if any(isinstance(mark, Cells) for mark in panel.marks):
            self.x, self.reverse = (-0.5, len(panel.x.names) - 0.5), True
            self.right = self.left + row * len(panel.x.names)
            self.width = max(self.right, self.left + LETTER * len(panel.x.title)) + 16

    def across(self, value: float) -> float:
        low, high = self.x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def up(self, value: float) -> float:
        low, high = self.y
        share = (value - low) / (high - low)
        return ABOVE + (share if self.reverse else 1 - share) * (self.bottom - ABOVE)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(panel: Panel, at: _Places) -> Iterator[str]:
    if panel.y.kind == "category":
        size = min(12.0, (at.bottom - ABOVE) / max(1, len(panel.y.names)) - 1)
        for place, name in enumerate(panel.y.names):
            yield words(at.left - 6, at.up(place) + 4, name, "end", size)
    else:
        for value in _ticks(panel.y, at.y):
            y = at.up(value)
            yield f'<line x1="{at.left - 8:.1f}" x2="{at.right + 8:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" '
            yield 'stroke-opacity="0.15"/>' + words(at.left - 13, y + 4, f"{value:g}", "end")
    if panel.x.shown:
        named = panel.x.texts(at.x) if panel.x.names else None
        places = _ticks(panel.x, at.x)
        for value, text in zip(places, named or (f"{place:g}" for place in places), strict=True):
            yield words(at.across(value), at.bottom + 15, text, "middle")
        yield words((at.left + at.right) / 2, at.bottom + 31, panel.x.title, "middle")


def _ticks(axis: Axis, ends: tuple[float, float]) -> list[float]:
    found = axis.places(ends)
    return ticks(*ends) if found is None else list(found)


def _pen(mark: Points, colour: str = "", width: int = 2) -> str:
    return f'stroke="{colour or mark.look.colour}" stroke-width="{width}" stroke-dasharray="{DASHES[mark.dash]}"'


def _points(mark: Points, panel: Panel, at: _Places) -> Iterator[str]:
    """A line, and on it a circle for each point, hollow ones with something for the mouse inside."""
    path = " ".join(f"{at.across(x):.1f},{at.up(y):.1f}" for x, y in zip(mark.x, mark.y, strict=True) if y == y)
    if mark.dash and edged(mark.look.colour):
        yield f'<polyline points="{path}" fill="none" {_pen(mark, EDGE, 4)}/>'
    yield f'<polyline points="{path}" fill="none" {_pen(mark)}/>'
    if not mark.band:
        for x, low, high in zip(mark.x, mark.low, mark.high, strict=bool(len(mark.low))):
            if math.isfinite(low):
                ends = f'y1="{at.up(low):.1f}" y2="{at.up(high):.1f}"'
                spot, pen = f"{at.across(x):.1f}", f'stroke="{mark.look.colour}" stroke-width="2"'
                yield f'<line class="dne-interval" x1="{spot}" x2="{spot}" {ends} {pen}/>'
    radius, ink = 3.5 if len(mark.x) <= MANY else 1.5, mark.look.colour
    edge = f' stroke="{EDGE}"' if edged(ink) else ""
    fill = f'fill="{ink}"{edge}' if mark.filled else f'fill="{ink}" fill-opacity="0" stroke="{ink}"'
    for i, (x, y) in enumerate(zip(mark.x, mark.y, strict=True) if mark.marked else ()):
        if y == y:
            text = escape(", ".join(hover(mark, panel, i)))
            place = f'cx="{at.across(x):.1f}" cy="{at.up(y):.1f}"'
            yield f'<circle {place} r="{radius}" {fill}><title>{text}</title></circle>'


def _level(mark: Level, at: _Places) -> str:
    """A dashed line; an upright one has its name below, a lying one above its right end."""
    if mark.upright:
        x, y = at.across(mark.at), at.bottom
        ends, text = f'x1="{x:.1f}" x2="{x:.1f}" y1="{ABOVE - 2}" y2="{y}"', words(x, y + 15, mark.name, "middle")
    else:
        y = at.up(mark.at)
        ends = f'x1="{at.left - 8:.1f}" x2="{at.right + 8:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        text = words(at.right + 8, y - 4, mark.name, "end", 11)
    return f'<line {ends} stroke="{INK}" stroke-dasharray="{DASHES[mark.dash]}"/>{text}'


def _cells(mark: Cells, panel: Panel, at: _Places) -> Iterator[str]:
    """Squares in the colours of a scale with their numbers; each says its words and its value."""
    from matplotlib import colormaps

    table = colormaps["RdBu_r" if mark.scale == "rdbu_r" else mark.scale]
    side = at.across(1.0) - at.across(0.0)
    for i, j in np.argwhere(~np.isnan(mark.values)):
        value = float(mark.values[i, j])
        rgb = np.asarray(table((value - mark.low) / (mark.high - mark.low)))[:3]
        x, y = at.across(j) - side / 2, at.up(i) - side / 2
        note = (mark.notes[i][j] + ", " if mark.notes and mark.notes[i][j] else "").replace("<br>", ", ")
        yield f"<g><title>{escape(f'{note}{mark.title}: {value:.4g}')}</title>"
        yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
        yield f'fill="#{"".join(f"{round(255 * part):02x}" for part in rgb)}"/>'
        if mark.digits is not None:
            ink = "white" if rgb @ (0.299, 0.587, 0.114) < 0.5 else "black"
            yield f'<text x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle" '
            yield f'style="font: 11px sans-serif; fill: {ink}">{value:.{mark.digits}f}</text>'
        yield "</g>"


def _bars(mark: Bars, panel: Panel, at: _Places, numbered: bool) -> Iterator[str]:
    """Lying bars; the whole width says what there is under the mouse."""
    start = at.across(0.0)
    for i, (place, length) in enumerate(zip(mark.places, mark.lengths, strict=True)):
        top, end = sorted((at.up(place - mark.thick / 2), at.up(place + mark.thick / 2)))
        ink = mark.colour if isinstance(mark.colour, str) else mark.colour[i]
        wide = max(0.5, at.across(float(length)) - start)
        yield f"<g><title>{escape(', '.join(hover(mark, panel, i)))}</title>"
        yield f'<rect x="0" y="{top:.1f}" width="{at.width:.0f}" height="{end - top:.1f}" fill="transparent"/>'
        yield f'<rect x="{start:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{end - top:.1f}" fill="{ink}" '
        yield f'stroke="{EDGE}" stroke-width="{1 if edged(ink) else 0.5}"/>'
        if numbered:
            size = min(12.0, (at.bottom - ABOVE) / max(1, len(panel.y.names)) - 1)
            yield words(at.right + 6, at.up(round(place)) + 4, f"{float(length):.3g}", size=size)
        yield "</g>"
