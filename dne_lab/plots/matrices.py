"""Accuracy on each task after each task, as heat maps: one small matrix a method."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dne_lab.errors import LabError
from dne_lab.measure.groups import Group, tasks_text
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import RUN_FIRST, Record
from dne_lab.plots.figure import Figure
from dne_lab.plots.series import NO_RECORD, one_dataset, over, scale, seeds, series, with_missing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ANNOTATED = 12  # tasks up to which a matrix carries its numbers
ACROSS = 4  # matrices in a row


def accuracy_matrices(records: Iterable[Record], methods: Sequence[str] = ()) -> Figure:
    """R of every method: accuracy on the classes of each task (columns) after each task (rows), percent.

    Mean over seeds; the table has the half width of the 95% interval. Joint models have one task and are left out.

    Args:
        records: finished runs on one data set and stream; unfinished ones are left out.
        methods: names that the table must hold; those without a record get a row "no record" and are not drawn.

    Raises:
        LabError: no finished run of several tasks, several data sets, or several streams.
    """
    import pandas as pd

    made = [group for group in one_dataset(records) if len(group.first.tasks) > 1]
    if not made:
        raise LabError(f"no finished run of several tasks among the records. {RUN_FIRST}")
    streams = list(dict.fromkeys(tasks_text(group.first.tasks) for group in made))
    if len(streams) > 1:
        raise LabError(f"records of several streams ({', '.join(streams)}) in one figure: draw one figure for each.")
    table = with_missing(
        pd.DataFrame([row for group in made for row in _rows(group)]).astype({"+-": float}), made, methods
    )
    members = [record for group in made for record in group.records]
    heading = f"Accuracy on each task after each task (%): {scale(members)}\n{streams[0]} classes, "
    heading += over(made).replace("mean and 95% interval", "mean")
    whole, _ = mosaic(table)
    cell = 0.36 if len(made[0].first.tasks) <= ANNOTATED else 0.1
    size = (max(5.6, cell * whole.shape[1] + 2.2), cell * (whole.shape[0] + 2) + 1.0)
    return Figure("accuracy_matrix", heading, table, [r.id for r in members], draw, draw_plotly, size)


def _rows(group: Group) -> list[dict[str, Any]]:
    rows = []
    for after in range(len(group.first.tasks)):
        for task in range(after + 1):
            mean, width = interval([record.accuracy[after][task] for record in group.records])
            rows.append(
                series(group)
                | {"after task": after + 1, "task": task + 1, "accuracy %": mean, "+-": width}
                | {"record": seeds([group])}
            )
    return rows


# The drawings, of one matrix or of several -------------------------------------------------------------------------

Block = tuple[str, int, int]  # name, first row, first column


def _squares(table: "pd.DataFrame") -> dict[str, NDArray[Any]]:
    """A matrix a series by its name ("" for a table of one run); NaN where a task was not yet there."""
    rows = table[table["record"] != NO_RECORD] if "record" in table else table
    several = list(rows.groupby("series", sort=False)) if "series" in rows else [("", rows)]
    size = int(rows["after task"].max())
    found = {}
    for name, mine in several:
        square = np.full((size, size), np.nan)
        places = mine["after task"].to_numpy(int) - 1, mine["task"].to_numpy(int) - 1
        square[places] = mine["accuracy %"].to_numpy(float)
        found[str(name)] = square
    return found


def mosaic(table: "pd.DataFrame") -> tuple[NDArray[Any], list[Block]]:
    """All matrices in one, with gaps of NaN between them, and where each begins."""
    squares = _squares(table)
    size = len(next(iter(squares.values())))
    text = _line(size)
    below, beside = round(2.2 * text), round(1.4 * text)
    across = min(ACROSS, math.ceil(math.sqrt(len(squares))) + (len(squares) > 4))
    high, wide = size + below, size + beside
    whole = np.full((high * -(-len(squares) // across) - below, wide * across - beside), np.nan)
    blocks = []
    for number, (name, square) in enumerate(squares.items()):
        top, left = high * (number // across), wide * (number % across)
        whole[top : top + size, left : left + size] = square
        blocks.append((name, top, left))
    return whole, blocks


def _line(size: int) -> float:
    """Cells that a line of text is high: more where cells are small."""
    return 1.0 if size <= ANNOTATED else 3.0


def draw(axes: "Axes", table: "pd.DataFrame") -> None:
    """The matrices on matplotlib axes."""
    whole, blocks = mosaic(table)
    size, several = int(table["after task"].max()), "series" in table
    font, line = 7 if several else 9, _line(size)
    image = axes.imshow(whole, cmap="cividis", vmin=0, vmax=100)
    if size <= ANNOTATED:
        for (i, j), value in np.ndenumerate(whole):
            if value == value:
                colour = "white" if value < 55 else "black"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=font)
    ticks = range(0, size, 1 if size <= ANNOTATED else 5)
    for name, top, left in blocks:
        if not several:
            continue
        axes.text(left - 0.5, top - 0.5 - 0.15 * line, name, ha="left", va="bottom", fontsize=8)
        for task in ticks:
            at = top + size - 0.5 + 0.15 * line
            axes.text(left + task, at, str(task + 1), ha="center", va="top", fontsize=font)
    rows = sorted({top for _, top, _ in blocks})
    axes.set_yticks([top + t for top in rows for t in ticks], [str(t + 1) for t in ticks] * len(rows))
    axes.set_xticks([] if several else list(ticks), [] if several else [str(t + 1) for t in ticks])
    axes.grid(visible=False)
    if several:
        axes.tick_params(length=0, labelsize=font)
        axes.spines[:].set_visible(False)
        axes.set_ylim(whole.shape[0] - 0.5 + line, -0.5 - 1.2 * line)
    axes.set_xlabel("test images of task")
    axes.set_ylabel("after task")
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label="accuracy (%)", shrink=0.8)


def draw_plotly(figure: Any, table: "pd.DataFrame") -> None:
    """The matrices as one plotly heat map."""
    if "series" in table:
        whole, blocks = mosaic(table)
        size = int(table["after task"].max())
        words = [["" for _ in row] for row in whole]
        for name, top, left in blocks:
            for i in range(size):
                for j in range(i + 1):
                    words[top + i][left + j] = f"{name}: task {j + 1} after task {i + 1}"
            figure.add_annotation(
                x=left - 0.5, y=top - 0.6, text=name, showarrow=False, xanchor="left", yanchor="bottom"
            )
        figure.add_heatmap(
            z=_cells(whole), text=words, hovertemplate="%{text}<br>%{z:.1f}%<extra></extra>", zmin=0, zmax=100,
            colorscale="Cividis", colorbar={"title": "%"},
        )  # fmt: skip
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False, autorange="reversed")
        return
    (square,) = _squares(table).values()
    names = [str(number) for number in range(1, len(square) + 1)]
    figure.add_heatmap(
        z=_cells(square), x=names, y=names, zmin=0, zmax=100, colorscale="Cividis", colorbar={"title": "%"}
    )
    figure.update_layout(xaxis={"title": "test images of task", "type": "category"}, width=520, height=480)
    figure.update_yaxes(title="after task", type="category", autorange="reversed")


def _cells(whole: NDArray[Any]) -> list[list[float | None]]:
    return [[None if value != value else float(value) for value in row] for row in whole]
