"""Accuracy on each task after each task, as heat maps: one small matrix per method."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.confusion import Confusion
from dne_lab.analysis.maps import Maps
from dne_lab.analysis.run_views import RunView
from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import Group, tasks_text
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import RUN_FIRST, Record
from dne_lab.models.attention import TASK1, TASK2
from dne_lab.plots.figure import WIDEST, Figure
from dne_lab.plots.marks import Axis, Cells, Drawing, Panel
from dne_lab.plots.series import NO_RECORD, ids, one_dataset, over, scale, seeds, series, with_missing
from dne_lab.plots.style import KIND_WORDS

if TYPE_CHECKING:
    import pandas as pd


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
    side = len(made[0].first.tasks)
    return Figure("accuracy_matrix", heading, table, ids(made), of_tasks, inches(len(made), side, side))


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


def inches(panels: int, rows: int, columns: int, across: int | None = None) -> tuple[float, float]:
    """Size of a drawing of so many matrices, ``across`` of them side by side."""
    across = _across(panels, across)
    cell = min(0.36 if columns <= ANNOTATED else 0.12, (WIDEST - 1.0 - 0.5 * across) / (across * columns))
    below = -(-panels // across)
    words = 0.5 if below > 1 else 0.75  # heading and the label below, for which one row leaves no room between rows
    return max(4.6, across * (cell * columns + 0.5) + 1.0), below * (cell * rows + 0.62) + words


def _across(panels: int, across: int | None) -> int:
    """Matrices side by side: about as many as there are rows of them."""
    return min(ACROSS, across or math.ceil(math.sqrt(panels)) + (panels > ACROSS))


def of_tasks(table: "pd.DataFrame") -> Drawing:
    """Accuracy on each task after each task: a panel a series, or one for a table of one run."""
    rows = table[table["record"] != NO_RECORD] if "record" in table else table
    several = list(rows.groupby("series", sort=False)) if "series" in rows else [("", rows)]
    side = int(rows["after task"].max())
    names = tuple(str(number) for number in range(1, side + 1))
    panels = []
    for name, mine in several:
        square = np.full((side, side), np.nan)
        after, task = mine["after task"].to_numpy(int), mine["task"].to_numpy(int)
        square[after - 1, task - 1] = mine["accuracy %"].to_numpy(float)
        more = mine.get("+-", [math.nan] * len(mine)), mine.get("record", [""] * len(mine))
        cells = zip(after, task, *more, strict=True)
        notes = {(a - 1, t - 1): _note(str(name), a, t, width, record) for a, t, width, record in cells}
        panels.append((str(name), square, notes))
    return grid(panels, ("after task", names), ("test images of task", names), Colours("accuracy (%)", 0, 100))


def _note(name: str, after: int, task: int, width: float, record: str) -> str:
    parts = [name, f"task {task} after task {after}", record]
    return "<br>".join(filter(None, parts)) + (f"<br>95% interval ± {width:.2f}" if width == width else "")


class Colours(NamedTuple):
    """What colours mean: the bar's title and its ends, and the name of the scale (see `Cells`)."""

    title: str
    low: float
    high: float
    scale: Literal["cividis", "rdbu_r"] = "cividis"


def grid(
    panels: Sequence[tuple[str, NDArray[Any], Mapping[tuple[int, int], str]]],
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    colours: Colours,
    *,
    across: int | None = None,
    digits: int = 0,
    annotated: int = ANNOTATED,
) -> Drawing:
    """Matrices that share their rows, columns and colours, side by side and below each other.

    Args:
        panels: name, values (NaN: no cell), and what is said of a cell under the mouse.
        rows, columns: the axis' title, and their names.
        across: matrices in a row; None: about as many as there are rows of them.
        digits: decimals of the numbers in the cells.
        annotated: columns up to which there are such numbers.
    """
    count = len(panels)
    across = _across(count, across)
    horizontal, vertical = _names(*columns), _names(*rows)
    shown = digits if len(columns[1]) <= annotated else None
    made: list[list[Panel]] = []
    for number, (name, values, notes) in enumerate(panels):
        if number % across == 0:
            made.append([])
        words = [[notes.get((i, j), "") for j in range(len(columns[1]))] for i in range(len(rows[1]))]
        below = number + across >= count  # nothing stands below it: the titles of axes are said once
        x = horizontal if below else replace(horizontal, title="")
        y = vertical if number % across == 0 else replace(vertical, title="")
        made[-1].append(Panel([Cells(values, *colours, shown, words)], x, y, textwrap.fill(name, 20)))
    return Drawing(made, legend=False)


