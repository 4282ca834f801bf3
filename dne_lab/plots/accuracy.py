"""Accuracy as figures: against the classes seen, against the cost of an image, and task by task."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.errors import LabError
from dne_lab.measure.groups import tasks_text, title
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.plots import matrices
from dne_lab.plots.figure import Figure
from dne_lab.plots.labels import Tag, place
from dne_lab.plots.series import drawn, one_dataset, over, room, scale, seeds, series, with_missing
from dne_lab.plots.style import log_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


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
    return Figure(
        "accuracy_by_task", heading, frame, [r.id for r in members], _by_task_axes, _by_task_plotly, room(frame)
    )


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
    return Figure(
        "accuracy_against_cost", heading, frame, [r.id for r in members], _cost_axes, _cost_plotly, room(frame)
    )


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
    side = min(6.4, 2.6 + 0.36 * len(record.accuracy))
    name = f"accuracy_matrix_{record.id}"
    return Figure(
        name, heading, pd.DataFrame(rows), [record.id], matrices.draw, matrices.draw_plotly, (side + 0.8, side)
    )


# The drawings -----------------------------------------------------------------------------------------------------


def _by_task_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    for label, rows, look, (dash, _) in drawn(table, "seen accuracy %"):
        mean, width = rows["seen accuracy %"].to_numpy(float), rows["+-"].to_numpy(float)
        if len(rows) == 1:
            axes.axhline(
                mean[0], color=look.colour, linestyle="--" if dash == "-" else dash, linewidth=1.2, label=label
            )
            axes.axhspan(mean[0] - width[0], mean[0] + width[0], color=look.colour, alpha=0.08, linewidth=0)
            continue
        classes = rows["classes"].to_numpy(float)
        axes.fill_between(classes, mean - width, mean + width, color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(classes, mean, color=look.colour, marker=look.marker, linestyle=dash, label=label)
    ticks = sorted({int(n) for n in table["classes"].dropna()})
    axes.set_xticks(ticks[:: -max(1, -(-len(ticks) // 13))])  # at most 13, the last one among them
    axes.set_xlabel("classes seen")
    axes.set_ylabel("accuracy over the classes seen (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _by_task_plotly(figure: Any, table: "pd.DataFrame") -> None:
    span = [int(table["classes"].min()), int(table["classes"].max())]
    for label, rows, look, (_, dash) in drawn(table, "seen accuracy %"):
        level = len(rows) == 1
        mean = rows["seen accuracy %"].to_list() * (2 if level else 1)
        width = [None if w != w else w for w in rows["+-"].astype(float)]
        figure.add_scatter(
            x=span if level else [int(n) for n in rows["classes"]],
            y=mean,
            error_y=None if level or None in width else {"type": "data", "array": width, "thickness": 1},
            name=label,
            mode="lines" if level else "lines+markers",
            line={"color": look.colour, "dash": "dash" if level and dash == "solid" else dash},
            marker={"symbol": look.symbol, "size": 8},
        )
    figure.update_layout(xaxis_title="classes seen", yaxis_title="accuracy over the classes seen (%)")


def _cost_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    from matplotlib.markers import MarkerStyle

    unit, factor = _unit(table)
    costs = []
    tags: list[Tag] = []
    paths: list[list[tuple[float, float]]] = []
    marks = drawn(table, "F spent (G)", "params (M)")
    methods = [str(rows["method"].iloc[0]) for _, rows, _, _ in marks]
    for label, rows, look, _ in marks:
        row = rows.iloc[0]
        spent, literal, last = row["F spent (G)"] * factor, row["F literal (G)"] * factor, row["LA %"]
        marker = look.marker if look.marker != "_" else "s"
        area = _area(row["params (M)"], table)
        if literal == literal:
            axes.plot([spent, literal], [last, last], color=look.colour, linewidth=0.8, zorder=1)
            hollow: dict[str, Any] = {"facecolor": "white", "edgecolor": look.colour}
            paint = hollow if MarkerStyle(marker).is_filled() else {"color": look.colour}
            axes.scatter(literal, last, s=area, marker=marker, zorder=2, **paint)
        axes.errorbar(spent, last, yerr=row["+-"], color=look.colour, linewidth=1, capsize=2, zorder=3)
        axes.scatter(spent, last, s=area, marker=marker, color=look.colour, zorder=3)
        alike = methods.count(row["method"]) > 1  # the same colour and marker: only its name tells it apart
        tags += [Tag(label if alike else "", spent, last, look.colour, area)] if spent == spent else []
        if row["+-"] == row["+-"]:  # an interval
            paths.append([(spent, last - row["+-"]), (spent, last + row["+-"])])
        if literal == literal and spent == spent:
            tags.append(Tag("", literal, last, look.colour, area))
            paths.append([(spent, last), (literal, last)])
        axes.plot([], [], linestyle="", marker=marker, color=look.colour, label=label)
        costs += [cost for cost in (spent, literal) if cost == cost]
    if costs and max(costs) > 20 * min(costs) > 0:
        log_axis(axes, max(costs) / min(costs))
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(
        f"{unit} of one image (2 x multiply-accumulate)\nfilled: spent, hollow: literal path; area: parameters"
    )
    axes.set_ylabel("last accuracy (%)")
    if costs:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    place(axes, tags, paths)


def _cost_plotly(figure: Any, table: "pd.DataFrame") -> None:
    unit, factor = _unit(table)
    for label, rows, look, _ in drawn(table, "F spent (G)", "params (M)"):
        row = rows.iloc[0]
        symbol = look.symbol if look.symbol != "line-ew" else "square"
        costs = [float(c) * factor for c in (row["F spent (G)"], row["F literal (G)"]) if c == c]
        figure.add_scatter(
            x=costs,
            y=[float(row["LA %"])] * len(costs),
            name=label,
            mode="lines+markers",
            line={"color": look.colour, "width": 1},
            marker={
                "symbol": [symbol, f"{symbol}-open"][: len(costs)],
                "size": 1.4 * _area(row["params (M)"], table) ** 0.5,
            },
            text=[f"{name}, {row['params (M)']:.2f} M parameters" for name in ("spent", "literal")][: len(costs)],
        )
    axis = f"{unit} of one image (2 x multiply-accumulate)"
    figure.update_layout(xaxis_title=axis, yaxis_title="last accuracy (%)")


def _unit(table: "pd.DataFrame") -> tuple[str, float]:
    """GFLOPs, or for small networks MFLOPs, and how many of them one GFLOP is."""
    return ("MFLOPs", 1000.0) if table[["F spent (G)", "F literal (G)"]].max().max() < 0.1 else ("GFLOPs", 1.0)


def _area(params: float, table: "pd.DataFrame") -> float:
    """Marker area in square points, proportional to the parameters; the largest network gets 160."""
    return max(12.0, 160.0 * params / float(table["params (M)"].max()))
