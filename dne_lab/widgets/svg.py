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
from dne_lab.plots.attention_colours import Scale, expert_pixels, ramp, scale_ends, tinted
from dne_lab.plots.marks import Axis, Bars, Level, Mark, Panel
from dne_lab.plots.style import GROUP_COLOURS, GROUP_WORDS, edged
from dne_lab.plots.style import INK as EDGE
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


def bars(names: Sequence[str], values: NDArray[Any], uniform: float, top: float, title: str, scale: Scale) -> str:
    """Attention to each key head as bars from 0 to ``top`` in the colours of a scale, with the uniform value as a
    dashed line."""
    inks = [colour(rgb) for rgb in scale.colours(values)]
    notes = [f"uniform {number(uniform, 4)}"] * len(names)
    marks: list[Mark] = [
        Bars("", range(len(names)), values.tolist(), inks, thick=0.8, across=True, notes=notes),
        Level(f"uniform {number(uniform)}", uniform, upright=True),
    ]
    x = Axis("attention", low=0.0, high=top, shown=False)
    y = Axis("", "category", tuple(names), reverse=True)
    return chart(Panel(marks, x, y, title), row=20 if len(names) <= 12 else 13)


def heat_scale(scale: Scale, label: str) -> str:
    """A colour scale of attention with its ends and the uniform value marked; which one it is stands in words."""
    return _scale([ramp(scale, 33)], [label], [scale], f"attention, {scale.words}")


def palette(names: Sequence[str], experts: Sequence[int]) -> str:
    """The colours of experts with their names."""
    square = "display: inline-block; width: 12px; height: 12px; margin: 0 5px 0 12px"
    found = [
        f'<span style="{square}; background: {colour(rgb)}"></span>{escape(name)}'
        for name, rgb in zip(names, expert_pixels(np.asarray(experts), (-1,)), strict=True)
    ]
    return f'<div style="font: 12px sans-serif; line-height: 20px; color: {INK}">{"".join(found)}</div>'


def group_scale(scales: Sequence[Scale]) -> str:
    """The four groups' colours on the scale of the views beside it; which one it is stands in words."""
    ramps = [tinted(np.linspace(0, 1, 33), np.full(33, place), 1) for place in range(4)]
    names = [f"{name} {GROUP_WORDS[name]}" for name in GROUPS]
    words = scales[0].kind if scale_ends(scales)[0] == "smallest" else scales[0].words
    return _scale(ramps, names, scales, f"attention, {words}")


def _scale(ramps: Sequence[Any], names: Sequence[str], scales: Sequence[Scale], title: str) -> str:
    left, width, step = (230 if len(ramps) > 1 else 130), 180, 16
    height = step * len(ramps)
    parts = [opening(left + max(width + 40, 7 * len(title)), height + 54, title)]
    for row, (colours, name) in enumerate(zip(ramps, names, strict=True)):
        parts.append(f'<text x="{left - 6}" y="{row * step + 12}" text-anchor="end" {TEXT}>{escape(name)}</text>')
        size = width / len(colours)
        for place, rgb in enumerate(colours):
            x = left + place * size
            parts.append(
                f'<rect x="{x:.1f}" y="{row * step}" width="{size + 0.5:.1f}" height="{step}" fill="{colour(rgb)}"/>'
            )
    low, high, uniform = scale_ends(scales)
    y = height + 14
    if uniform is not None:
        x = left + width * uniform
        for ink, wide in (("black", 3), ("white", 1)):
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="{ink}" stroke-width="{wide}"/>')
        value = number(scales[0].uniform or 0.0, 2)
        text = "1 = uniform" if value == "1" else f"uniform {value}"
        parts.append(f'<text x="{x:.1f}" y="{y + 14}" text-anchor="middle" {TEXT}>{text}</text>')
    parts.append(f'<text x="{left}" y="{y}" text-anchor="middle" {TEXT}>{low}</text>')
    parts.append(f'<text x="{left}" y="{y + 30}" {TEXT}>{escape(title)}</text>')
    parts.append(f'<text x="{left + width}" y="{y}" text-anchor="middle" {TEXT}>{high}</text></svg>')
    return "".join(parts)


# What stands where shares of one image do.
EXACT = (
    "Shares of one image are exact: nothing is sampled, so they have no interval. Its patches are not independent; an "
    "interval is over images, as in the tab All images."
)


def spanned(values: NDArray[Any]) -> str:
    """Shares from 0 to 1 as mean, smallest and largest, percent."""
    return f"{100 * values.mean():.1f} ({100 * values.min():.1f} to {100 * values.max():.1f})"


def shares(table: "pd.DataFrame", title: str, patches: NDArray[Any]) -> str:
    """The table of `LookView.frame`: share and uniform share of each group as bars and numbers, effective keys;
    ``patches``: (N, groups) shares of all query patches, of which mean and range stand beside them."""
    rows = []
    for place, row in enumerate(table.to_dict("records")):
        name = str(row["group"])
        ink = GROUP_COLOURS.get(name, "#777777")
        edge = f"; box-shadow: inset 0 0 0 1px {EDGE}" if edged(ink) else ""
        words = GROUP_WORDS.get(name, "whole row")
        share, uniform = float(row["share %"]), float(row["uniform %"])
        bar = (
            f'<div style="position: relative; width: 50px; height: 14px; background: rgba(127,127,127,0.15)">'
            f'<div style="width: {0 if math.isnan(share) else share:.2f}%; height: 14px; background: {ink}'
            f'{edge}"></div>'
            f'<div style="position: absolute; left: {uniform:.2f}%; top: -2px; height: 18px; width: 0; '
            f'border-left: 2px solid {INK}"></div></div>'
        )
        hover = f"{name}, {words}: share {share:.2f}%, uniform {uniform:.2f}%"
        cells = [
            f'<td title="{escape(hover)}">{bar}</td>',
            *(_cell(value) for value in (f"{share:.2f}", f"{uniform:.2f}")),
        ]
        cells.append(_cell(spanned(patches[:, place]) if place < patches.shape[1] and row["keys"] else ""))
        effective = number(float(row["effective keys"]), 4)
        cells.append(_cell(f"{effective} of {row['keys']:.0f}" if effective else ""))
        rows.append(
            f'<tr><th title="{escape(words)}" style="text-align: left; padding-right: 8px">{name}</th>'
            f"{''.join(cells)}</tr>"
        )
    head = "".join(
        f'<th style="text-align: right; vertical-align: bottom; {HEAD}; white-space: normal">{text}</th>'
        for text in ("share %", "uniform %", f"all {len(patches)} patches", "effective keys")
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
