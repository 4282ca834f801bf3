"""Small drawings as HTML with SVG, from numbers alone: bars, colour scales, tables. Numbers are told where the pointer
is, and colours are those of `dne_lab.plots`."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dne_lab.analysis.labelling import GROUPS
from dne_lab.plots.accuracy import Series
from dne_lab.plots.attention_views import heat, tinted
from dne_lab.plots.style import GROUP_COLOURS, GROUP_WORDS

if TYPE_CHECKING:
    import pandas as pd


INK = "var(--jp-ui-font-color1, #222)"
HEAD = "padding: 0 0 0 10px; font-weight: normal; white-space: nowrap"
TEXT = f'style="font: 12px sans-serif; fill: {INK}"'


def colour(rgb: Sequence[int] | NDArray[Any]) -> str:
    """#rrggbb of three numbers from 0 to 255."""
    return "#" + "".join(f"{int(part):02x}" for part in rgb)


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, empty where there is none."""
    return "" if math.isnan(value) else f"{value:.{digits}g}"


def sentence(text: str, wrong: bool = False) -> str:
    """A line of text; ``wrong`` marks one that says why there is nothing to see."""
    mark = "border-left: 4px solid #d55e00; padding: 4px 8px; margin: 6px 0" if wrong else "margin: 2px 0"
    role = "alert" if wrong else "status"
    return f'<div role="{role}" style="{mark}; line-height: 18px; max-width: 920px">{escape(text)}</div>'


def bars(names: Sequence[str], values: NDArray[Any], uniform: float, top: float, title: str) -> str:
    """Attention to each key head as bars on the scale from 0 to ``top``, with the uniform value as a dashed line."""
    step = 20 if len(names) <= 12 else 13
    left, width = 122, 200
    place = left + width * uniform / top
    height = step * len(names) + 44
    parts = [_svg(left + width + 54, height, title), f'<text x="0" y="13" {TEXT}>{escape(title)}</text>']
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 24 + row * step
        hover = f"{name}: attention {number(float(value), 4)}, uniform {number(uniform, 4)}"
        fill = colour(heat(np.array(value), top))
        size = min(12, step)
        parts.append(
            f"<g><title>{escape(hover)}</title>"
            f'<rect x="0" y="{y}" width="{left + width + 54}" height="{step}" fill="transparent"/>'
            f'<text x="{left - 6}" y="{y + step - 5}" text-anchor="end" style="font: {size}px sans-serif; fill: {INK}">'
            f"{escape(name)}</text>"
            f'<rect x="{left}" y="{y + 2}" width="{max(0.5, width * float(value) / top):.1f}" height="{step - 4}" '
            f'fill="{fill}" stroke="#777" stroke-width="0.5"/>'
            f'<text x="{left + width + 6}" y="{y + step - 5}" '
            f'style="font: {size}px sans-serif; fill: {INK}">{number(float(value))}</text></g>'
        )
    end = height - 18
    parts.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="22" y2="{end}" stroke="{INK}" stroke-dasharray="4 3"/>')
    hover = f"uniform {number(uniform)}"
    parts.append(f'<text x="{place:.1f}" y="{end + 14}" text-anchor="middle" {TEXT}>{hover}</text></svg>')
    return "".join(parts)


def heat_scale(top: float, uniform: float, label: str) -> str:
    """The colour scale of attention with 0, the uniform value and the end marked."""
    ramp = heat(np.linspace(0, top, 33), top)
    return _scale([ramp], [label], top, uniform, f"uniform {number(uniform, 2)}", "attention")


def group_scale(top: float) -> str:
    """The four groups' colours from 0 to ``top`` times the uniform weight, 1 marked."""
    line = np.linspace(0, top, 33)
    ramps = [tinted(line, np.full(33, place), top) for place in range(4)]
    names = [f"{name} {GROUP_WORDS[name]}" for name in GROUPS]
    return _scale(ramps, names, top, 1.0, "1 = uniform", "attention in multiples of the uniform weight")


