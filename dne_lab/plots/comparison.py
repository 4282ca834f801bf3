"""Method beside method: final accuracy of IA and STA (figure 4, right), and what each method forgets of each task."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.errors import LabError
from dne_lab.measure.groups import Group, groups, later_heads, tasks_text
from dne_lab.measure.metrics import forgetting_by_task, interval
from dne_lab.measure.pairs import Pair, is_method, pairs
from dne_lab.measure.record import RUN_FIRST, Record
from dne_lab.plots.figure import Figure
from dne_lab.plots.series import drawn, one_dataset, over, room, scale, seeds, series, with_missing
from dne_lab.plots.style import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

DIFFERENCE = "STA - IA"
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
    return Figure("figure_4_right", title, frame, members, _pair_axes, _pair_plotly, (max(5.6, width), 3.8))


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
    return Figure("forgetting", heading, frame, ids, _forgetting_axes, _forgetting_plotly, room(frame))


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


def _pair_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    places = list(dict.fromkeys(table["place"]))
    named: set[str] = set()
    ticks = []
    for at, place in enumerate(places):
        here = table[table["place"] == place]
        ends: dict[int, list[float]] = {}
        for offset, method in ((-0.17, "ia"), (0.17, "sta")):
            rows, look = here[here["method"] == method], style(method)
            one = rows[rows["seed"].notna()]
            mean = rows[rows["seed"].isna()].iloc[0]
            for seed, last in zip(one["seed"], one["LA %"], strict=True):
                ends.setdefault(int(seed), []).append(float(last))
            axes.scatter([at + offset] * len(one), one["LA %"], s=12, color=look.colour, alpha=0.45, linewidth=0)
            axes.errorbar(
                at + offset * 1.4, mean["LA %"], yerr=mean["+-"], color=look.colour, marker=look.marker, capsize=3,
                linestyle="", markersize=6.5, label=None if method in named else method.upper(),
            )  # fmt: skip
            named.add(method)
        for both in ends.values():
            if len(both) == 2:
                axes.plot([at - 0.17, at + 0.17], both, color="#b0b0b0", linewidth=0.7, zorder=1)
        row = here[here["series"] == DIFFERENCE].iloc[0]
        width = "" if row["+-"] != row["+-"] else f" ± {row['+-']:.1f}"
        ticks.append(f"{place}\n{DIFFERENCE} = {row['LA %']:.1f}{width}\n({row['record']})")
    axes.set_xticks(range(len(places)), ticks)
    axes.set_xlim(-0.6, len(places) - 0.4)
    low, high = axes.get_ylim()
    if high - low < LEAST_SPAN:  # a difference of a tenth of a point must not fill the axis
        axes.set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("last accuracy (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _pair_plotly(figure: Any, table: "pd.DataFrame") -> None:
    for method in ("ia", "sta"):
        rows, look = table[(table["method"] == method) & table["seed"].isna()], style(method)
        widths = [None if w != w else w for w in rows["+-"].astype(float)]
        figure.add_scatter(
            x=list(rows["place"]),
            y=[float(y) for y in rows["LA %"]],
            error_y=None if None in widths else {"type": "data", "array": widths},
            name=method.upper(),
            mode="markers",
            marker={"symbol": look.symbol, "color": look.colour, "size": 10},
        )
    figure.update_layout(yaxis_title="last accuracy (%)", xaxis_type="category", scattermode="group")


def _forgetting_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    shown = drawn(table, "forgetting")
    most = int(table["task"].max())
    for number, (label, rows, look, (dash, _)) in enumerate(shown):
        shift = 0.5 * ((number + 0.5) / len(shown) - 0.5) if most <= 12 else 0.0  # intervals side by side
        x, y = rows["task"].to_numpy(float) + shift, rows["forgetting"].to_numpy(float)
        axes.plot(x, y, color=look.colour, marker=look.marker, linestyle=dash, linewidth=0.9, label=label)
        axes.errorbar(x, y, yerr=rows["+-"].to_numpy(float), fmt="none", ecolor=look.colour, capsize=1.5, linewidth=0.8)
    axes.axhline(0, color="#404040", linewidth=0.8)
    axes.set_xticks(range(1, most + 1, max(1, -(-most // 13))))
    axes.set_xlabel("task")
    axes.set_ylabel("forgetting (points of accuracy)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _forgetting_plotly(figure: Any, table: "pd.DataFrame") -> None:
    for label, rows, look, (_, dash) in drawn(table, "forgetting"):
        widths = [None if w != w else w for w in rows["+-"].astype(float)]
        figure.add_scatter(
            x=[int(n) for n in rows["task"]],
            y=[float(y) for y in rows["forgetting"]],
            error_y=None if None in widths else {"type": "data", "array": widths, "thickness": 1},
            name=label,
            mode="lines+markers",
            line={"color": look.colour, "dash": dash, "width": 1},
            marker={"symbol": look.symbol, "size": 8},
        )
    figure.update_layout(xaxis_title="task", yaxis_title="forgetting (points of accuracy)")
