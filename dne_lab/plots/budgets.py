"""Accuracy at one budget of memory: LA against the bytes of the final model and its exemplars together."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dne_lab.measure.beside import by_budget
from dne_lab.measure.comparison import TITLES, groups, tasks_text
from dne_lab.measure.record import Record
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Points, around, logarithmic, one
from dne_lab.plots.series import over, scale
from dne_lab.plots.style import solid, style
from dne_lab.plots.tradeoff import main_stream

if TYPE_CHECKING:
    import pandas as pd


def accuracy_over_bytes(records: Iterable[Record]) -> Figure:
    """LA of every method against the megabytes that its model and its exemplars take together (MEMO, ICLR 2023).

    A method with several totals (wider networks, or ``memory.bytes``) is a line. Joint models, which keep no exemplars,
    and runs on validation images are left out.

    Args:
        records: of one data set; drawn are those on 50 + 10 x 5 classes, or else on the tasks of most of them.
    """
    kept = [r for r in records if r.finished and not r.validation and not r.joint]
    tasks = main_stream(kept)
    kept = [record for record in kept if record.tasks == tasks]
    made = groups(kept)
    table = by_budget(kept).rename(columns={"method": "series", "id": "method"})
    what = f"{scale(kept)}, {over(made)}" if made else "no record yet"
    heading = f"Last accuracy at a budget of memory\n{what}, {tasks_text(tasks)} classes"
    return Figure("accuracy_over_bytes", heading, table, [record.id for record in kept], _marks, (7.0, 3.8))


def _marks(table: "pd.DataFrame") -> Drawing:
    """A line per method: its networks and budgets from small to large."""
    marks: list[Any] = []
    for name, rows in table.groupby("method", sort=False):
        method = str(name)
        rows = rows.sort_values("total (MB)", kind="stable")
        notes = [
            f"{series}, seeds: {seeds}, AA {aa:.1f}%"
            for series, seeds, aa in zip(rows["series"], rows["seeds"], rows["AA"], strict=True)
        ]
        x, y = rows["total (MB)"].tolist(), rows["LA"].tolist()
        ends = around(y, rows["LA +-"])
        marks.append(
            Points(TITLES.get(method, method), x, y, solid(style(method)), "-", notes=notes, width=0.9, **ends)
        )
    totals = [x for mark in marks for x in mark.x]
    title = "bytes of the final model (4 per parameter) and of its exemplars, in MB (10^6)"
    if logarithmic(totals, 4):
        room = (max(totals) / min(totals)) ** 0.1
        x_axis = Axis(title, "log", low=min(totals) / room, high=max(totals) * room)
    else:
        x_axis = Axis(title, low=0.0, high=1.1 * max(totals, default=1.0))
    return one(marks, x_axis, Axis("last accuracy (%)"))
