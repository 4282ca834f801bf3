"""Accuracy against scale: figures 1 (right) and 6 a to d, our records beside the paper's printed numbers."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.measure.groups import Group, depth, even_heads, groups, tasks_text, title
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.plots import printed
from dne_lab.plots.figure import Figure
from dne_lab.plots.labels import Tag, place
from dne_lab.plots.series import NO_RECORD, over, scale, seeds
from dne_lab.plots.style import log_axis, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Label = Callable[[Record], str | None]  # what a record is called in a figure; None: it is not in it
FIRST_STREAM = (50, 10, 10, 10, 10, 10)
DEEPER = (34, 50, 101, 152)
SINGLE = ("icarl", "podnet", "foster", "dytox")
COLUMNS = ["series", "method", "source", "LA %", "+-", "F (G)", "F spent (G)", "params (M)", "remark", "record"]


def figure_1_right(records: Iterable[Record], dataset: str = "cifar100") -> Figure:
    """Network expansion: LA against F for IA with k heads in every expert, the first too, DER and DNE.

    The paper draws this figure without numbers; its DER and DNE are those of table 1. Its IA is "multi-DyTox".

    Args:
        records: of any data set; those of ``dataset`` on 50 + 10 x 5 classes are drawn (or, where it has none, on the
            stream with most of its runs).
    """

    def label(record: Record) -> str | None:
        if record.method == "ia":
            return title(record) if even_heads(record) else None
        return _plain(record, ("der", "dne"))

    wanted = [("IA (1 head each)", "ia"), *((f"IA ({k} heads each)", "ia") for k in (4, 12)), ("DER", "der")]
    wanted += [(f"DNE (k = {k})", "dne") for k in (1, 2, 4)]
    return _tradeoff("figure_1_right", "Network expansion", records, dataset, label, wanted)


def figure_6ab(records: Iterable[Record], dataset: str = "cifar100") -> Figure:
    """LA against F of all methods, their widths matched to DNE's k = 1, 2, 4 (a: CIFAR-100, b: ImageNet-100).

    The paper prints no numbers for the widened networks; the hollow marks are table 1. FOSTER's deeper backbones are
    figure 6 c's. Arguments: `figure_1_right`.
    """
    methods = (*SINGLE, "der", "dne", "ia", "sta", "progressive")
    wanted = [(printed.TITLES[name], name) for name in (*SINGLE, "der")]
    wanted += [(f"DNE (k = {k})", "dne") for k in (1, 2, 4)]
    name = f"figure_6{'b' if dataset == 'imagenet100' else 'a'}"

    def label(record: Record) -> str | None:
        return None if depth(record) in DEEPER else _plain(record, methods)

    return _tradeoff(name, "Accuracy and scale", records, dataset, label, wanted)


def figure_6cd(records: Iterable[Record], dataset: str = "cifar100") -> Figure:
    """FOSTER with several backbones against DNE with k = 1, 2, 4, 7 (c: CIFAR-100, d: ImageNet-100).

    The hollow marks are table 1: FOSTER with ResNet-18, DNE with k = 1, 2, 4. Of networks of several widths those of
    the width with most backbones are drawn. Arguments: `figure_1_right`.
    """
    records = list(records)
    backbones: dict[Any, set[int | None]] = {}
    for record in (r for r in records if r.method == "foster" and printed.dataset_of(r) == dataset):
        backbones.setdefault(record.network.get("width"), set()).add(depth(record))
    width = max(backbones, key=lambda w: len(backbones[w]), default=None)

    def label(record: Record) -> str | None:
        if record.method == "foster":
            layers = depth(record)
            text = "FOSTER" if layers is None else f"FOSTER, ResNet-{layers}"
            return text if record.network.get("width") == width else None
        return _plain(record, ("dne",))

    wanted = [(f"FOSTER, ResNet-{layers}", "foster") for layers in (18, *DEEPER)]
    wanted += [(f"DNE (k = {k})", "dne") for k in (1, 2, 4, 7)]
    name = f"figure_6{'d' if dataset == 'imagenet100' else 'c'}"
    return _tradeoff(name, "FOSTER's backbones and DNE", records, dataset, label, wanted)


def _plain(record: Record, methods: Sequence[str]) -> str | None:
    return title(record) if record.method in methods else None


def main_stream(records: Sequence[Record]) -> list[int]:
    """50 + 10 x 5 where a record has it, else the tasks of most records; joint models are not asked."""
    streams = [record.tasks for record in records if not record.joint] or [list(FIRST_STREAM)]
    return list(FIRST_STREAM) if list(FIRST_STREAM) in streams else max(streams, key=streams.count)


def _tradeoff(
    name: str,
    heading: str,
    records: Iterable[Record],
    dataset: str,
    label: Label,
    wanted: Sequence[tuple[str, str]],
) -> Figure:
    import pandas as pd

    tested = [r for r in records if r.finished and not r.validation and not r.joint]
    named = [r for r in tested if printed.dataset_of(r) == dataset and label(r)]
    tasks = main_stream(named)
    made = groups([record for record in named if record.tasks == tasks])
    names = [str(label(group.first)) for group in made]
    rows = [_ours(group, _unique(group, names, text)) for group, text in zip(made, names, strict=True)]
    theirs = printed.rows(dataset) if tasks == list(FIRST_STREAM) else []
    rows += [row | {"record": printed.PRINTED} for row in theirs if row["method"] in {method for _, method in wanted}]
    there = set(names)
    rows += [{"series": s, "method": m, "record": NO_RECORD} for s, m in wanted if s not in there]
    frame = pd.DataFrame([{"source": "", "remark": ""} | row for row in rows], columns=COLUMNS)
    frame = frame.astype({c: float for c in COLUMNS if c.endswith(("%", ")", "-"))})
    members = [record for group in made for record in group.records]
    what = f"{scale(members)}, {over(made)}" if made else f"{dataset}, no record yet"
    heading = f"{heading}: last accuracy against F\n{what}, {tasks_text(tasks)} classes"
    ids = [record.id for record in members]
    return Figure(name, heading, frame, ids, _axes, _plotly, (7.2, 3.9))


def _unique(group: Group, names: Sequence[str], text: str) -> str:
    """The figure's own name, with the settings of the group's label where several groups bear it."""
    return text if names.count(text) == 1 else text + group.label.removeprefix(title(group.first))


def _ours(group: Group, text: str) -> dict[str, Any]:
    mean, width = interval(list(group.last_by_seed().values()))
    first = group.first
    giga = {"F (G)": first.flops_literal, "F spent (G)": first.flops_spent}
    return {
        "series": text,
        "method": first.method,
        "source": "ours",
        "LA %": mean,
        "+-": width,
        **{column: None if value is None else value / 1e9 for column, value in giga.items()},
        "params (M)": first.params["total"] / 1e6 if first.params.get("total") else None,
        "record": seeds([group]),
    }


# The drawings -----------------------------------------------------------------------------------------------------


def _lines(table: "pd.DataFrame") -> list[tuple[str, bool, "pd.DataFrame"]]:
    """Method, whether printed, and its rows from cheap to dear: one line each."""
    there = table[table["record"] != NO_RECORD].dropna(subset=["LA %", "F (G)"])
    found = []
    for method in dict.fromkeys(there["method"]):
        mine = there[there["method"] == method]
        for theirs in (True, False):
            rows = mine[printed.is_printed(mine) == theirs].sort_values("F (G)", kind="stable")
            if len(rows):
                found.append((str(method), theirs, rows))
    return found


def _areas(rows: "pd.DataFrame", table: "pd.DataFrame") -> list[float]:
    most = table["params (M)"].max()
    return [max(14.0, 150.0 * p / most) if p == p and p else 34.0 for p in rows["params (M)"].astype(float)]


def _short(label: str) -> str:
    """What tells a mark from the others of its method: ``k = 2``, ``4 heads each``, ``ResNet-34``, ``32`` (a width)."""
    inner = re.search(r"\((.+?)\)$", label)
    text = inner[1] if inner else label.split(", ", 1)[1] if ", " in label else ""
    return re.sub(r"^heads (\d+)$", r"\1 heads", text).removeprefix("width ")


def _axes(axes: "Axes", table: "pd.DataFrame") -> None:
    lines, legend = _lines(table), set()
    costs: list[float] = []
    names: list[Tag] = []
    paths: list[list[tuple[float, float]]] = []  # that names keep off: the lines and the intervals
    small = table["F (G)"].max() < 0.1  # millions read better
    factor, unit = (1000.0, "MFLOPs") if small else (1.0, "GFLOPs")
    for method, theirs, rows in lines:
        look = style(method)
        x, y = rows["F (G)"].to_numpy(float) * factor, rows["LA %"].to_numpy(float)
        axes.plot(x, y, color=look.colour, linestyle=":" if theirs else "-", linewidth=0.9, zorder=1)
        marker = look.marker if look.marker != "_" else "s"
        face = "white" if theirs else look.colour
        areas = _areas(rows, table)
        axes.scatter(x, y, s=areas, marker=marker, facecolor=face, edgecolor=look.colour, zorder=3)
        if not theirs:
            axes.errorbar(x, y, yerr=rows["+-"].to_numpy(float), fmt="none", ecolor=look.colour, capsize=2, zorder=2)
        named = zip(rows["series"].astype(str), x, y, areas, strict=True)
        names += [Tag(_short(series), a, b, look.colour, area) for series, a, b, area in named]
        paths.append(list(zip(x, y, strict=True)))
        if not theirs:
            bars = zip(x, y, rows["+-"].fillna(0.0).astype(float), strict=True)
            paths += [[(a, b - width), (a, b + width)] for a, b, width in bars]
        if method not in legend:
            legend.add(method)
            axes.plot([], [], linestyle="", marker=marker, color=look.colour, label=printed.TITLES.get(method, method))
        costs += x.tolist()
    if any(theirs for _, theirs, _ in lines):
        hollow = axes.plot([], [], linestyle=":", marker="o", color="#606060", label="printed (table 1)")
        hollow[0].set_markerfacecolor("white")
    if costs and max(costs) > 12 * min(costs) > 0:
        log_axis(axes, max(costs) / min(costs))
    elif costs:
        axes.set_xlim(0, 1.15 * max(costs))
    axes.margins(x=0.12, y=0.12)
    widths = "; bare numbers: channels of the first stage" if table["series"].str.contains(", width ").any() else ""
    axes.set_xlabel(
        f"F: {unit} of one image, literal path (2 x multiply-accumulate)\narea of filled marks: parameters{widths}"
    )
    axes.set_ylabel("last accuracy (%)")
    if lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    place(axes, names, paths)


def _plotly(figure: Any, table: "pd.DataFrame") -> None:
    for method, theirs, rows in _lines(table):
        look = style(method)
        symbol = look.symbol if look.symbol != "line-ew" else "square"
        name = printed.TITLES.get(method, method)
        widths = [None if w != w else w for w in rows["+-"].astype(float)]
        figure.add_scatter(
            x=[float(x) for x in rows["F (G)"]],
            y=[float(y) for y in rows["LA %"]],
            error_y=None if theirs or None in widths else {"type": "data", "array": widths, "thickness": 1},
            name=f"{name}, printed" if theirs else name,
            text=[str(s) for s in rows["series"]],
            mode="lines+markers",
            line={"color": look.colour, "width": 1, "dash": "dot" if theirs else "solid"},
            marker={
                "symbol": f"{symbol}-open" if theirs else symbol,
                "size": [1.4 * area**0.5 for area in _areas(rows, table)],
            },
        )
    axis = "GFLOPs of one image, literal path (2 x multiply-accumulate)"
    figure.update_layout(xaxis_title=axis, yaxis_title="last accuracy (%)")
