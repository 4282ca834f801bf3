"""Marks on matplotlib axes: what is in files, on GitHub and in committed notebooks. Matrices, lines with intervals over
seeds and distributions are drawn with seaborn."""

import itertools
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.plots import labels
from dne_lab.plots.marks import Axis, Bars, Cells, Drawing, Level, Mark, Panel, Points, Spread, Words
from dne_lab.plots.style import INK, edged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

SEABORN = {"cividis": "cividis", "rdbu_r": "RdBu_r"}
THIN = ("_", "|", "x", "+", "1", "2", "3", "4")  # markers without an inside
LONG, NARROW = 24, 5.0  # letters of a name, and inches: the legend stands below the axes
SMALL, SMALL_FIGURE, LOW = 1.5, 4.5, 1.6  # inches: of a panel, a figure; titles there, and at low y axes, are wrapped
HANDLE = 3.6  # of a legend with dashed lines, in letters' heights; otherwise matplotlib's own 2
LETTER, BESIDE = 0.078, 0.6  # inches: a letter of a name under an axis, and what stands left of a panel
EDGE = 0.7  # points of an edge
MANY = 9  # cells of a row, above which their numbers are smaller


def draw(axes: "Axes", drawing: Drawing) -> None:
    """Draws on axes of one's own; several panels share the place of these axes."""
    places = _places(axes, drawing)
    for panel, place in zip(drawing.panels, itertools.chain.from_iterable(places), strict=True):
        _panel(place, panel)
    _legend(axes, drawing, places[0][len(drawing.rows[0]) - 1])
    _colour_bar(axes, drawing, places)
    for panel, place in zip(drawing.panels, itertools.chain.from_iterable(places), strict=True):
        marks = [mark for mark in panel.marks if isinstance(mark, Points)]
        tags = [tag for mark in marks for tag in labels.tags(mark)]
        if any(tag.text for tag in tags):  # at last: only now nothing moves any more
            labels.place(place, tags, [line for mark in marks for line in labels.lines(mark)])


def rows(canvas: "Canvas") -> list[tuple[float, float]]:
    """Bottom and top of the places of each row of panels, in shares of a canvas that has been laid out."""
    panels = [axes for axes in canvas.axes if axes.get_label() != "<colorbar>"]
    shown = [axes for axes in panels if axes.axison] or panels
    found: list[tuple[float, float]] = []
    for bottom, top in sorted((box.y0, box.y1) for box in (axes.get_position(original=True) for axes in shown)):
        if found and bottom < found[-1][1]:
            found[-1] = found[-1][0], max(top, found[-1][1])
        else:
            found.append((bottom, top))
    return found


def squares(canvas: "Canvas") -> float:
    """Inches that the highest matrix of a canvas that has been laid out takes where its cells are squares; 0: none."""
    matrices = [axes for axes in canvas.axes if axes.get_aspect() == 1.0 and axes.axison]
    sides = [(axes.get_position(original=True).width, axes.get_ylim(), axes.get_xlim()) for axes in matrices]
    return max((canvas.get_figwidth() * w * abs(y[1] - y[0]) / abs(x[1] - x[0]) for w, y, x in sides), default=0.0)


def _legend(axes: "Axes", drawing: Drawing, last: "Axes") -> None:
    """Beside the last panel, or below all where its names are long or there is little width."""
    names = drawing.listed()
    figure = axes.get_figure(root=True)
    if not names or figure is None:
        return
    width, longest = figure.get_figwidth(), max(len(name) for name, _ in names)
    letters = int((width - 0.6) / LETTER) if width < SMALL_FIGURE else longest
    keys = [_key(fill(name, letters), mark) for name, mark in names]
    more = {"handlelength": HANDLE} if drawing.dashed else {}
    if longest <= LONG and width >= NARROW:
        last.legend(handles=keys, loc="center left", bbox_to_anchor=(1.02, 0.5), **more)
        return
    columns = max(1, int(width / (0.5 + 0.2 * drawing.dashed + 0.076 * longest)))
    columns = min(columns, len(keys))
    if figure.get_layout_engine() is None:  # axes of one's own in a figure that keeps no room for it
        last.legend(handles=keys, loc="best", fontsize=7, **more)
    else:
        figure.legend(handles=keys, loc="outside lower left", ncols=columns, **more)