def _scale(ramps: Sequence[Any], names: Sequence[str], top: float, mark: float, hover: str, title: str) -> str:
    left, width, step = (230 if len(ramps) > 1 else 130), 180, 16
    height = step * len(ramps)
    parts = [_svg(left + width + 40, height + 36, title)]
    for row, (ramp, name) in enumerate(zip(ramps, names, strict=True)):
        parts.append(f'<text x="{left - 6}" y="{row * step + 12}" text-anchor="end" {TEXT}>{escape(name)}</text>')
        size = width / len(ramp)
        for place, rgb in enumerate(ramp):
            x = left + place * size
            parts.append(
                f'<rect x="{x:.1f}" y="{row * step}" width="{size + 0.5:.1f}" height="{step}" fill="{colour(rgb)}"/>'
            )
    x = left + width * mark / top
    for ink, wide in (("black", 3), ("white", 1)):
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="{ink}" stroke-width="{wide}"/>')
    y = height + 14
    parts.append(f'<text x="{left}" y="{y}" text-anchor="middle" {TEXT}>0</text>')
    parts.append(f'<text x="{x:.1f}" y="{y + 14}" text-anchor="middle" {TEXT}>{escape(hover)}</text>')
    parts.append(f'<text x="{left + width}" y="{y}" text-anchor="middle" {TEXT}>{number(top, 2)}</text></svg>')
    return "".join(parts)


def _svg(width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(title)}" style="overflow: visible; display: block">'
    )


def shares(table: "pd.DataFrame", title: str) -> str:
    """The table of `LookView.frame`: share and uniform share of each group as bars and numbers, effective keys."""
    rows = []
    for row in table.to_dict("records"):
        name = str(row["group"])
        ink = GROUP_COLOURS.get(name, "#777777")
        words = GROUP_WORDS.get(name, "whole row")
        share, uniform = float(row["share %"]), float(row["uniform %"])
        bar = (
            f'<div style="position: relative; width: 100px; height: 14px; background: rgba(127,127,127,0.15)">'
            f'<div style="width: {0 if math.isnan(share) else share:.2f}%; height: 14px; background: {ink}"></div>'
            f'<div style="position: absolute; left: {uniform:.2f}%; top: -2px; height: 18px; width: 0; '
            f'border-left: 2px solid {INK}"></div></div>'
        )
        hover = f"{name}, {words}: share {share:.2f}%, uniform {uniform:.2f}%"
        cells = [
            f'<td title="{escape(hover)}">{bar}</td>',
            *(_cell(value) for value in (f"{share:.2f}", f"{uniform:.2f}")),
        ]
        cells += [_cell(number(float(row["effective keys"]), 4)), _cell(f"{row['keys']:.0f}")]
        rows.append(
            f'<tr><th title="{escape(words)}" style="text-align: left; padding-right: 8px">{name}</th>'
            f"{''.join(cells)}</tr>"
        )
    head = "".join(
        f'<th style="text-align: right; {HEAD}">{text}</th>'
        for text in ("share %", "uniform %", "effective keys", "of keys")
    )
    return _table(f"<tr><th></th><th></th>{head}</tr>{''.join(rows)}", title)


def _cell(text: str) -> str:
    return f'<td style="text-align: right; padding: 0 0 0 10px; font-variant-numeric: tabular-nums">{escape(text)}</td>'


def _table(rows: str, title: str) -> str:
    style = f"font: 12px sans-serif; line-height: 20px; border-collapse: collapse; color: {INK}"
    caption = f'<caption style="text-align: left; line-height: 22px; white-space: nowrap">{escape(title)}</caption>'
    return f'<table style="{style}">{caption}{rows}</table>'


