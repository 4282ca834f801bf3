"""Marks in a plotly figure: what JupyterLab and Voilà show from the start, as wide as its cell and always as high."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dne_lab.plots import labels
from dne_lab.plots.marks import Axis, Bars, Cells, Drawing, Level, Panel, Points, Spread, Words, hover
from dne_lab.plots.style import DASHES, GRID, INK, edged

DASH = dict(DASHES)
SCALES = {"cividis": "Cividis", "rdbu_r": "RdBu_r"}
INCH = 100  # pixels that stand for one inch of the static drawing
POINT = INCH / 72
LETTER = 6.6  # pixels: the mean width of one at size 12
WRAP = 84  # letters of a line of the title in the narrowest cell
LINE = 19  # pixels
NARROW, TYPICAL = 560, 830  # pixels: a cell of JupyterLab in a window of 1000, and of 1280
LEFT, RIGHT, GAP = 62, 16, 62  # pixels beside and between panels
HANDLE, DASHED_HANDLE = 30, 48  # pixels of a legend's line; plotly's own, and where dashes are to be seen
CELL, BAR = 34, 84  # pixels: the side of a matrix's cell at most, and the room of a colour bar
HATCH = {"shape": "/", "fillmode": "overlay", "fgcolor": "white", "fgopacity": 1}
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
EDGE = 2  # pixels by which an edge makes a line wider
NOTHING: list[Any] = [None]
PLAIN: dict[str, Any] = {"data": {"scatter": [{"type": "scatter"}]}}  # plotly's template "none"
TITLE = 18  # pixels above a panel for each line of its title


class Place(NamedTuple):
    """Where a panel is in the plotting area, in shares from the left and from below, and its pixels at `TYPICAL`."""

    across: tuple[float, float]
    up: tuple[float, float]
    pixels: tuple[float, float]


class Parts:
    """Traces and annotations of a plotly figure as plain dictionaries.

    plotly's own objects look at every property as it is set, which takes a tenth of a second for six lines: more than
    all else that a change in an explorer takes. The tests make such objects of the whole.
    """

    def __init__(self, scales: Mapping[str, Any]) -> None:
        self.scales = scales  # of colours
        self.traces: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def trace(self, kind: str, **properties: Any) -> None:
        """One more trace, e.g. a scatter."""
        self.traces.append({"type": kind, **_given(properties)})

    def annotation(self, **properties: Any) -> None:
        """One more text."""
        self.annotations.append(_given(properties))


def _given(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if value is not None}


def build(drawing: Drawing, title: str, height: float) -> dict[str, Any]:
    """The plotly figure as a tree: as wide as its cell, of one height, with margins that no browser has to measure.

    Args:
        drawing: what is in it.
        title: lines are kept.
        height: of the static drawing in inches; the legend, which stands below here, comes on top.

    Raises:
        ImportError: plotly, which brings what draws the tree, is not installed.
    """
    from plotly.colors import get_colorscale

    figure = Parts({name: get_colorscale(theirs) for name, theirs in SCALES.items()})
    matrices = any(isinstance(mark, Cells) for panel in drawing.panels for mark in panel.marks)
    head = 20 + LINE * len(title.split("\n"))
    foot, left = max(map(_foot, drawing.rows[-1])), max(_left(row[0].y) for row in drawing.rows)
    right = BAR if matrices else RIGHT
    handle = DASHED_HANDLE if drawing.dashed else HANDLE
    rows = _legend_rows([name for name, _ in drawing.listed()], NARROW - left - right, handle)
    room, places = _places(drawing, TYPICAL - left - right, INCH * height - head - foot)
    below = round(foot + LINE * rows + 12 * (rows > 0))
    total = head + room + below
    layout: dict[str, Any] = {
        "template": PLAIN, "autosize": True, "height": round(total), "hovermode": "closest", "barmode": "overlay",
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 12, "family": FONT},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": INK},
        "margin": {"l": left, "r": right, "t": head, "b": below, "autoexpand": False},
        "showlegend": rows > 0,
        "legend": {"orientation": "h", "x": 0, "xref": "container", "y": -foot / room, "yanchor": "top",
                   "itemsizing": "trace", "itemwidth": handle, "tracegroupgap": 0, "font": {"size": 12},
                   "bgcolor": "rgba(0,0,0,0)"},
    }  # fmt: skip
    figure.annotation(
        text=_html(title), x=0, y=1, xref="paper", yref="paper", xanchor="left", yanchor="bottom", xshift=8 - left,
        yshift=8, showarrow=False, align="left", font={"size": 12.5},
    )  # fmt: skip
    listed = {name for name, _ in drawing.listed()}
    seen: set[str] = set()
    for number, (panel, place) in enumerate(zip(drawing.panels, places, strict=True), start=1):
        tail = "" if number == 1 else str(number)
        _axes(layout, panel, tail, place)
        _add(figure, panel, tail, seen, listed, place.pixels)
        if panel.y.title:
            figure.annotation(
                text=_html(panel.y.title), x=place.across[0], y=sum(place.up) / 2, xref="paper", yref="paper",
                xanchor="left", yanchor="middle", xshift=4 - _left(panel.y), textangle=-90, showarrow=False,
            )  # fmt: skip
        if panel.title:
            figure.annotation(
                text=_html(panel.title), align="left", x=place.across[0], y=place.up[1], xref="paper", yref="paper",
                xanchor="left", yanchor="bottom", showarrow=False, font={"size": 12},
            )  # fmt: skip
    for name in listed - seen:  # how many more there are
        figure.trace(
            "scatter", x=NOTHING, y=NOTHING, name=_html(name), mode="markers", marker={"opacity": 0}, hoverinfo="skip"
        )
    if matrices:
        bar = {"x": max(place.across[1] for place in places), "xpad": 12, "y": 1, "yanchor": "top", "lenmode": "pixels"}
        for trace in figure.traces:
            if trace["type"] == "heatmap":
                trace["colorbar"] |= {**bar, "len": min(room, 300)}
    return {"data": figure.traces, "layout": {**layout, "annotations": figure.annotations}}


def _html(text: str) -> str:
    """Lines as plotly takes them; names from files are no markup (plotly makes links and bold text of it)."""
    return re.sub("<(?!br>)", "&lt;", text.replace("\n", "<br>"))


def _said(mark: Any, panel: Panel, i: int = 0) -> str:
    """What is said of a mark under the mouse."""
    return _html("<br>".join(hover(mark, panel, i)))


def _lines(text: str) -> int:
    return len(text.split("\n"))


def _left(axis: Axis) -> float:
    """Pixels that the names and the title of a y axis need."""
    names = axis.texts() if axis.shown and axis.names else ["00.00"]
    longest = max(len(line) for name in names for line in name.split("\n"))
    return 14 + LETTER * longest + LINE * _lines(axis.title) * bool(axis.title)


def _foot(panel: Panel) -> float:
    """Pixels that the names and the title of an x axis need."""
    names = max(map(_lines, panel.x.texts()), default=1) if panel.x.shown else 0
    return 14 + 15 * names + (4 + 16 * _lines(panel.x.title)) * bool(panel.x.title)


def _legend_rows(names: Sequence[str], width: float, handle: int) -> int:
    """Rows that a legend has below a plotting area of so many pixels, which plotly does not let it exceed; its columns
    are as wide as a handle and the longest name."""
    if not names:
        return 0
    across = max(1, int(width / (LETTER * max(map(len, names)) + handle + 22)))
    return -(-len(names) // across)


def _places(drawing: Drawing, width: float, height: float) -> tuple[float, list[Place]]:
    """Pixels of the plotting area from top to bottom, and the place of each panel in it."""
    columns = max(len(row) for row in drawing.rows)
    gap = _gap(drawing, width)
    free = width - gap * (columns - 1)
    sizes: list[list[tuple[float, float]]] = []
    for row in drawing.rows:
        wide = sum(panel.wide for panel in row) + columns - len(row)
        sizes.append([(free * panel.wide / wide, height / len(drawing.rows)) for panel in row])
    for i, row in enumerate(drawing.rows):  # of a matrix the cells are squares
        for j, panel in enumerate(row):
            shape = _shape(panel)
            if shape is not None:
                cell = min(CELL, free / columns / shape[1])
                sizes[i][j] = (cell * shape[1], cell * shape[0])
    between = [max(_foot(panel) for panel in row) + 8 for row in drawing.rows[:-1]]
    above = [TITLE * max(_lines(p.title) if p.title else 0 for p in row) + 4 for row in drawing.rows]
    room = sum(max(high for _, high in row) for row in sizes) + sum(between) + sum(above)
    places, y = [], room
    for i, boxes in enumerate(sizes):
        x = 0.0
        y -= above[i]
        for wide, mine in boxes:
            places.append(Place((x / width, min(1.0, (x + wide) / width)), ((y - mine) / room, y / room), (wide, mine)))
            x += wide + gap
        y -= max(high for _, high in boxes) + (between[i] if i < len(between) else 0)
    return room, places


def _gap(drawing: Drawing, width: float) -> float:
    """Pixels between panels of a plotting area of so many: names beside a later panel fit in the narrowest cell too."""
    named = [panel.y for row in drawing.rows for panel in row[1:] if panel.y.shown and panel.y.names]
    narrow = width - (TYPICAL - NARROW)
    return max([GAP, *(_left(axis) * width / narrow for axis in named if narrow > 0)])


def _shape(panel: Panel) -> tuple[int, int] | None:
    """Rows and columns of a panel that is a matrix."""
    return next((mark.values.shape for mark in panel.marks if isinstance(mark, Cells)), None)


# The axes ---------------------------------------------------------------------------------------------------------


def _axes(layout: dict[str, Any], panel: Panel, tail: str, place: Place) -> None:
    xs, ys = panel.ends()
    shape = _shape(panel)
    if shape is not None:
        xs, ys = (-0.5, shape[1] - 0.5), (shape[0] - 0.5, -0.5)
    x, y = _axis(panel.x, xs), _axis(panel.y, ys)
    y["title"] = {"text": ""}  # plotly lays it across the drawing when JupyterLab draws anew: it is a note (`build`)
    x |= {"domain": list(place.across), "anchor": f"y{tail}"}
    y |= {"domain": [max(0.0, place.up[0]), min(1.0, place.up[1])], "anchor": f"x{tail}"}
    if shape is not None:
        bare: dict[str, Any] = {"showgrid": False, "ticks": "", "showline": False, "tickfont": {"size": 11}}
        y |= {**bare, "scaleanchor": f"x{tail}", "constrain": "domain", "constraintoward": "top"}
        x |= {**bare, "constrain": "domain", "constraintoward": "left"}
    layout[f"xaxis{tail}"], layout[f"yaxis{tail}"] = x, y


def _axis(axis: Axis, ends: tuple[float, float]) -> dict[str, Any]:
    low, high = (math.log10(end) for end in ends) if axis.kind == "log" else ends
    made: dict[str, Any] = {
        "title": {"text": _html(axis.title), "font": {"size": 12}, "standoff": 6},
        "type": "log" if axis.kind == "log" else "linear",
        "range": [high, low] if axis.reverse else [low, high],
        "gridcolor": FAINT, "zeroline": False, "linecolor": INK, "showline": axis.shown, "ticks": "outside",
        "showgrid": axis.kind != "category", "visible": axis.shown, "tickangle": 0,
    }  # fmt: skip
    places = axis.places(ends)
    if places is not None:
        made |= {"tickmode": "array", "tickvals": list(places), "ticktext": [_html(text) for text in axis.texts(ends)]}
    return made


FAINT = f"rgba({','.join(str(int(GRID[i : i + 2], 16)) for i in (1, 3, 5))},{int(GRID[7:], 16) / 255:.2f})"


# The marks --------------------------------------------------------------------------------------------------------


def _add(figure: Parts, panel: Panel, tail: str, seen: set[str], listed: set[str], size: tuple[float, float]) -> None:
    on = {"xaxis": f"x{tail}", "yaxis": f"y{tail}"}
    ends = panel.ends()
    for mark in panel.marks:
        common: dict[str, Any] = dict(on)
        if isinstance(mark, Points | Bars | Spread | Level):
            first = mark.listed and mark.name in listed and mark.name not in seen
            common |= {"name": _html(mark.name), "legendgroup": _html(mark.name), "showlegend": first}
            seen |= {mark.name} if first else set()
        if isinstance(mark, Points):
            _points(figure, mark, panel, common)
        elif isinstance(mark, Bars):
            _bars(figure, mark, panel, common)
        elif isinstance(mark, Spread):
            _spread(figure, mark, panel, common)
        elif isinstance(mark, Level):
            _level(figure, mark, panel, common, ends)
        elif isinstance(mark, Cells):
            _cells(figure, mark, common)
        else:
            _words(figure, mark, panel, on)
    _tags(figure, panel, on, ends, size)


def _points(figure: Parts, mark: Points, panel: Panel, common: dict[str, Any], edge: int = 0) -> None:
    """``edge``: pixels by which lines are wider, of what lies below the same marks."""
    colour = mark.look.colour
    if edged(colour):
        below = replace(mark, look=mark.look._replace(colour=INK), crossed=(), low=() if mark.band else mark.low)
        _points(figure, below, panel, {**common, "showlegend": False}, EDGE)
    there = [i for i, low in enumerate(mark.low) if math.isfinite(low)]
    if mark.band and there:
        figure.trace(
            "scatter",
            x=[mark.x[i] for i in (*there, *there[::-1])],
            y=[*(mark.high[i] for i in there), *(mark.low[i] for i in there[::-1])],
            fill="toself", fillcolor=_faint(colour, 0.15), line={"width": 0}, mode="lines", hoverinfo="skip",
            **{**common, "showlegend": False},
        )  # fmt: skip
    areas = mark.areas()
    size = [1.4 * area**0.5 for area in areas]
    if mark.every > 1:
        size = [one if i % mark.every == 0 else 0.0 for i, one in enumerate(size)]
    symbol = mark.look.symbol + ("" if mark.filled or mark.look.symbol.endswith("-open") else "-open")
    thin = mark.look.symbol.startswith(("line", "y-")) or mark.look.symbol.endswith("thin")
    line = INK if edged(colour) and mark.filled and not thin else colour
    figure.trace(
        "scatter",
        x=[*mark.x] or NOTHING, y=[*mark.y] or NOTHING,  # one without points stands in the legend
        mode="+".join(["lines"] * bool(mark.dash) + ["markers"] * mark.marked),
        line={"color": colour, "width": 1.3 * mark.width + edge, "dash": DASH.get(mark.dash, "solid")},
        marker={"symbol": symbol, "color": colour, "size": size if len(set(size)) > 1 else max(size, default=7.0),
                "opacity": 1, "line": {"color": line, "width": (2 if thin else 1) + edge}},
        error_x=_interval(mark, mark.x, edge) if mark.across else None,
        error_y=None if mark.across or mark.band else _interval(mark, mark.y, edge),
        hovertext=None if edge else [_said(mark, panel, i) for i in range(len(mark.x))],
        hoverinfo="skip" if edge else "text",
        cliponaxis=False, **common,
    )  # fmt: skip
    crossed = [i for i, cross in enumerate(mark.crossed) if cross]
    if crossed:
        figure.trace(
            "scatter",
            x=[mark.x[i] for i in crossed], y=[mark.y[i] for i in crossed], mode="markers", hoverinfo="skip",
            marker={"symbol": "x-thin", "size": 9, "line": {"color": INK, "width": 1.5}},
            **{**common, "showlegend": False},
        )  # fmt: skip


def _interval(mark: Points | Bars, middle: Sequence[float], edge: int = 0) -> dict[str, Any] | None:
    if not any(math.isfinite(low) for low in mark.low):
        return None
    up = [_or_none(high - at) for at, high in zip(middle, mark.high, strict=True)]
    down = [_or_none(at - low) for at, low in zip(middle, mark.low, strict=True)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2 + edge, "width": 3}


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _bars(figure: Parts, mark: Bars, panel: Panel, common: dict[str, Any]) -> None:
    colour = mark.colour if isinstance(mark.colour, str) else list(mark.colour)
    ends = mark.ends()
    pale = int(edged(colour)) if isinstance(colour, str) else list(map(int, map(edged, colour)))
    around = {"color": INK, "width": pale} if pale else {}
    along, beside = ("x", "y") if mark.across else ("y", "x")
    interval = _interval(mark, ends) if len(mark.low) else None
    if interval:
        interval["color"] = INK
    figure.trace(
        "bar",
        **{along: list(mark.lengths), beside: list(mark.places)}, base=mark.bases(), width=mark.thick,
        orientation="h" if mark.across else "v", opacity=mark.opacity,
        marker={"color": colour, "pattern": HATCH if mark.hatched else {}, "line": around},
        **{f"error_{along}": interval},
        hovertext=[_said(mark, panel, i) for i in range(len(ends))], hoverinfo="text", **common,
    )  # fmt: skip


def _spread(figure: Parts, mark: Spread, panel: Panel, common: dict[str, Any]) -> None:
    line = INK if edged(mark.colour) else mark.colour
    figure.trace(
        "box",
        x=[float(p) for p, values in zip(mark.places, mark.values, strict=True) for _ in values],
        y=[float(v) for values in mark.values for v in values],
        width=mark.thick, quartilemethod="linear", fillcolor=_faint(mark.colour, 0.5),
        line={"color": line, "width": 1.4}, marker={"size": 3, "color": line}, hoverinfo="skip", **common,
    )  # fmt: skip
    # What plotly says of a box are bare numbers: unseen marks at its median and quartiles say what they are.
    texts = [_said(mark, panel, i) for i in range(len(mark.places))]
    figure.trace(
        "scatter",
        x=[float(place) for place in mark.places for _ in range(3)],
        y=[value for i in range(len(mark.places)) for value in mark.quartiles(i)],
        mode="markers", marker={"size": 16, "opacity": 0, "color": mark.colour},
        hovertext=[text for text in texts for _ in range(3)], hoverinfo="text", **{**common, "showlegend": False},
    )  # fmt: skip


def _level(figure: Parts, mark: Level, panel: Panel, common: dict[str, Any], ends: Any) -> None:
    along = list(ends[1] if mark.upright else ends[0])
    at = [mark.at] * 2
    text = _said(mark, panel) + (f"<br>{_html(mark.note)}" if mark.note else "")
    if mark.half == mark.half:
        low, high = mark.at - mark.half, mark.at + mark.half
        around = [along[0], along[1], along[1], along[0]], [low, low, high, high]
        figure.trace(
            "scatter",
            x=around[1] if mark.upright else around[0], y=around[0] if mark.upright else around[1], fill="toself",
            fillcolor=_faint(mark.colour, 0.08), line={"width": 0}, mode="lines", hoverinfo="skip",
            **{**common, "showlegend": False},
        )  # fmt: skip
    figure.trace(
        "scatter",
        x=at if mark.upright else along, y=along if mark.upright else at, mode="lines",
        line={"color": mark.colour, "width": 1.3, "dash": DASH[mark.dash]}, hovertext=[text] * 2, hoverinfo="text",
        **common,
    )  # fmt: skip


def _cells(figure: Parts, mark: Cells, common: dict[str, Any]) -> None:
    rows = [[_or_none(value) for value in row] for row in mark.values]
    first = not any(trace["type"] == "heatmap" for trace in figure.traces)
    digits = mark.digits or 0
    words = None
    if mark.digits is not None:
        words = [["" if value is None else f"{round(value, digits) + 0.0:.{digits}f}" for value in row] for row in rows]
    figure.trace(
        "heatmap",
        z=rows, zmin=mark.low, zmax=mark.high, colorscale=figure.scales[mark.scale], showscale=first, hoverongaps=False,
        colorbar={"title": {"text": _html(mark.title), "side": "right"}, "thickness": 14, "outlinewidth": 0},
        text=words, texttemplate="%{text}" if words else None, textfont={"size": 10},
        hovertext=[[_html(note) for note in row] for row in mark.notes],
        hovertemplate=f"%{{hovertext}}<br>{mark.title}: %{{z:.2f}}<extra></extra>",
        xgap=1 if digits or words else 0, ygap=1 if digits or words else 0, **common,
    )  # fmt: skip


def _words(figure: Parts, mark: Words, panel: Panel, on: dict[str, str]) -> None:
    figure.annotation(
        text=_html(mark.text), x=_place(mark.x, panel.x), y=_place(mark.y, panel.y), xref=on["xaxis"], yref=on["yaxis"],
        xshift=POINT * mark.shift[0], yshift=POINT * mark.shift[1], showarrow=False, xanchor=mark.beside,
        yanchor="middle", font={"color": mark.colour, "size": max(10.0, 1.4 * mark.size)},
    )  # fmt: skip


def _tags(figure: Parts, panel: Panel, on: dict[str, str], ends: Any, size: tuple[float, float]) -> None:
    """Names beside marks, placed for the common width; where the cell is another one they keep their distance."""
    marks = [mark for mark in panel.marks if isinstance(mark, Points)]
    tags = [tag for mark in marks for tag in labels.tags(mark)]
    if not any(tag.text for tag in tags):
        return
    refs = {"xref": on["xaxis"], "yref": on["yaxis"]}
    sides = [(axis, [_place(end, axis) for end in both]) for axis, both in zip((panel.x, panel.y), ends, strict=True)]

    def on_page(at: Sequence[tuple[float, float]]) -> Any:
        parts = [
            [(_place(pair[i], axis) - low) / (high - low) * size[i] / POINT for pair in at]
            for i, (axis, (low, high)) in enumerate(sides)
        ]
        return np.array(parts, dtype=float).T.reshape(-1, 2)

    lines = [line for mark in marks for line in labels.lines(mark)]
    inside = (0.0, 0.0, size[0] / POINT, size[1] / POINT)
    for tag, right, up, far in labels.offsets(tags, on_page, inside, lines, labels.SIZE + 0.7):
        figure.annotation(
            text=_html(tag.text), x=_place(tag.x, panel.x), y=_place(tag.y, panel.y), **refs,
            ax=POINT * right, ay=-POINT * up, showarrow=True, arrowhead=0, arrowwidth=0.5 if far else 0.1,
            arrowcolor=tag.colour if far else "rgba(0,0,0,0)", font={"color": INK, "size": 10}, standoff=3,
        )  # fmt: skip


def _place(value: float, axis: Axis) -> float:
    """As plotly wants the place of an annotation: on a logarithmic axis the logarithm."""
    return math.log10(value) if axis.kind == "log" else float(value)


def _faint(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
