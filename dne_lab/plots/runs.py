"""Runs side by side as a figure: accuracy as classes arrive, accuracy against cost, attention on the own patch."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dne_lab.analysis.runs import RunView, accuracies, table
from dne_lab.errors import LabError
from dne_lab.measure.record import RUN_FIRST
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Bars, Drawing, Mark, Panel, Points, Words
from dne_lab.plots.series import scale
from dne_lab.plots.style import DASHES, Style, solid, style

if TYPE_CHECKING:
    import pandas as pd


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
    draw = functools.partial(_marks, lines=series(runs), methods=[run.record.method for run in runs])
    heading = f"Runs side by side: {scale(run.record for run in runs)}"
    return Figure("runs", heading, table(runs), [run.record.id for run in runs], draw, (8.4, 3.8))


def _marks(table: "pd.DataFrame", lines: Sequence[Series], methods: Sequence[str]) -> Drawing:
    """Three panels: accuracy over the classes seen, last accuracy against cost, attention on the own patch."""
    curves: list[Mark] = []
    cost: list[Mark] = []
    shares: list[Mark] = []
    for place, (line, (_, row)) in enumerate(zip(lines, table.iterrows(), strict=True)):
        curves.append(Points(line.name, list(map(float, line.x)), line.y, line.look, line.dash))
        if row["MFLOPs spent"] == row["MFLOPs spent"] and row["LA %"] == row["LA %"]:
            at = [row["MFLOPs spent"]], [row["LA %"]]
            cost.append(Points(line.name, *at, solid(line.look), area=50.0, listed=False))
        share = row["same patch %"]
        if share == share:
            shares.append(Bars(line.name, [place], [share], line.look.colour, across=True, listed=False))
        else:
            shares.append(Words(" not measured", 0.0, place, beside="left"))
    panels = [
        Panel(curves, Axis("classes seen"), Axis("accuracy over the classes seen (%)"), wide=1.5),
        Panel(cost, Axis("MFLOPs of one image", low=0.0), Axis("last accuracy (%)")),
        Panel(shares, Axis("attention on own patch (%)", low=0.0), Axis("", "category", tuple(methods), reverse=True)),
    ]
    return Drawing([panels])