def table(frame: "pd.DataFrame", title: str, digits: int = 2) -> str:
    """A data frame as a plain table: words left, numbers right with fixed decimals, blanks where there is nothing."""
    words = {name for name in frame.columns if not np.issubdtype(np.asarray(frame[name]).dtype, np.number)}
    numbers = [name for name in frame.columns if name not in words]
    whole = {n for n in numbers if "%" not in str(n) and (frame[n].dropna() % 1 == 0).all()}
    head = "".join(
        f'<th style="text-align: {"left" if name in words else "right"}; {HEAD}">{escape(str(name))}</th>'
        for name in frame.columns
    )
    rows = []
    for row in frame.to_dict("records"):
        cells = []
        for name, value in row.items():
            if name in words:
                cells.append(f'<td style="padding: 0 0 0 10px">{escape("" if value is None else str(value))}</td>')
            else:
                blank = value is None or math.isnan(value)
                cells.append(_cell("" if blank else f"{value:.0f}" if name in whole else f"{value:.{digits}f}"))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _table(f"<tr>{head}</tr>{''.join(rows)}", title)


def facts(names: Sequence[str], words: Sequence[str], title: str) -> str:
    """A line for each name: the name and what is said of it."""
    rows = [
        f'<tr><td>{escape(name)}</td><td style="padding-left: 10px">{escape(text)}</td></tr>'
        for name, text in zip(names, words, strict=True)
    ]
    return _table("".join(rows), title)


def pairs(names: Sequence[str], before: NDArray[Any], after: NDArray[Any], inks: tuple[str, str], title: str) -> str:
    """Two bars per row on a scale from 0 to 1: with everything on, and with something off."""
    left, width, step = 110, 240, 26
    height = step * len(names) + 44
    parts = [_svg(left + width + 60, height, title), f'<text x="0" y="13" {TEXT}>{escape(title)}</text>']
    for row, (name, old, new) in enumerate(zip(names, before, after, strict=True)):
        y = 22 + row * step
        hover = f"{name}: before {old:.4f}, after {new:.4f}"
        parts.append(f'<g><title>{escape(hover)}</title><text x="{left - 6}" y="{y + 16}" text-anchor="end" {TEXT}>')
        parts.append(f"{escape(name)}</text>")
        for place, (value, ink) in enumerate(zip((old, new), inks, strict=True)):
            size = max(0.5, width * float(value))
            parts.append(f'<rect x="{left}" y="{y + 2 + 11 * place}" width="{size:.1f}" height="10" fill="{ink}"/>')
        parts.append(f'<text x="{left + width + 6}" y="{y + 16}" {TEXT}>{new:.3f}</text></g>')
    for place, (words, ink) in enumerate(zip(("everything on", "switched off"), inks, strict=True)):
        x = left + 110 * place
        parts.append(f'<rect x="{x}" y="{height - 15}" width="10" height="10" fill="{ink}"/>')
        parts.append(f'<text x="{x + 15}" y="{height - 6}" {TEXT}>{words}</text>')
    return "".join([*parts, "</svg>"])


def image(pixels: NDArray[np.uint8], side: int, words: str) -> str:
    """A picture (h, w, 3), its pixels enlarged without smoothing to ``side`` in width."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    style = f"width: {side}px; image-rendering: pixelated; display: block; margin: 0 14px 8px 2px"
    return f'<img alt="{escape(words)}" style="{style}" src="data:image/png;base64,{data}">'


# Lines and bars over runs and epochs as HTML with SVG, from numbers alone.

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
        for (x, y), value_x, value_y in zip(points, s.x, s.y, strict=True):
            hover = f"{s.name}: {x_label} {value_x:g}, {number(value_y, 4)}"
            fill = f'fill="{ink}"' if s.filled else f'fill="{ink}" fill-opacity="0" stroke="{ink}"'  # still has a mouse
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {fill}><title>{escape(hover)}</title>')
            parts.append("</circle>")
        y = height + 18 * row + 8
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + 32}" y1="{y}" y2="{y}" {pen}/>'
            f'<text x="{LEFT + 38}" y="{y + 4}" {TEXT}>{escape(s.name)}</text>'
        )
    return "".join([*parts, "</svg>"])
