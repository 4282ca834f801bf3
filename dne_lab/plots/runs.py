"""Runs side by side as a figure: accuracy as classes arrive, accuracy against cost, attention on the own patch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dne_lab.analysis.runs import RunView, accuracies, table
from dne_lab.errors import LabError
from dne_lab.measure.record import RUN_FIRST
from dne_lab.plots.figure import Figure
from dne_lab.plots.series import scale
from dne_lab.plots.style import DASHES, Style, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Series(NamedTuple):
    """A named line: where its points are, its look and matplotlib's name of its dashes."""

    name: str
    x: list[int]
    y: list[float]
    look: Style
    dash: str


def series(runs: Sequence[RunView]) -> list[Series]:
    """Accuracy over the classes seen, a line a run; runs of one method share its colour and differ in their dashes.

    From the fifth run of a method on the same dashes come again, in a paler colour.
    """
    used: dict[str, int] = {}
    found = []
    for run in runs:
        method = run.record.method
        used[method] = used.get(method, -1) + 1
        x, y = accuracies(run)
        again, dash = divmod(used[method], len(DASHES))
        look = style(method)
        found.append(Series(run.label, x, y, look._replace(colour=paler(look.colour, again)), DASHES[dash][0]))
    return found


def paler(colour: str, times: int) -> str:
    """A colour #rrggbb, mixed with white so many times."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * 0.55**times):02x}" for part in parts)


def runs_figure(runs: Sequence[RunView]) -> Figure:
    """The chosen runs side by side; the table has a row a run.

    Raises:
        LabError: no run.
    """
    if not runs:
        raise LabError(f"no run is chosen. {RUN_FIRST}")
    lines = series(runs)

    def on_axes(axes: "Axes", rows: "pd.DataFrame") -> None:
        axes.set_axis_off()
        curves = axes.inset_axes((0.06, 0.34, 0.36, 0.58))
        for line in lines:
            curves.plot(
                line.x, line.y, color=line.look.colour, linestyle=line.dash, marker=line.look.marker, label=line.name
            )
        curves.set_xlabel("classes seen", fontsize=8)
        curves.set_title("accuracy over the classes seen (%)", fontsize=8, loc="center")
        curves.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2 if len(lines) > 4 else 1)
        cost = axes.inset_axes((0.5, 0.34, 0.22, 0.58))
        for line, (_, row) in zip(lines, rows.iterrows(), strict=True):
            if row["MFLOPs spent"] == row["MFLOPs spent"] and row["LA %"] == row["LA %"]:
                cost.plot(row["MFLOPs spent"], row["LA %"], color=line.look.colour, marker=line.look.marker, ms=7)
        cost.set_xlim(0, 1.15 * max([1.0, *rows["MFLOPs spent"].dropna()]))
        cost.set_xlabel("MFLOPs of one image", fontsize=8)
        cost.set_title("last accuracy (%)", fontsize=8, loc="center")
        shares = axes.inset_axes((0.8, 0.34, 0.2, 0.58))
        for place, (line, value) in enumerate(zip(lines, rows["same patch %"], strict=True)):
            if value == value:
                shares.barh(place, value, color=line.look.colour)
            else:
                shares.text(0, place, " not measured", va="center", fontsize=7)
        shares.set_yticks(range(len(lines)), [run.record.method for run in runs], fontsize=7)
        shares.set_ylim(len(lines) - 0.5, -0.5)
        shares.set_xlim(left=0)
        shares.set_title("attention on own patch (%)", fontsize=8, loc="center")
        for part in (curves, cost, shares):
            part.tick_params(labelsize=7)

    heading = f"Runs side by side: {scale(run.record for run in runs)}"
    return Figure("runs", heading, table(runs), [run.record.id for run in runs], on_axes, size=(9.6, 3.8))
