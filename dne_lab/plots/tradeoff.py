"""Accuracy against scale: figures 1 (right) and 6 a to d, our records beside the paper's printed numbers;
and accuracy at one budget of memory."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.measure import paper
from dne_lab.measure.beside import at_budgets, by_budget
from dne_lab.measure.comparison import Group, depth, even_heads, groups, tasks_text, title
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.measure.trained_controls import options_of
from dne_lab.methods.base import title_of
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Points, around, logarithmic, one
from dne_lab.plots.series import NO_RECORD, over, scale, seeds
from dne_lab.plots.style import solid, style

if TYPE_CHECKING:
    import pandas as pd

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
    wanted = [(title_of(name), name) for name in (*SINGLE, "der")]
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
    for record in (r for r in records if r.method == "foster" and paper.dataset_of(r) == dataset):
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


def of_main_stream(records: Iterable[Record]) -> tuple[list[Record], list[int]]:
    """The finished records on 50 + 10 x 5 classes, or where there is none on the tasks of most of them; and the tasks.

    Joint models, runs on validation images and controls, which are no methods, are left out.
    """
    tested = [r for r in records if r.finished and not r.validation and not r.joint and not options_of(r)]
    streams = [record.tasks for record in tested] or [list(FIRST_STREAM)]
    tasks = list(FIRST_STREAM) if list(FIRST_STREAM) in streams else max(streams, key=streams.count)
    return [record for record in tested if record.tasks == tasks], tasks


def _tradeoff(
    name: str,
    heading: str,
    records: Iterable[Record],
    dataset: str,
    label: Label,
    wanted: Sequence[tuple[str, str]],
) -> Figure:
    import pandas as pd

    chosen, tasks = of_main_stream(r for r in records if paper.dataset_of(r) == dataset and label(r))
    made = groups(chosen)
    names = [str(label(group.first)) for group in made]
    rows = [_ours(group, _unique(group, names, text)) for group, text in zip(made, names, strict=True)]
    theirs = paper.rows(dataset) if tasks == list(FIRST_STREAM) else []
    rows += [row | {"record": paper.PRINTED} for row in theirs if row["method"] in {method for _, method in wanted}]
    there = set(names)
    rows += [{"series": s, "method": m, "record": NO_RECORD} for s, m in wanted if s not in there]
    frame = pd.DataFrame([{"source": "", "remark": ""} | row for row in rows], columns=COLUMNS)
    frame = frame.astype({c: float for c in COLUMNS if c.endswith(("%", ")", "-"))})
    members = [record for group in made for record in group.records]
    what = f"{scale(members)}, {over(made)}" if made else f"{dataset}, no record yet"
    heading = f"{heading}: last accuracy against F\n{what}, {tasks_text(tasks)} classes"
    runs: dict[str, list[str]] = {}
    for group, row in zip(made, rows, strict=False):  # behind ours come the printed rows
        runs.setdefault(str(row["series"]), []).extend(record.id for record in group.records)
    return Figure(name, heading, frame, runs, _marks, (7.6, 3.9))


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
            rows = mine[paper.is_printed(mine) == theirs].sort_values("F (G)", kind="stable")
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


def _marks(table: "pd.DataFrame") -> Drawing:
    """A line per method: filled marks are ours, hollow ones printed."""
    small = table["F (G)"].max() < 0.1  # millions read better
    factor, unit = (1000.0, "MFLOPs") if small else (1.0, "GFLOPs")
    marks: list[Points] = []
    ours: set[str] = set()
    for method, theirs, rows in _lines(table):
        name, y = title_of(method), rows["LA %"].to_numpy(float)
        ours |= set() if theirs else {name}
        texts = rows[["series", "record", "source", "remark"]].astype(str).itertuples(index=False)
        notes = [", ".join(filter(None, row)) for row in texts]
        ends: dict[str, Any] = {} if theirs else around(y, rows["+-"])
        marks.append(
            Points(f"{name}, printed" if theirs else name, list(rows["F (G)"] * factor), list(y), solid(style(method)),
                   ":" if theirs else "-", filled=not theirs, area=_areas(rows, table), notes=notes, width=0.9,
                   tags=[_short(str(series)) for series in rows["series"]], **ends)
        )  # fmt: skip
    widths = "; bare numbers: channels of the first stage" if table["series"].str.contains(", width ").any() else ""
    title = f"F: {unit} of one image, literal path (2 x multiply-accumulate)\n"
    title += f"area of filled marks: parameters{widths}"
    return one(marks, _positive_axis(title, marks, 12, 0.15), Axis("last accuracy (%)"))


def _positive_axis(title: str, marks: Sequence[Points], beyond: float, room: float) -> Axis:
    """The x axis of marks: from 0 with ``room`` on the right (a part of the largest value), or a logarithmic one where
    their values spread over more than a factor ``beyond``."""
    values = [x for mark in marks for x in mark.x]
    if logarithmic(values, beyond):
        tenth = (max(values) / min(values)) ** 0.1
        return Axis(title, "log", low=min(values) / tenth, high=max(values) * tenth)
    return Axis(title, low=0.0, high=(1 + room) * max(values, default=1.0))


# Accuracy at one budget of memory: the bytes of the final model and of its exemplars together.


def accuracy_over_bytes(records: Iterable[Record]) -> Figure:
    """LA of every method against the megabytes that its model and its exemplars take together (MEMO, ICLR 2023).

    A method with several totals (wider networks, or ``memory.bytes``) is a line. Joint models, which keep no exemplars,
    controls and runs on validation images are left out.

    Args:
        records: of one data set; drawn are those on 50 + 10 x 5 classes, or else on the tasks of most of them.
    """
    chosen, tasks = of_main_stream(records)
    made = groups(chosen)
    table = by_budget(chosen).rename(columns={"method": "series", "id": "method"})
    what = f"{scale(chosen)}, {over(made)}" if made else "no record yet"
    heading = f"Last accuracy at a budget of memory\n{what}, {tasks_text(tasks)} classes"
    runs: dict[str, list[str]] = {}
    for name, total, group in at_budgets(chosen):
        runs.setdefault(_at(name, total), []).extend(record.id for record in group.records)
    return Figure("accuracy_over_bytes", heading, table, runs, _by_bytes, (7.0, 3.8))


def _at(name: str, total: float) -> str:
    """A point of a line in words: ``DER, settings 1, at 11.48 MB``."""
    return f"{name}, at {total:.2f} MB"


def _by_bytes(table: "pd.DataFrame") -> Drawing:
    """A line per method: its networks and budgets from small to large."""
    marks: list[Points] = []
    for name, rows in table.groupby("method", sort=False):
        method = str(name)
        rows = rows.sort_values("total (MB)", kind="stable")
        notes = [
            f"{_at(series, total)}, seeds: {seeds}, AA {aa:.1f}%"
            for series, total, seeds, aa in rows[["series", "total (MB)", "seeds", "AA"]].itertuples(index=False)
        ]
        x, y = rows["total (MB)"].tolist(), rows["LA"].tolist()
        ends = around(y, rows["LA +-"])
        marks.append(Points(title_of(method), x, y, solid(style(method)), "-", notes=notes, width=0.9, **ends))
    title = "bytes of the final model (4 per parameter) and of its exemplars, in MB (10^6)"
    return one(marks, _positive_axis(title, marks, 4, 0.1), Axis("last accuracy (%)"))
