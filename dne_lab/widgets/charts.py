"""Lines and bars over runs and epochs as HTML with SVG, from numbers alone."""

import math
from collections.abc import Sequence
from html import escape

from dne_lab.plots.runs import Series
from dne_lab.widgets.drawing import INK, TEXT, number

SVG_DASHES = {"-": "", "--": "6 4", ":": "2 3", "-.": "6 3 2 3"}
LEFT, ABOVE, BELOW = 44, 24, 36


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(found: Sequence[Series], x_label: str, title: str, size: tuple[int, int] = (430, 240)) -> str:
    """A chart of lines with a legend below; every point tells its numbers. Empty series are only named."""
    width, height = size
    xs, ys = [x for s in found for x in s.x], [y for s in found for y in s.y]
    low_x, high_x = (min(xs), max(xs)) if xs else (0, 1)
    low_y, high_y = (min(ys), max(ys)) if ys else (0.0, 1.0)
    margin = 0.06 * (high_y - low_y) or 1.0
    low_y, high_y = low_y - margin, high_y + margin

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        up = (y - low_y) / (high_y - low_y)
        return LEFT + 8 + across * (width - LEFT - 24), height - BELOW - up * (height - ABOVE - BELOW)

    whole = height + 18 * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{whole}" role="img" '
        f'aria-label="{escape(title)}"><text x="0" y="13" {TEXT}>{escape(title)}</text>'
    ]
    for y in ticks(low_y, high_y):
        _, place = at(low_x, y)
        parts.append(
            f'<line x1="{LEFT}" x2="{width - 8}" y1="{place:.1f}" y2="{place:.1f}" stroke="{INK}" '
            'stroke-opacity="0.15"/>'
            f'<text x="{LEFT - 5}" y="{place + 4:.1f}" text-anchor="end" {TEXT}>{y:g}</text>'
        )
    for x in sorted(set(xs)) if len(set(xs)) <= 8 else ticks(low_x, high_x):
        place, _ = at(x, low_y)
        parts.append(f'<text x="{place:.1f}" y="{height - BELOW + 15}" text-anchor="middle" {TEXT}>{x:g}</text>')
    parts.append(
        f'<text x="{(LEFT + width) / 2}" y="{height - 5}" text-anchor="middle" {TEXT}>{escape(x_label)}</text>'
    )
    for row, s in enumerate(found):
        points = [at(x, y) for x, y in zip(s.x, s.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = SVG_DASHES[s.dash]
        ink = s.look.colour
        pen = f'stroke="{ink}" stroke-width="2" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{path}" fill="none" {pen}/>')
        radius = 3.5 if len(points) <= 30 else 1.5
        for (x, y), told_x, told_y in zip(points, s.x, s.y, strict=True):
            told = f"{s.name}: {x_label} {told_x:g}, {number(told_y, 4)}"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{ink}"><title>{escape(told)}</title>')
            parts.append("</circle>")
        y = height + 18 * row + 8
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + 26}" y1="{y}" y2="{y}" {pen}/>'
            f'<text x="{LEFT + 32}" y="{y + 4}" {TEXT}>{escape(s.name)}</text>'
        )
    return "".join([*parts, "</svg>"])
