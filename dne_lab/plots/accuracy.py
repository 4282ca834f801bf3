"""Accuracy as figures: against the classes seen, against the cost of an image, and task by task."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dne_lab.errors import LabError
from dne_lab.measure.groups import tasks_text, title
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.plots import matrices
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Level, Mark, Points, around, logarithmic, one, whole_ticks
from dne_lab.plots.series import drawn, one_dataset, over, room, scale, seeds, series, with_missing
from dne_lab.plots.style import solid

if TYPE_CHECKING:
    import pandas as pd


def accuracy_by_task(records: Iterable[Record], methods: Sequence[str] = ()) -> Figure:
    """Seen accuracy after each task against the classes seen: mean and 95% interval over seeds, joint as a level.

    Args:
        records: finished runs on one data set; unfinished ones are left out.
        methods: names that the table must hold; those without a record get a row "no record" and are not drawn.

    Raises:
        LabError: no finished run, or runs on several data sets.
    """
    import pandas as pd

    made = one_dataset(records)
    rows: list[dict[str, Any]] = []
    for group in made:
        per_task = zip(*(record.seen_accuracy for record in group.records), strict=True)
        for number, values in enumerate(per_task, start=1):
            mean, width = interval(values)
            rows.append(
                series(group)
                | {"task": number, "classes": sum(group.first.tasks[:number])}
                | {"seen accuracy %": mean, "+-": width, "record": seeds([group])}
            )
    frame = with_missing(pd.DataFrame(rows).astype({"+-": float}), made, methods)
    members = [record for group in made for record in group.records]
    streams = " / ".join(dict.fromkeys(tasks_text(r.tasks) for r in members if not r.joint)) or "joint"
    heading = f"Accuracy over the classes seen: {scale(members)}\n{streams} classes, {over(made)}"
    return Figure("accuracy_by_task", heading, frame, [r.id for r in members], _by_task, room(frame))


def accuracy_against_cost(records: Iterable[Record], methods: Sequence[str] = ()) -> Figure:
    """LA against the GFLOPs (2 x MAC) of one image: filled = spent, hollow = literal path, area = parameters.

    Arguments and errors are those of `accuracy_by_task`. A group whose cost is not in its records has a row, no mark.
    """
    import pandas as pd

    made = one_dataset(records)
    rows = []
    for group in made:
        mean, width = interval(list(group.last_by_seed().values()))
        first = group.first
        rows.append(
            series(group)
            | {"LA %": mean, "+-": width}
            | {"F spent (G)": None if first.flops_spent is None else first.flops_spent / 1e9}
            | {"F literal (G)": None if first.flops_literal is None else first.flops_literal / 1e9}
            | {"params (M)": first.params["total"] / 1e6 if first.params.get("total") else None}
            | {"record": seeds([group])}
        )
    numbers = ["LA %", "+-", "F spent (G)", "F literal (G)", "params (M)"]
    frame = with_missing(pd.DataFrame(rows).astype(dict.fromkeys(numbers, float)), made, methods)
    members = [record for group in made for record in group.records]
    heading = f"Last accuracy against the cost of one image\n{scale(members)}, {over(made)}"
    return Figure("accuracy_against_cost", heading, frame, [r.id for r in members], _against_cost, room(frame))


def accuracy_matrix(record: Record) -> Figure:
    """R of one run as a heat map: accuracy on the classes of each task (columns) after each task (rows), percent.

    Raises LabError for a run that has not finished a task.
    """
    import pandas as pd

    if not record.accuracy:
        raise LabError(f"record of {record.id}: no task is finished yet. Let the run go on, then draw it.")
    rows = [
        {"after task": after, "task": task, "accuracy %": value}
        for after, row in enumerate(record.accuracy, start=1)
        for task, value in enumerate(row, start=1)
    ]
    heading = f"Accuracy on each task: {title(record)}, seed {record.seed}\n{scale([record])}, "
    heading += f"{tasks_text(record.tasks)} classes"
    frame = pd.DataFrame(rows)
    size = matrices.inches(1, len(record.accuracy), len(record.accuracy))
    return Figure(f"accuracy_matrix_{record.id}", heading, frame, [record.id], matrices.of_tasks, size)


# The drawings -----------------------------------------------------------------------------------------------------


def _by_task(table: "pd.DataFrame") -> Drawing:
    marks: list[Mark] = []
    for label, rows, look, (dash, _) in drawn(table, "seen accuracy %"):
        mean, width = rows["seen accuracy %"].tolist(), rows["+-"].to_numpy(float)
        if len(rows) == 1:
            dashed = "--" if dash == "-" else dash
            marks.append(Level(label, mean[0], look.colour, dashed, half=float(width[0]), note=rows["record"].iloc[0]))
            continue
        notes, ends = rows["record"].tolist(), around(mean, width)
        marks.append(Points(label, rows["classes"].tolist(), mean, look, dash, band=True, notes=notes, **ends))
    x = Axis("classes seen", ticks=whole_ticks(table["classes"].dropna()))
    return one(marks, x, Axis("accuracy over the classes seen (%)"))


def _against_cost(table: "pd.DataFrame") -> Drawing:
    unit, factor = _unit(table)
    shown = drawn(table, "F spent (G)", "params (M)")
    methods = [str(rows["method"].iloc[0]) for _, rows, _, _ in shown]
    marks: list[Mark] = []
    for label, rows, look, _ in shown:
        row = rows.iloc[0]
        spent, literal, last = row["F spent (G)"] * factor, row["F literal (G)"] * factor, row["LA %"]
        look = solid(look)
        area = _area(row["params (M)"], table)
        notes = [f"{row['params (M)']:.2f} M parameters, {row['record']}"]
        if literal == literal:
            hollow = Points(f"{label}, literal path", [literal], [last], look, filled=False, area=area, notes=notes)
            lead = Points("", [spent, literal], [last, last], look, "-", area=0.0, width=0.8, listed=False)
            marks += [lead, replace(hollow, listed=False)]
        alike = methods.count(row["method"]) > 1  # the same colour and marker: only its name tells it apart
        marks.append(
            Points(label, [spent], [last], look, area=area, notes=notes, tags=[label] if alike else [],
                   **around([last], [row["+-"]]))
        )  # fmt: skip
    costs = [x for mark in marks if isinstance(mark, Points) for x in mark.x]
    title = f"{unit} of one image (2 x multiply-accumulate)\nfilled: spent, hollow: literal path; area: parameters"
    x = Axis(title, "log") if logarithmic(costs, 20) else Axis(title, low=0.0)
    return one(marks, x, Axis("last accuracy (%)"))


def _unit(table: "pd.DataFrame") -> tuple[str, float]:
    """GFLOPs, or for small networks MFLOPs, and how many of them one GFLOP is."""
    return ("MFLOPs", 1000.0) if table[["F spent (G)", "F literal (G)"]].max().max() < 0.1 else ("GFLOPs", 1.0)


def _area(params: float, table: "pd.DataFrame") -> float:
    """Marker area in square points, proportional to the parameters; the largest network gets 160."""
    return max(12.0, 160.0 * params / float(table["params (M)"].max()))