def _places(axes: "Axes", drawing: Drawing) -> list[list["Axes"]]:
    """Axes for each panel, within the place of the axes given."""
    if len(drawing.panels) == 1:
        return [[axes]]
    figure, spec = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    axes.set_axis_off()
    wide = max(len(row) for row in drawing.rows)
    ratios = [panel.wide for panel in drawing.rows[0]] + [1.0] * (wide - len(drawing.rows[0]))
    if spec is None:  # axes that somebody put somewhere
        left, bottom, width, height = axes.get_position().bounds
        inner: Any = figure.add_gridspec(
            len(drawing.rows), wide, width_ratios=ratios, left=left, bottom=bottom, right=left + width,
            top=bottom + height,
        )  # fmt: skip
    else:
        inner = spec.subgridspec(len(drawing.rows), wide, width_ratios=ratios)
    return [[figure.add_subplot(inner[i, j]) for j in range(len(row))] for i, row in enumerate(drawing.rows)]


def _panel(axes: "Axes", panel: Panel) -> None:
    for mark in panel.marks:
        if isinstance(mark, Points):
            _points(axes, mark)
        elif isinstance(mark, Bars):
            _bars(axes, mark)
        elif isinstance(mark, Spread):
            _spread(axes, mark)
        elif isinstance(mark, Level):
            _level(axes, mark)
        elif isinstance(mark, Words):
            axes.annotate(mark.text, (mark.x, mark.y), mark.shift, textcoords="offset points", fontsize=mark.size,
                          color=mark.colour, ha=mark.beside, va="center", zorder=4)  # fmt: skip
        else:
            _cells(axes, mark, panel)
    if panel.title:
        letters = max(6, int(_inches(axes) / LETTER))
        lines = [fill(line, letters) if _inches(axes) < SMALL else line for line in panel.title.split("\n")]
        axes.set_title("\n".join(lines), fontsize=9)
    if not any(isinstance(mark, Cells) for mark in panel.marks):
        (left, right), (bottom, top) = panel.ends()
        _axis(axes, panel.x, left, right, False)
        _axis(axes, panel.y, bottom, top, True)


def _axis(axes: "Axes", axis: Axis, low: float, high: float, vertical: bool) -> None:
    from matplotlib.ticker import NullLocator

    side = axes.yaxis if vertical else axes.xaxis
    if axis.kind == "log":
        (axes.set_yscale if vertical else axes.set_xscale)("log")
        side.set_minor_locator(NullLocator())
    (axes.set_ylim if vertical else axes.set_xlim)(*((high, low) if axis.reverse else (low, high)))
    places = axis.places((low, high))
    if places is not None:
        texts = axis.texts((low, high))
        side.set_ticks(places, texts)
        if axis.kind == "category" and not vertical and _crowded(axes, texts):
            side.set_ticks(places, [text.replace("-\n", "-").replace("\n", " ") for text in texts], rotation=90)
    if axis.kind == "category":
        side.grid(visible=vertical)
    if not axis.shown:
        side.set_visible(False)
        axes.spines["left" if vertical else "bottom"].set_visible(False)
    title, figure = axis.title, axes.get_figure(root=True)
    if figure is not None and figure.get_figwidth() < SMALL_FIGURE:
        letters = int((LOW if vertical else _inches(axes)) / LETTER)
        title = "\n".join(fill(line, letters) for line in title.split("\n"))
    side.set_label_text(title)


def _crowded(axes: "Axes", names: Sequence[str]) -> bool:
    """Whether names side by side would run into each other."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    return LETTER * longest * len(names) > _inches(axes) - BESIDE


def _inches(axes: "Axes") -> float:
    """How wide the place of axes will be, with the names beside them; they are not laid out yet."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    default = figure.subplotpars.right - figure.subplotpars.left
    return float(figure.get_figwidth() * axes.get_position(original=True).width / default)


# The marks --------------------------------------------------------------------------------------------------------


