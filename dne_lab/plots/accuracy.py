"""Accuracy as figures: against the classes seen, against the cost of an image, and task by task."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dne_lab.analysis.run_views import RunView, accuracies, names, short
from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import Group, Pair, groups, is_method, later_heads, pairs, tasks_text, title
from dne_lab.measure.metrics import forgetting_by_task, interval
from dne_lab.measure.record import RUN_FIRST, Record
from dne_lab.plots import matrices
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import (
    Axis,
    Bars,
    Drawing,
    Level,
    Mark,
    Panel,
    Points,
    Words,
    around,
    logarithmic,
    one,
    whole_ticks,
)
from dne_lab.plots.series import drawn, ids, one_dataset, over, room, scale, seeds, series, with_missing
from dne_lab.plots.style import Style, line_of, solid, style, tone

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
    return Figure("accuracy_by_task", heading, frame, ids(made), _by_task, room(frame))


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
    return Figure("accuracy_against_cost", heading, frame, ids(made), _against_cost, room(frame))


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
    return Figure(f"accuracy_matrix_{record.id}", heading, frame, {"": [record.id]}, matrices.of_tasks, size)


# The drawings -----------------------------------------------------------------------------------------------------


def _by_task(table: "pd.DataFrame") -> Drawing:
    marks: list[Mark] = []
    for label, rows, line in drawn(table, "seen accuracy %"):
        mean, width = rows["seen accuracy %"].tolist(), rows["+-"].to_numpy(float)
        if len(rows) == 1:
            dash, half = "--" if line.dash == "-" else line.dash, float(width[0])
            marks.append(Level(label, mean[0], line.look.colour, dash, half=half, note=rows["record"].iloc[0]))
            continue
        more = {"filled": line.filled, "notes": rows["record"].tolist(), **around(mean, width)}
        marks.append(Points(label, rows["classes"].tolist(), mean, line.look, line.dash, band=True, **more))
    x = Axis("classes seen", ticks=whole_ticks(table["classes"].dropna()))
    return one(marks, x, Axis("accuracy over the classes seen (%)"))


TAGS = 10  # marks of methods that occur several times have names beside them; where there are more, the legend tells


def _against_cost(table: "pd.DataFrame") -> Drawing:
    unit, factor = _unit(table)
    shown = drawn(table, "F spent (G)", "params (M)")
    order = list(dict.fromkeys(str(rows["method"].iloc[0]) for _, rows, _ in shown))
    # k = 1, 2, ... before 4 heads each, ..., whatever the first expert has
    shown.sort(key=lambda one: (order.index(str(one[1]["method"].iloc[0])), " each)" in one[0]))
    used: dict[str, int] = {}
    methods = [str(rows["method"].iloc[0]) for _, rows, _ in shown]
    alike = [method for method in methods if methods.count(method) > 1]
    tagged = alike if len(alike) <= TAGS else []
    marks: list[Mark] = []
    for label, rows, _ in shown:
        row = rows.iloc[0]
        spent, literal, last = row["F spent (G)"] * factor, row["F literal (G)"] * factor, row["LA %"]
        method = str(row["method"])
        number = used[method] = used.get(method, -1) + 1
        look = solid(style(method))  # hollow means the literal path here: tones tell those of one method apart
        look = look._replace(colour=tone(look.colour, number, methods.count(method)))
        area = _area(row["params (M)"], table)
        notes = [f"{row['params (M)']:.2f} M parameters, {row['record']}"]
        half = row["+-"]
        said = notes if half != half else [f"± {half:.1f} (95% interval), {notes[0]}"]
        if literal == literal:
            hollow = Points(f"{label}, literal path", [literal], [last], look, filled=False, area=area, notes=said)
            # the same words under the mouse: the end of this line lies on the mark
            lead = Points(label, [spent, literal], [last, last], look, "-", area=0.0, notes=said * 2, width=0.8)
            marks += [replace(lead, listed=False), replace(hollow, listed=False)]
        marks.append(
            Points(label, [spent], [last], look, area=area, notes=notes, tags=[label] if method in tagged else [],
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


# Runs side by side as a figure: accuracy as classes arrive, accuracy against cost, attention on the own patch.


def run_series(runs: Sequence[RunView]) -> list[Points]:
    """Accuracy over the classes seen, a line per run; runs of one method differ as `line_of` says."""
    used: dict[str, int] = {}
    found = []
    for run, name in zip(runs, names(runs), strict=True):
        method = run.record.method
        used[method] = used.get(method, -1) + 1
        x, y = accuracies(run)
        look, dash, filled = line_of(method, used[method])
        found.append(Points(name, list(map(float, x)), y, look, dash, filled=filled))
    return found


def runs_panel(lines: Sequence[Points]) -> Panel:
    """The lines of `run_series` on their axes."""
    seen = whole_ticks((x for line in lines for x in line.x), 7)
    return Panel(lines, Axis("classes seen", ticks=seen), Axis("accuracy over the classes seen (%)"), wide=1.5)


def cost_panels(table: "pd.DataFrame", lines: Sequence[Points]) -> list[Panel]:
    """Three panels: accuracy over the classes seen, last accuracy against cost, attention on the own patch.

    Args:
        table: a row per line (`run_views.table` or `run_groups.group_table`).
        lines: of `run_series` or `run_curves.group_series`.
    """
    cost: list[Mark] = []
    shares: list[Mark] = []
    for place, (line, (_, row)) in enumerate(zip(lines, table.iterrows(), strict=True)):
        if row["MFLOPs spent"] == row["MFLOPs spent"] and row["LA %"] == row["LA %"]:
            at = [row["MFLOPs spent"]], [row["LA %"]]
            cost.append(Points(line.name, *at, solid(line.look), area=50.0, listed=False))
        share = row["same patch %"]
        if share == share:
            shares.append(Bars(line.name, [place], [share], line.look.colour, across=True, listed=False))
        else:
            shares.append(Words(" not measured", 0.0, place, beside="left"))
    return [
        runs_panel(lines),
        Panel(cost, Axis("MFLOPs of one image", low=0.0), Axis("last accuracy (%)", least=LEAST_SPAN)),
        Panel(
            shares,
            Axis("attention on\nown patch (%)", low=0.0),
            Axis("", "category", tuple(map(short, table["method"])), reverse=True),
        ),
    ]


# Method beside method: final accuracy of IA and STA (figure 4, right), and what each method forgets of each task.

DIFFERENCE = "STA - IA"
SIDE = 0.17  # of a place
SIDES = {"ia": -SIDE, "sta": SIDE}
JOINED = Style("#b0b0b0", "o", "circle")
LEAST_SPAN = 5.0  # points of accuracy on the axis


def figure_4_right(records: Iterable[Record]) -> Figure:
    """Final accuracy of IA and STA: every seed, mean and 95% interval, and their difference paired by seed.

    A place on the axis is a stream and a number of heads on which both ran under equal settings. The paper prints no
    numbers here; it states that STA is below IA.

    Raises:
        LabError: no such pair, or several data sets.
    """
    import pandas as pd

    made = one_dataset(records)
    found = [p for p in pairs(made, is_method("sta"), is_method("ia"), same_heads=True) if p.strict]
    if not found:
        raise LabError(f"IA and STA have no finished runs of equal settings among the records. {RUN_FIRST}")
    rows = [row for pair in found for row in _pair_rows(pair, _place(pair, found))]
    frame = pd.DataFrame(rows).astype({"seed": "Int64", "+-": float})
    members: dict[str, list[str]] = {}
    for pair in found:
        for group in (pair.other, pair.one):
            for name in (group.first.method.upper(), DIFFERENCE):
                mine = members.setdefault(name, [])
                mine += [record.id for record in group.records if record.id not in mine]
    them = [group for pair in found for group in (pair.other, pair.one)]
    title = f"Final accuracy of IA and STA: {scale(r for g in them for r in g.records)}\n{over(them)}; "
    title += "the paper states: STA below IA"
    width = max(4.2, 1.6 + 1.5 * len(found))
    return Figure("figure_4_right", title, frame, members, _pair_marks, (max(5.6, width), 3.8))


def _place(pair: Pair, others: Sequence[Pair]) -> str:
    """The stream, and k and settings where they tell pairs apart."""
    text, k = tasks_text(pair.one.first.tasks), later_heads(pair.one.first)
    if len({later_heads(p.one.first) for p in others}) > 1:
        text += f", k = {k}"
    same = [p for p in others if tasks_text(p.one.first.tasks) == tasks_text(pair.one.first.tasks)]
    same = [p for p in same if later_heads(p.one.first) == k]
    extra = pair.one.label.removeprefix(f"STA (k = {k})") if len(same) > 1 else ""
    return text + extra


def _pair_rows(pair: Pair, place: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for group in (pair.other, pair.one):
        first = {"place": place, "series": group.label, "method": group.first.method}
        by_seed = group.last_by_seed()
        rows += [first | {"seed": s, "LA %": la, "+-": None, "record": f"seed {s}"} for s, la in by_seed.items()]
        mean, width = interval(list(by_seed.values()))
        rows.append(first | {"seed": None, "LA %": mean, "+-": width, "record": seeds([group])})
    mean, width = pair.difference()
    paired = f"paired, {len(pair.seeds)} seed" + "s" * (len(pair.seeds) > 1)
    rows.append({"place": place, "series": DIFFERENCE, "method": "", "seed": None, "LA %": mean, "+-": width})
    rows[-1]["record"] = paired
    return rows


def forgetting(records: Iterable[Record], methods: Sequence[str] = ()) -> Figure:
    """What each method has forgotten of each task at the end: best accuracy on it before the last task minus the last.

    Points of accuracy; mean and 95% interval over seeds; negative: the task got better. The last task has no value.
    Arguments are those of `accuracy.accuracy_by_task`; joint models have one task and are left out.

    Raises:
        LabError: no finished run of several tasks, several data sets, or several streams: their tasks are no pairs.
    """
    import pandas as pd

    made = [group for group in one_dataset(records) if len(group.first.tasks) > 1]
    if not made:
        raise LabError(f"no finished run of several tasks among the records. {RUN_FIRST}")
    rows = [row for group in made for row in _forgetting_rows(group)]
    frame = with_missing(pd.DataFrame(rows).astype({"+-": float}), made, methods)
    members = [record for group in made for record in group.records]
    streams = ", ".join(dict.fromkeys(tasks_text(r.tasks) for r in members))
    if len({tuple(record.tasks) for record in members}) > 1:
        raise LabError(f"records of several streams ({streams}) in one figure: draw one figure for each.")
    heading = f"Forgetting of each task at the end: {scale(members)}\n{streams} classes, {over(made)}"
    return Figure("forgetting", heading, frame, ids(made), _forgetting_marks, room(frame))


def _forgetting_rows(group: Group) -> list[dict[str, Any]]:
    per_task = zip(*(forgetting_by_task(record.accuracy) for record in group.records), strict=True)
    rows = []
    for number, values in enumerate(per_task, start=1):
        mean, width = interval(values)
        rows.append(series(group) | {"task": number, "forgetting": mean, "+-": width, "record": seeds([group])})
    return rows


def has_pair(records: Iterable[Record]) -> bool:
    """Whether `figure_4_right` can be drawn from these records of one data set."""
    return any(p.strict for p in pairs(groups(records), is_method("sta"), is_method("ia"), same_heads=True))


# The drawings -----------------------------------------------------------------------------------------------------


def _pair_marks(table: "pd.DataFrame") -> Drawing:
    """A place a pair: seeds joined, beside them mean and interval of either method."""
    places = list(dict.fromkeys(table["place"]))
    marks: list[Mark] = []
    ticks = []
    for at, place in enumerate(places):
        here = table[table["place"] == place]
        row = here[here["series"] == DIFFERENCE].iloc[0]
        width = "" if row["+-"] != row["+-"] else f" ± {row['+-']:.1f}"
        ticks.append(f"{place}\n{DIFFERENCE} = {row['LA %']:.1f}{width} points\n({row['record']})")
        one_each = {method: here[(here["method"] == method) & here["seed"].notna()] for method in SIDES}
        both = one_each["ia"].merge(one_each["sta"], on="seed")
        marks += [
            Points(
                f"{DIFFERENCE} = {sta - ia:.1f} points",
                [at - SIDE, at + SIDE],
                [ia, sta],
                JOINED,
                "-",
                area=0.0,
                notes=[f"seed {seed}"] * 2,
                width=0.7,
                listed=False,
            )
            for ia, sta, seed in both[["LA %_x", "LA %_y", "seed"]].itertuples(index=False)
        ]
        for method, shift in SIDES.items():
            rows, look = one_each[method], style(method)
            mean = here[(here["method"] == method) & here["seed"].isna()].iloc[0]
            dots = look._replace(marker="o", symbol="circle")
            marks.append(
                Points(f"{method.upper()}, one seed", [at + shift] * len(rows), rows["LA %"].tolist(), dots, area=12.0,
                       notes=rows["record"].tolist(), listed=False)
            )  # fmt: skip
            last = [mean["LA %"]]
            marks.append(
                Points(method.upper(), [at + 1.5 * shift], last, look, area=45.0, notes=[mean["record"]],
                       **around(last, [mean["+-"]]))
            )  # fmt: skip
    return one(marks, Axis("", "category", tuple(ticks)), Axis("last accuracy (%)", least=LEAST_SPAN))


def _forgetting_marks(table: "pd.DataFrame") -> Drawing:
    shown = drawn(table, "forgetting")
    most = int(table["task"].max())
    marks: list[Mark] = [Level("nothing forgotten", 0.0, dash="-", listed=False)]
    for number, (label, rows, line) in enumerate(shown):
        shift = 0.5 * ((number + 0.5) / len(shown) - 0.5) if most <= 12 else 0.0  # intervals side by side
        x, y = (rows["task"].to_numpy(float) + shift).tolist(), rows["forgetting"].tolist()
        more = {"filled": line.filled, "notes": rows["record"].tolist(), **around(y, rows["+-"])}
        marks.append(Points(label, x, y, line.look, line.dash, width=0.9, **more))
    tasks = Axis("task", ticks=tuple(map(float, range(1, most + 1, max(1, -(-most // 13))))))
    return one(marks, tasks, Axis("forgetting (points of accuracy)"))
