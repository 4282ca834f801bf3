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
from dne_lab.plots.attention_views import heat, tinted
from dne_lab.plots.marks import Axis, Bars, Level, Mark, Panel
from dne_lab.plots.style import GROUP_COLOURS, GROUP_WORDS
from dne_lab.plots.vector import INK, TEXT, chart, opening

if TYPE_CHECKING:
    import pandas as pd


HEAD = "padding: 0 0 0 10px; font-weight: normal; white-space: nowrap"


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
    inks = [colour(heat(np.array(value), top)) for value in values]
    notes = [f"uniform {number(uniform, 4)}"] * len(names)
    marks: list[Mark] = [
        Bars("", range(len(names)), values.tolist(), inks, thick=0.8, across=True, notes=notes),
        Level(f"uniform {number(uniform)}", uniform, upright=True),
    ]
    x = Axis("attention", low=0.0, high=top, shown=False)
    y = Axis("", "category", tuple(names), reverse=True)
    return chart(Panel(marks, x, y, title), row=20 if len(names) <= 12 else 13)


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
    parts = [opening(left + width + 40, height + 36, title)]
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
    series = zip(("everything on", "switched off"), (before, after), inks, (-0.21, 0.21), strict=True)
    marks = [
        Bars(name, [row + shift for row in range(len(names))], values.tolist(), ink, thick=0.38, across=True)
        for name, values, ink, shift in series
    ]
    x = Axis("softmax", low=0.0, high=1.0, shown=False)
    return chart(Panel(marks, x, Axis("", "category", tuple(names), reverse=True), title), row=26)


def image(pixels: NDArray[np.uint8], side: int, words: str) -> str:
    """A picture (h, w, 3), its pixels enlarged without smoothing to ``side`` in width."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    style = f"width: {side}px; image-rendering: pixelated; display: block; margin: 0 14px 8px 2px"
    return f'<img alt="{escape(words)}" style="{style}" src="data:image/png;base64,{data}">'