def _points(axes: "Axes", mark: Points) -> None:
    from matplotlib import rcParams

    colour, x, y = mark.look.colour, np.asarray(mark.x, float), np.asarray(mark.y, float)
    low, high = np.asarray(mark.low, float), np.asarray(mark.high, float)
    if mark.dash and len(low) and not mark.across and len(set(mark.x)) == len(x):
        _line(axes, mark, x, y, low, high)
    else:
        if mark.dash:
            thin = edge(colour, mark.width)
            axes.plot(x, y, color=colour, linestyle=mark.dash, linewidth=mark.width, zorder=1.5, **thin)
        if len(low) and np.isfinite(low).any():
            middle = x if mark.across else y
            bars = np.stack([middle - low, high - middle])
            both: dict[str, Any] = {"xerr": bars} if mark.across else {"yerr": bars}
            ink = INK if edged(colour) else colour
            axes.errorbar(x, y, fmt="none", ecolor=ink, elinewidth=1, capsize=2, zorder=2, **both)
    areas = np.asarray(mark.areas())
    if mark.marked:
        shown = slice(None, None, mark.every)
        at: dict[str, Any] = {"x": x[shown], "y": y[shown], "marker": mark.look.marker, "zorder": 3}
        if edged(colour) and not mark.filled and mark.look.marker not in THIN:  # a stroke would close it from within
            around = (np.sqrt(areas[shown]) + rcParams["lines.linewidth"] + EDGE) ** 2  # of diameters in points
            axes.scatter(**at, s=around, facecolor="none", edgecolor=INK, linewidth=EDGE, gid="edge")
        axes.scatter(**at, s=areas[shown], **_paint(mark))
    crossed = np.asarray(mark.crossed, bool)
    if crossed.any():
        axes.scatter(x[crossed], y[crossed], s=40, marker="x", color=INK, linewidth=1, zorder=5)


def edge(colour: str, width: float) -> dict[str, Any]:
    """What makes matplotlib draw an edge around marks, and lines of so many points, of a colour that needs one."""
    from matplotlib.patheffects import withStroke

    return {"path_effects": [withStroke(linewidth=width + 2 * EDGE, foreground=INK)]} if edged(colour) else {}


def _line(axes: "Axes", mark: Points, x: Any, y: Any, low: Any, high: Any) -> None:
    """With seaborn, which draws what lies between the smallest and the largest of three: the interval's ends and the
    mean."""
    import seaborn

    ends = [np.where(np.isfinite(end), end, y) for end in (low, high)]
    frame = {"x": np.tile(x, 3), "y": np.concatenate([ends[0], y, ends[1]])}
    kinds: dict[str, Any] = {"alpha": 0.15, "linewidth": 0} if mark.band else {"capsize": 2, "elinewidth": 1}
    if edged(mark.look.colour) and not mark.band:
        kinds["ecolor"] = INK
    seaborn.lineplot(
        frame, x="x", y="y", estimator="median", errorbar=("pi", 100), err_style="band" if mark.band else "bars",
        err_kws=kinds, color=mark.look.colour, linestyle=mark.dash, linewidth=mark.width, ax=axes,
        **edge(mark.look.colour, mark.width),
    )  # fmt: skip


def _paint(mark: Points) -> dict[str, Any]:
    colour = mark.look.colour
    if mark.look.marker in THIN:
        return {"color": colour, "linewidth": 1.4, **edge(colour, 1.4)}
    if not mark.filled:
        return {"facecolor": "none", "edgecolor": colour}
    return {"facecolor": colour, "edgecolor": colour, **edge(colour, 1.4)}


def _bars(axes: "Axes", mark: Bars) -> None:
    extra: dict[str, Any] = {"hatch": "///", "edgecolor": "white", "linewidth": 0} if mark.hatched else {}
    colour = mark.colour if isinstance(mark.colour, str) else list(mark.colour)
    extra["left" if mark.across else "bottom"] = mark.bases()
    make = axes.barh if mark.across else axes.bar
    made = make(mark.places, mark.lengths, mark.thick, color=colour, alpha=mark.opacity, **extra)
    for bar, ink in zip(made, [colour] * len(made) if isinstance(colour, str) else colour, strict=True):
        bar.set(**edge(ink, 0.0))
    if len(mark.low):
        ends = np.asarray(mark.ends())
        bars = np.stack([ends - np.asarray(mark.low, float), np.asarray(mark.high, float) - ends])
        x, y = (ends, mark.places) if mark.across else (mark.places, ends)
        both: dict[str, Any] = {"xerr": bars} if mark.across else {"yerr": bars}
        axes.errorbar(x, y, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3, zorder=4, **both)