def _names(title: str, names: Sequence[str]) -> Axis:
    """All names, or of many every fifth."""
    ticks = tuple(map(float, range(0, len(names), 5))) if len(names) > ANNOTATED else None
    return Axis(title, "category", tuple(names), ticks)


# Which heads task attention reads: the mean of its weights in every layer, as matrices.


def heads_read(maps: Maps) -> Figure:
    """The weight of each head that one expert reads, mean over images, query heads and patches, percent.

    A matrix for each of the two task attention blocks, a row for each layer.

    Args:
        maps: of `probe`, of kinds task1 and task2 or one of them, of one expert.

    Raises:
        LabError: no task attention, several experts.
    """
    import pandas as pd

    found = [m for m in maps if m.kind in (TASK1, TASK2)]
    experts = {m.expert for m in found}
    if len(experts) != 1:
        asked = f"maps of experts {sorted(experts)}" if found else "no map of task attention"
        raise LabError(f"heads_read: {asked}; must be of one: probe(model, kind=('task1', 'task2'), expert=2).")
    (reader,) = experts
    axes = found[0].axes
    columns = [f"e{e} h{h}" for e, h in zip(axes.key_expert, axes.key_head, strict=True)]
    rows = [[m.kind, m.layer, *(100 * m.values.double().mean(dim=(0, 1, 2)).numpy())] for m in found]
    table = pd.DataFrame(rows, columns=["block", "layer", *columns]).sort_values(["block", "layer"], ignore_index=True)
    layers = sorted(table["layer"].unique())
    top = max(10.0, 10 * np.ceil(table[columns].to_numpy().max() / 10))

    def marks(table: "pd.DataFrame") -> Drawing:
        panels: list[tuple[str, Any, dict[tuple[int, int], str]]] = []
        for kind, mine in table.groupby("block"):
            block = KIND_WORDS[str(kind)]
            values = mine.set_index("layer")[columns].reindex(layers).to_numpy(float)
            notes = {
                (i, j): f"{block}, layer {layer}<br>expert {reader} reads head {head} of expert {read}"
                for i, layer in enumerate(layers)
                for j, (read, head) in enumerate(zip(axes.key_expert, axes.key_head, strict=True))
            }
            panels.append((block, values, notes))
        across = "head that is read (expert, head)", [name.replace(" ", "\n") for name in columns]
        return grid(panels, ("layer", [str(n) for n in layers]), across, Colours("weight (%)", 0.0, top), across=2)

    heading = f"Whom expert {reader} reads: mean weight of each head, percent; uniform: {100 / len(columns):.1f}"
    size = inches(table["block"].nunique(), len(layers), len(columns), 2)
    return Figure("heads_read", heading, table, [], marks, size)


# What is taken for what ---------------------------------------------------------------------------------------------


def confusion_matrix(found: Confusion, run: RunView) -> Figure:
    """Which classes (or tasks) a run took for which after a task: percent of the test images of each row.

    Args:
        found: of `confusion`.
        run: whose it is.
    """
    import pandas as pd

    shares = found.shares()
    rows = [
        {f"true {found.by}": true, f"predicted {found.by}": guess, "images": int(found.counts[i, j])}
        | {"share %": float(shares[i, j])}
        for i, true in enumerate(found.names)
        for j, guess in enumerate(found.names)
    ]
    heading = f"What is taken for what after task {found.after}: {run.label}\n{scale([run.record])}, percent of a row"
    side = len(found.names)
    frame, size = pd.DataFrame(rows), inches(1, side, side)
    return Figure(f"confusion_{run.record.id}", heading, frame, {"": [run.record.id]}, _confused, size)


def _confused(table: "pd.DataFrame") -> Drawing:
    true, predicted = table.columns[:2]
    by = str(true).removeprefix("true ")
    names = list(dict.fromkeys(table[true]))
    square = table["share %"].to_numpy(float).reshape(len(names), len(names))
    images = table["images"].to_numpy(int).reshape(square.shape)
    notes = {
        (i, j): f"{by} {mine} taken for {by} {guess}" + (" (right)" if i == j else "") + f"<br>{images[i, j]} images"
        for i, mine in enumerate(names)
        for j, guess in enumerate(names)
    }
    axes = (str(true), names), (str(predicted), names)
    return grid([("", square, notes)], *axes, Colours("images of a row (%)", 0, 100), annotated=20)
