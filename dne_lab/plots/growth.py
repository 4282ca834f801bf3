"""Cost and accuracy against the number of tasks: figures 6 e and f, and growth by formula, counted and printed."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab import paper, presets
from dne_lab.errors import LabError
from dne_lab.measure import complexity
from dne_lab.measure.cost_records import CostRecord, longest
from dne_lab.measure.record import Record
from dne_lab.models.variants import DNE, IA, PROGRESSIVE, STA
from dne_lab.plots import printed
from dne_lab.plots.accuracy import accuracy_by_task
from dne_lab.plots.figure import Figure
from dne_lab.plots.series import NO_RECORD
from dne_lab.plots.style import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

GEOMETRY = "cifar100-b50-10"  # the preset whose network the cost records count
TWENTY_SIX = (50, *[2] * 25)
VARIANTS = {variant.name: variant for variant in (IA, STA, DNE, PROGRESSIVE)}
COLUMNS = ["series", "method", "source", "task", "F (G)", "remark", "record"]
FORMULA, LITERAL, SPENT, PAPER, RELEASE = "formula", "literal", "spent", "paper", "authors' code"
DASH = {FORMULA: "-", LITERAL: "", SPENT: "--"}


def cost_growth(costs: Sequence[CostRecord]) -> Figure:
    """F after each task at the CIFAR-100 geometry: by the complexity formula, counted (literal, spent) and printed.

    One curve a method and k, of the cost record with most tasks. The formula is `measure.complexity`; printed numbers
    that a remark of ``paper.tables()`` questions are crossed out, the remark is in the table. DNE and the methods that
    the paper prints are named "no record" where no cost record counts them.

    Raises:
        LabError: no cost record.
    """
    if not costs:
        raise LabError(
            "no cost record: count one, e.g. dne-lab cost dne --tasks 50,10,10 --json > dne-k1-50+10x2.json."
        )
    rows = [row for cost in longest(costs) for row in (*_counted(cost), *_by_formula(cost))]
    rows += [
        {"series": row["series"], "method": row["method"], "source": PAPER, "task": row["T"], "F (G)": row["F (G)"]}
        | {"remark": row["remark"] if row["F odd"] else "", "record": printed.PRINTED}
        for row in printed.rows("cifar100", (10, 5, 25))
        if row["method"] in ("dne", "der")
    ]
    for row in paper.authors_code_cost().to_dict("records"):
        if row["method"] == "dne" and row["step"] != "-" and row["heads_per_task"] in (1, 2, 4):
            series = f"DNE (k = {row['heads_per_task']})"
            rows.append({"series": series, "method": "dne", "source": RELEASE, "task": int(row["tasks"])})
            rows[-1] |= {"F (G)": row["gflops_2mac"], "remark": row["remark"], "record": printed.PRINTED}
    counted = {cost.label for cost in costs}
    wanted = [*((f"DNE (k = {k})", "dne") for k in (1, 2, 4)), ("DER", "der"), ("FOSTER", "foster"), ("DyTox", "dytox")]
    rows += [{"series": s, "method": m, "record": NO_RECORD} for s, m in wanted if s not in counted]
    title = "Cost of one image against the number of tasks: formula, counted, printed\n"
    title += "CIFAR-100 geometry, 12 heads first, k later"
    frame = _frame(rows)
    return Figure("cost_growth", title, frame, [c.id for c in longest(costs)], _growth_axes, _growth_plotly, (8.4, 4.4))


def figure_6e(costs: Sequence[CostRecord]) -> Figure:
    """F against the task at 50 + 2 x 25 classes for DNE, DER and FOSTER (the paper prints no numbers here).

    ``costs``: records of other streams and methods are left out; a method without one is a row "no record".
    """
    names = {"dne": "DNE (k = 1)", "der": "DER", "foster": "FOSTER"}
    fits = [c for c in costs if c.tasks == TWENTY_SIX and c.method in names and c.k in (None, 1)]
    rows = [row for cost in fits for row in _counted(cost)]
    there = {cost.method for cost in fits}
    rows += [{"series": s, "method": m, "record": NO_RECORD} for m, s in names.items() if m not in there]
    title = "Cost of one image against the task, 50 + 2 x 25 classes\nCIFAR-100 geometry, counted"
    return Figure("figure_6e", title, _frame(rows), [c.id for c in fits], _growth_axes, _growth_plotly, (7.4, 3.6))


def figure_6f(records: Iterable[Record], dataset: str = "cifar100") -> Figure:
    """Accuracy against the task at 50 + 2 x 25 classes: DNE, DER, FOSTER, and ours that the paper does not draw.

    Raises:
        LabError: no finished run of ``dataset`` on this stream.
    """
    fits = [r for r in records if printed.dataset_of(r) == dataset and r.tasks == list(TWENTY_SIX)]
    figure = accuracy_by_task(fits, ("dne", "der", "foster"))
    figure.name = "figure_6f"
    return figure


def _frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame([{"source": "", "remark": ""} | row for row in rows], columns=COLUMNS)
    return frame.astype({"task": "Int64", "F (G)": float})


def _counted(cost: CostRecord) -> list[dict[str, Any]]:
    return [
        {"series": cost.label, "method": cost.method, "source": source, "task": row["task"]}
        | {"F (G)": row[f"flops_{source}"] / 1e9, "record": cost.id}
        for source in (LITERAL, SPENT)
        for row in cost.rows
    ]


def _by_formula(cost: CostRecord) -> list[dict[str, Any]]:
    """F by `complexity.total`; methods that are no variant of the one network have no such formula here."""
    if cost.method not in VARIANTS or cost.k is None:
        return []
    network = presets.resolve(GEOMETRY).network
    heads = [network.heads[0], *[cost.k] * (len(cost.tasks) - 1)]
    sums = complexity.total(network, VARIANTS[cost.method], heads, cost.tasks)
    return [
        {"series": cost.label, "method": cost.method, "source": FORMULA, "task": number}
        | {"F (G)": value / 1e9, "record": "formula"}
        for number, value in enumerate(sums, start=1)
    ]


# The drawings -----------------------------------------------------------------------------------------------------


def _curves(table: "pd.DataFrame") -> list[tuple[str, str, str, "pd.DataFrame"]]:
    there = table[table["record"] != NO_RECORD]
    return [
        (str(series), str(rows["method"].iloc[0]), str(source), rows)
        for (series, source), rows in there.groupby(["series", "source"], sort=False)
    ]


def _growth_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    from matplotlib.lines import Line2D

    ends: list[tuple[float, float, str, str]] = []
    drawn = {series for series, _, source, _ in _curves(table) if source == LITERAL}
    by_formula = {series for series, _, source, _ in _curves(table) if source == FORMULA}
    for series, method, source, rows in _curves(table):
        look = style(method)
        x, y = rows["task"].to_numpy(float), rows["F (G)"].to_numpy(float)
        if source in (PAPER, RELEASE):
            crossed = rows["remark"].astype(str).to_numpy() != "" if source == PAPER else [False] * len(rows)
            marker = "s" if source == PAPER else "+"
            axes.scatter(x, y, s=30, marker=marker, facecolor="none" if source == PAPER else look.colour,
                         edgecolor=look.colour if source == PAPER else None, linewidth=1, zorder=4)  # fmt: skip
            axes.scatter(x[crossed], y[crossed], s=40, marker="x", color="black", linewidth=1, zorder=5)
            if series not in drawn:
                ends.append((float(x.max()), float(y.max()), series, look.colour))
            continue
        every = max(1, len(x) // 8)
        dots = look.marker if source == LITERAL else ""
        line = "--" if source == SPENT else "" if source == LITERAL and series in by_formula else "-"
        axes.plot(x, y, color=look.colour, linestyle=line, marker=dots, markersize=3.5, markevery=every, linewidth=1.1)
        if source == LITERAL:
            ends.append((float(x[-1]), float(y[-1]), series, look.colour))
    _name_ends(axes, ends)
    sources = {source for _, _, source, _ in _curves(table)}
    grey = "#404040"
    keys = [
        (FORMULA, Line2D([], [], color=grey, label="formula")),
        (
            LITERAL,
            Line2D([], [], color=grey, linestyle="" if by_formula else "-", marker="o", label="counted, literal"),
        ),
        (SPENT, Line2D([], [], color=grey, linestyle="--", label="counted, spent")),
        (PAPER, Line2D([], [], color=grey, linestyle="", marker="s", markerfacecolor="none", label="paper prints")),
        (PAPER, Line2D([], [], color="black", linestyle="", marker="x", label="printed, doubtful")),
        (RELEASE, Line2D([], [], color=grey, linestyle="", marker="+", label="authors' code, counted")),
    ]
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.margins(y=0.08)
    axes.set_xlabel("task")
    axes.set_ylabel("F: GFLOPs of one image (2 x multiply-accumulate)")
    if sources:
        axes.legend(
            handles=[key for source, key in keys if source in sources], loc="center left", bbox_to_anchor=(1.0, 0.5)
        )


def _name_ends(axes: "Axes", ends: list[tuple[float, float, str, str]]) -> None:
    """Curves carry their names at their ends, moved apart where they would overlap."""
    from math import log

    if not ends:
        return
    top = max(y for _, y, _, _ in ends)
    last, shift = 0.0, 0.0
    for x, y, series, colour in sorted(ends, key=lambda end: (end[0], end[1])):
        at = 60 * log(top / y)  # points from the top, roughly
        shift = max(0.0, shift + 9 - abs(last - at)) if last and abs(last - at) < 9 else 0.0
        axes.annotate(series, (x, y), (6, -3 + shift), textcoords="offset points", fontsize=7, color=colour,
                      bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5})  # fmt: skip
        last = at
    most = max(x for x, _, _, _ in ends)
    axes.set_xlim(0.4, most * 1.22)
    axes.set_xticks([1, *range(5, int(most) + 1, 5)])


def _growth_plotly(figure: Any, table: "pd.DataFrame") -> None:
    for series, method, source, rows in _curves(table):
        look = style(method)
        marks = source in (PAPER, RELEASE)
        symbol = {PAPER: "square-open", RELEASE: "cross-thin-open"}.get(source, look.symbol)
        figure.add_scatter(
            x=[int(n) for n in rows["task"]],
            y=[float(y) for y in rows["F (G)"]],
            name=f"{series}, {source}",
            text=[str(remark) for remark in rows["remark"]] if marks else None,
            mode="markers" if marks or source == LITERAL else "lines",
            line=None if marks else {"color": look.colour, "dash": "dash" if source == SPENT else "solid"},
            marker={"symbol": symbol, "color": look.colour, "size": 9 if marks else 5},
        )
    figure.update_layout(xaxis_title="task", yaxis={"title": "GFLOPs of one image", "type": "log"})