def _spread(axes: "Axes", mark: Spread) -> None:
    import seaborn

    line = INK if edged(mark.colour) else mark.colour
    frame = {
        "place": np.repeat(mark.places, [len(values) for values in mark.values]),
        "value": np.concatenate([np.asarray(values, float) for values in mark.values]),
    }
    seaborn.boxplot(
        frame, x="place", y="value", native_scale=True, width=mark.thick, color=mark.colour, saturation=1,
        linecolor=line, linewidth=1.2, fliersize=2, boxprops={"alpha": 0.5}, ax=axes,
    )  # fmt: skip


def _level(axes: "Axes", mark: Level) -> None:
    line, span = (axes.axvline, axes.axvspan) if mark.upright else (axes.axhline, axes.axhspan)
    line(mark.at, color=mark.colour, linewidth=1.0, linestyle=mark.dash, zorder=1.2)
    if mark.half == mark.half:
        span(mark.at - mark.half, mark.at + mark.half, color=mark.colour, alpha=0.08, linewidth=0)


def _cells(axes: "Axes", mark: Cells, panel: Panel) -> None:
    # What seaborn.heatmap draws, without the whole figure that it draws first to see whether names overlap.
    height, width = mark.values.shape
    axes.spines[:].set_visible(False)
    mesh = axes.pcolormesh(np.ma.masked_invalid(mark.values), cmap=SEABORN[mark.scale], vmin=mark.low, vmax=mark.high)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    if mark.digits is not None:
        mesh.update_scalarmappable()
        colours: Any = mesh.get_facecolor()
        colours, size = np.reshape(colours, (height, width, -1)), 6 if width < MANY else 5.5
        for row, column in np.argwhere(~np.isnan(mark.values)):
            light = _luminance(colours[row, column]) > 0.408
            axes.text(
                column + 0.5, row + 0.5, f"{mark.values[row, column]:.{mark.digits}f}", fontsize=size,
                color=".15" if light else "w", ha="center", va="center",
            )  # fmt: skip
    for text in axes.texts:  # a rounded -0.04 is nothing
        text.set_text(text.get_text() if float(text.get_text()) else text.get_text().lstrip("-"))
    for axis, side in ((panel.x, axes.xaxis), (panel.y, axes.yaxis)):
        side.set_ticks([place + 0.5 for place in axis.places() or ()], axis.texts(), rotation=0)
        side.set_tick_params(length=0, labelsize=7)
        side.set_label_text(axis.title, fontsize=8)
        side.grid(visible=False)


def _luminance(colour: "NDArray[np.float64]") -> float:
    """How light a colour (R, G, B, ...) in [0, 1] is, by the definition of WCAG 2."""
    rgb = colour[:3]
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _colour_bar(axes: "Axes", drawing: Drawing, places: list[list["Axes"]]) -> None:
    """One for all matrices, which share their scale."""
    pairs = [both for row in zip(drawing.rows, places, strict=True) for both in zip(*row, strict=True)]
    matrices = {place: mark for panel, place in pairs for mark in panel.marks if isinstance(mark, Cells)}
    first, shown = next(iter(matrices.values()), None), list(matrices)
    figure = axes.get_figure(root=True)
    if first is None or figure is None:
        return
    slim = max(25.0, 17.0 * figure.get_figheight() / figure.get_figwidth())  # of a high column no broad bar
    figure.colorbar(shown[0].collections[0], ax=shown, label=first.title, shrink=0.8, pad=0.02, aspect=slim)


def _key(name: str, mark: Mark) -> Any:
    """What stands for a mark in the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if isinstance(mark, Bars | Spread):
        colour = mark.colour if isinstance(mark.colour, str) else mark.colour[0]
        hatched = isinstance(mark, Bars) and mark.hatched
        opacity = mark.opacity if isinstance(mark, Bars) else 1.0
        extra: dict[str, Any] = {"hatch": "///", "edgecolor": "white", "linewidth": 0} if hatched else {}
        return Patch(facecolor=colour, alpha=opacity, label=name, **extra, **edge(colour, 0.0))
    if isinstance(mark, Level):
        return Line2D([], [], color=mark.colour, ls=mark.dash, linewidth=1.0, label=name)
    assert isinstance(mark, Points)
    face = mark.look.colour if mark.filled else "none"
    marker = mark.look.marker if mark.marked else ""
    return Line2D([], [], color=mark.look.colour, ls=mark.dash, linewidth=mark.width, marker=marker,
                  markerfacecolor=face, markersize=5, label=name, **edge(mark.look.colour, mark.width))  # fmt: skip
