"""One list of marks, two renderers: every figure of the committed records, mark by mark in matplotlib and in plotly."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas

from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.commands import report
from dne_lab.measure import record
from dne_lab.models.variants import IA, STA
from dne_lab.plots import labels
from dne_lab.plots.figure import Figure
from dne_lab.plots.groups import entropy_over_images
from dne_lab.plots.marks import (
    Axis,
    Bars,
    Cells,
    Drawing,
    Level,
    Panel,
    Points,
    Spread,
    Words,
    around,
    logarithmic,
    one,
    whole_ticks,
)
from dne_lab.plots.style import DASHES, Style

RECORDS = Path(__file__).parents[2] / "figures" / "records"
LOOK = Style("#0072b2", "o", "circle")


def besides(table: pd.DataFrame) -> Drawing:
    """What no figure of the records draws."""
    boxes = Spread("boxes", [0, 1], [[1.0, 2, 3, 9], [2.0, 2, 5]], "#0072b2")
    lying = Bars("lying", [0, 1], [3.0, 4.0], "#d55e00", across=True, **around([3.0, 4.0], [1.0, math.nan]))
    bound = Level("bound", 2.0, upright=True, half=0.5)
    left = Panel([boxes], Axis("", "category", ("a", "b")))
    y = Axis("", "category", ("one", "two"), reverse=True)
    return Drawing([[left, Panel([lying, Words("not measured", 0.5, 1.0), bound], Axis("points"), y)]])


BESIDES = Figure("besides", "Boxes, words and bars to the right", pd.DataFrame({"x": [1]}), [], besides)


def figures() -> Iterator[tuple[str, Figure]]:
    """Every kind of figure that has marks, of committed records."""
    for name in ("reproduce_digits_s0-4", "digits100-steps", "cifar100-small-baselines"):
        for kind, figure in report.drawings(record.find(RECORDS / name)).items():
            yield f"{name} {kind}", figure
    places = [RECORDS / name for name in ("cost", "timing", "attention", "ablation", "probe")]
    yield from report.measurements(places).items()
    groups = {
        name: attention_groups(tiny.model(variant), tiny.images(6), by_image=True, progress=False)
        for name, variant in (("ia", IA), ("sta", STA))
    }
    yield "entropy over images", entropy_over_images(groups)
    yield "besides", BESIDES


FIGURES = dict(figures())


@pytest.fixture(scope="module", params=FIGURES, ids=str)
def both(request: pytest.FixtureRequest) -> tuple[Drawing, list[Any], Any]:
    """The marks, the matplotlib axes of each panel, and the plotly figure."""
    pytest.importorskip("plotly")
    figure = FIGURES[request.param]
    drawing = figure.marks()
    assert drawing is not None
    canvas = Canvas(figsize=figure.size, layout="constrained")
    axes = canvas.add_subplot()
    figure.draw(axes)
    places = canvas.axes[:1] if len(drawing.panels) == 1 else canvas.axes[1 : 1 + len(drawing.panels)]
    return drawing, places, figure.interactive()


def traces(plotly: Any, number: int) -> list[Any]:
    """The traces of one panel, without bands."""
    tail = "" if number == 0 else str(number + 1)
    return [t for t in plotly.data if t.xaxis == f"x{tail}" and not (t.type == "scatter" and t.fill == "toself")]


def test_what_is_said_under_the_mouse_names_the_records() -> None:
    """Of every figure from records each mark of a series, and of several the first three."""
    for name, figure in FIGURES.items():
        drawing = figure.marks()
        if drawing is None or not figure.records or not isinstance(figure._by_series, dict) or not figure._by_series:
            continue
        notes: list[str] = []
        for mark in (mark for panel in drawing.panels for mark in panel.marks):
            if isinstance(mark, Cells):
                notes += [note for row in mark.notes for note in row if note]
            elif isinstance(mark, Points | Bars) and mark.notes and any(mark.notes):
                notes += [note for note in mark.notes if note and "printed" not in note]
        named = [note for note in notes if any(one in note for one in figure.records)]
        assert len(named) >= 0.8 * len(notes) > 0, name  # the rest: printed numbers, lines of reference
        assert all(note.count("-s") <= 6 for note in named)


@pytest.mark.parametrize("both", {name.split()[-1]: name for name in FIGURES}.values(), indirect=True)
def test_plotly_takes_the_tree_as_it_is(both: tuple[Drawing, list[Any], Any], request: pytest.FixtureRequest) -> None:
    """Every property is one that plotly knows, and none becomes another one: of a figure of each kind."""
    tree = FIGURES[request.node.callspec.params["both"]].plotly()
    assert _numbers(json.loads(both[2].to_json())) == _numbers({**tree, "config": None})


def _numbers(value: Any) -> Any:
    """With numbers as four decimals, and without what is not given."""
    if isinstance(value, dict):
        return {key: found for key, inner in value.items() if (found := _numbers(inner)) not in (None, {}, [])}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def test_axes_are_the_same(both: tuple[Drawing, list[Any], Any]) -> None:
    drawing, places, plotly = both
    for number, (panel, axes) in enumerate(zip(drawing.panels, places, strict=True)):
        tail = "" if number == 0 else str(number + 1)
        matrix = any(isinstance(mark, Cells) for mark in panel.marks)
        for axis, scale, limits, side, label in (
            (plotly.layout[f"xaxis{tail}"], axes.get_xscale(), axes.get_xlim(), axes.xaxis, axes.get_xlabel()),
            (plotly.layout[f"yaxis{tail}"], axes.get_yscale(), axes.get_ylim(), axes.yaxis, axes.get_ylabel()),
        ):
            beside = [note.text for note in plotly.layout.annotations]
            assert axis.type == scale and label.replace("\n", "<br>") in ["", axis.title.text, *beside]
            ends = [math.log10(end) for end in limits] if scale == "log" else [end - 0.5 * matrix for end in limits]
            assert list(axis.range) == pytest.approx(ends)
            if axis.tickvals is not None:
                assert side.get_majorticklocs() - 0.5 * matrix == pytest.approx(np.array(axis.tickvals))
                texts = [text.get_text().replace("\n", "<br>") for text in side.get_majorticklabels()]
                assert texts == list(axis.ticktext)


def test_every_mark_is_in_both(both: tuple[Drawing, list[Any], Any]) -> None:
    drawing, places, plotly = both
    for number, (panel, axes) in enumerate(zip(drawing.panels, places, strict=True)):
        marks = [mark for mark in panel.marks if not isinstance(mark, Words)]
        own = traces(plotly, number)
        main = [
            t
            for t in own
            if t.type == "box" or (t.hoverinfo != "skip" and (t.type == "heatmap" or t.marker.opacity != 0))
        ]
        assert len(main) == len(marks)
        every = [c for c in axes.collections if isinstance(c, PathCollection)]
        for edge, inner in itertools.pairwise(every):  # of a hollow mark it is a ring around it, at the same places
            if edge.get_gid() == "edge":
                assert np.array_equal(edge.get_offsets(), inner.get_offsets())
                assert (edge.get_sizes() > inner.get_sizes()).all()
        scatters = iter([c for c in every if c.get_gid() != "edge"])
        for mark, trace in zip(marks, main, strict=True):
            if isinstance(mark, Points):
                points(mark, trace, axes, scatters)
            elif isinstance(mark, Bars):
                bars(mark, trace, axes)
            elif isinstance(mark, Cells):
                cells(mark, trace, axes)
            elif isinstance(mark, Level):
                along, at = (trace.y, trace.x) if mark.upright else (trace.x, trace.y)
                assert list(at) == [mark.at] * 2 and len(along) == 2 and trace.line.color == mark.colour
                lines = [line.get_xdata() if mark.upright else line.get_ydata() for line in axes.lines]
                assert any(len(line) == 2 and list(line) == [mark.at] * 2 for line in lines)
            elif isinstance(mark, Spread):
                assert [float(y) for y in trace.y] == [value for values in mark.values for value in values]
                said = [text for t in own if t.name == mark.name for text in t.hovertext or ()]
                assert len(said) == 3 * len(mark.places) and all("median" in text for text in said)
                corners = [patch.get_path().vertices for patch in axes.patches]
                boxes = {round((c[:, 0].min() + c[:, 0].max()) / 2, 6): np.ptp(c[:, 1]) for c in corners}
                expected = [float(np.subtract(*np.quantile(values, [0.75, 0.25]))) for values in mark.values]
                assert [boxes[round(place, 6)] for place in mark.places] == pytest.approx(expected)


def points(mark: Points, trace: Any, axes: Any, scatters: Iterator[PathCollection]) -> None:
    assert list(trace.x) == (list(mark.x) or [None]) and list(trace.y) == (list(mark.y) or [None])
    assert trace.name == mark.name and (trace.line.color, trace.marker.color) == (mark.look.colour,) * 2
    assert ("lines" in trace.mode) == bool(mark.dash) and ("markers" in trace.mode) == mark.marked
    if mark.dash and mark.x:
        assert trace.line.dash == dict(DASHES)[mark.dash]
        lines = [line for line in axes.lines if to_hex(line.get_color()) == mark.look.colour]
        order = np.argsort(mark.x, kind="stable") if len(mark.low) else np.arange(len(mark.x))
        assert any(
            len(line.get_xdata()) == len(mark.x)
            and np.allclose(np.asarray(line.get_xdata(), float), np.array(mark.x)[order], equal_nan=True)
            and np.allclose(np.asarray(line.get_ydata(), float), np.array(mark.y)[order], equal_nan=True)
            for line in lines
        ), mark.name
    if mark.marked:
        drawn = next(scatters)
        at = np.column_stack([mark.x, mark.y])[:: mark.every].reshape(-1, 2)
        assert np.allclose(np.ma.filled(drawn.get_offsets(), np.nan), at, equal_nan=True)
        assert drawn.get_sizes() == pytest.approx(np.array(mark.areas())[:: mark.every]) if mark.x else True
        if any(mark.crossed):
            crossed = next(scatters)
            assert len(crossed.get_offsets()) == sum(mark.crossed)
    if len(mark.low) and not mark.band and np.isfinite(mark.low).any():
        middle, ends = (mark.x, trace.error_x) if mark.across else (mark.y, trace.error_y)
        there = np.isfinite(mark.low)
        up, down = (np.array(side, dtype=float) for side in (ends.array, ends.arrayminus))  # None becomes NaN
        assert np.add(middle, up)[there] == pytest.approx(np.array(mark.high)[there])
        assert np.subtract(middle, down)[there] == pytest.approx(np.array(mark.low)[there])
        segments = [s for c in axes.collections if hasattr(c, "get_segments") for s in c.get_segments() if len(s) == 2]
        sides = {tuple(np.round(sorted(s[:, 0 if mark.across else 1]), 6)) for s in segments}
        for low, high in zip(np.array(mark.low)[there], np.array(mark.high)[there], strict=True):
            assert tuple(np.round((low, high), 6)) in sides, (mark.name, low, high)
    for text, note in zip(trace.hovertext or (), mark.notes, strict=False):
        assert note in text and mark.name in text


def bars(mark: Bars, trace: Any, axes: Any) -> None:
    lengths, places = (trace.x, trace.y) if mark.across else (trace.y, trace.x)
    assert list(lengths) == list(mark.lengths) and list(places) == list(mark.places)
    assert list(trace.base) == mark.bases()
    drawn = set()
    for patch in axes.patches:
        if hasattr(patch, "get_xy") and hasattr(patch, "get_width"):
            (x, y), width, height = patch.get_xy(), patch.get_width(), patch.get_height()
            where = (y + height / 2, x, width) if mark.across else (x + width / 2, y, height)
            drawn.add((*np.round(where, 6), to_hex(patch.get_facecolor())))
    for wanted in zip(mark.places, mark.bases(), mark.lengths, strict=True):
        assert (*np.round(wanted, 6), mark.colour) in drawn


def cells(mark: Cells, trace: Any, axes: Any) -> None:
    (mesh,) = (c for c in axes.collections if isinstance(c, QuadMesh))
    drawn = np.ma.filled(np.ma.asarray(mesh.get_array(), float), np.nan).reshape(mark.values.shape)
    shown = np.array([[np.nan if value is None else value for value in row] for row in trace.z])
    assert np.allclose(drawn, shown, equal_nan=True) and np.allclose(shown, mark.values, equal_nan=True)
    assert mesh.get_clim() == (trace.zmin, trace.zmax) == (mark.low, mark.high)
    if mark.digits is not None:
        texts = [text.get_text() for text in axes.texts]
        assert texts == [text for row in trace.text for text in row if text]


def test_legend_names_and_labels_at_marks_are_the_same(both: tuple[Drawing, list[Any], Any]) -> None:
    drawing, places, plotly = both
    canvas = places[0].get_figure()
    legends = [legend for legend in (*(p.get_legend() for p in places), *canvas.legends) if legend is not None]
    names = [text.get_text() for legend in legends for text in legend.get_texts()]
    listed = [trace.name for trace in plotly.data if trace.showlegend and trace.type != "heatmap"]
    assert names == [name for name, _ in drawing.listed()] and sorted(listed) == sorted(names)
    texts = [note.text for note in plotly.layout.annotations]
    for panel, axes in zip(drawing.panels, places, strict=True):
        if any(isinstance(mark, Cells) for mark in panel.marks):
            continue
        written = [text.get_text() for text in axes.texts]
        tags = [tag.text for mark in panel.marks if isinstance(mark, Points) for tag in labels.tags(mark) if tag.text]
        words = [mark.text for mark in panel.marks if isinstance(mark, Words)]
        assert sorted(written) == sorted([*tags, *words])
        assert all(text.replace("\n", "<br>") in texts for text in written)


@pytest.mark.parametrize("dash", ["-", "--"])
def test_the_handles_of_a_legend_show_dashes_beside_their_marker(dash: str) -> None:
    pytest.importorskip("plotly")
    lines = [Points(name, [0.0, 1.0], [1.0, 2.0], LOOK, style) for name, style in (("a", "-"), ("b", dash))]
    figure = Figure("lines", "Lines", pd.DataFrame({"x": [1]}), [], lambda table: one(lines, Axis(), Axis()))
    axes = Canvas(figsize=figure.size, layout="constrained").add_subplot()
    figure.draw(axes)
    legend = axes.get_legend()
    assert legend is not None and (legend.handlelength > 3) == (dash == "--")
    assert (figure.interactive().layout.legend.itemwidth > 40) == (dash == "--")


def test_every_table_row_with_a_number_can_be_found_under_the_mouse() -> None:
    """Of the figure whose rows are its marks one by one."""
    figure = FIGURES["reproduce_digits_s0-4 forgetting"]
    said = [text for trace in figure.interactive().data for text in trace.hovertext or ()]
    for row in figure.table.dropna(subset="forgetting").to_dict("records"):
        mine = [text for text in said if text.startswith(f"{row['series']}<br>")]
        value = f"{row['forgetting']:.4g}" if abs(row["forgetting"]) < 10 else f"{row['forgetting']:.2f}"
        assert any(value in text and "95% interval" in text and row["record"] in text for text in mine), row


def test_ends_ticks_and_scales() -> None:
    panel = one([Points("p", [1.0, 100.0], [70.0, 70.1], LOOK)], Axis("x", "log"), Axis("y", least=5.0)).panels[0]
    (left, right), (bottom, top) = panel.ends()
    assert left < 1 < 100 < right and left > 0.5 and top - bottom >= 5
    assert panel.x.texts((left, right)) == ["1", "10", "100"]
    assert Axis("x", "log").texts((0.9, 60.0)) == ["1", "2", "5", "10", "20", "50"]
    assert whole_ticks([*range(1, 27), float("nan")])[-1] == 26 and len(whole_ticks(range(1, 27))) <= 13
    assert logarithmic([1.0, 30.0, math.nan], 20) and not logarithmic([0.0, 30.0], 20) and not logarithmic([], 2)
    assert one([], Axis(), Axis(low=0.0, high=0.0)).panels[0].ends()[0] == (-0.05, 1.05)
