"""Method beside method: final accuracy of IA and STA (figure 4, right), and what each method forgets of each task."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.errors import LabError
from dne_lab.measure.groups import Group, groups, later_heads, tasks_text
from dne_lab.measure.metrics import forgetting_by_task, interval
from dne_lab.measure.pairs import Pair, is_method, pairs
from dne_lab.measure.record import RUN_FIRST, Record
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Level, Mark, Points, around, one
from dne_lab.plots.series import drawn, one_dataset, over, room, scale, seeds, series, with_missing
from dne_lab.plots.style import Style, style

if TYPE_CHECKING:
    import pandas as pd

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
    members = list(dict.fromkeys(r.id for pair in found for g in (pair.other, pair.one) for r in g.records))
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
    ids = [record.id for record in members]
    return Figure("forgetting", heading, frame, ids, _forgetting_marks, room(frame))


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
        ticks.append(f"{place}\n{DIFFERENCE} = {row['LA %']:.1f}{width}\n({row['record']})")
        one_each = {method: here[(here["method"] == method) & here["seed"].notna()] for method in SIDES}
        both = one_each["ia"].merge(one_each["sta"], on="seed")
        marks += [
            Points("", [at - SIDE, at + SIDE], list(ends), JOINED, "-", area=0.0, width=0.7, listed=False)
            for ends in both[["LA %_x", "LA %_y"]].itertuples(index=False)
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
    for number, (label, rows, look, (dash, _)) in enumerate(shown):
        shift = 0.5 * ((number + 0.5) / len(shown) - 0.5) if most <= 12 else 0.0  # intervals side by side
        x, y = (rows["task"].to_numpy(float) + shift).tolist(), rows["forgetting"].tolist()
        more = {"notes": rows["record"].tolist(), **around(y, rows["+-"])}
        marks.append(Points(label, x, y, look, dash, width=0.9, **more))
    tasks = Axis("task", ticks=tuple(map(float, range(1, most + 1, max(1, -(-most // 13))))))
    return one(marks, tasks, Axis("forgetting (points of accuracy)"))
