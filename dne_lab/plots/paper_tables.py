"""The paper's tables as dot plots: printed minus ours, printed minus what others published, and D computed anew."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.core.errors import LabError
from dne_lab.measure import paper
from dne_lab.measure.comparison import Group, groups, tasks_text
from dne_lab.measure.record import RUN_FIRST, Record
from dne_lab.measure.tables import compare
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Level, Mark, Panel, Points, one
from dne_lab.plots.series import scale, seeds
from dne_lab.plots.style import Style

if TYPE_CHECKING:
    import pandas as pd

LOOKS = {"LA": Style("#0072b2", "o", "circle"), "AA": Style("#d55e00", "s", "square")}
D_LOOKS = {
    "as printed": Style("#757575", "s", "square"),
    "against the joint model of its own network": Style("#009e73", "o", "circle"),
}
NAMES = {"cifar100": "CIFAR-100", "imagenet100": "ImageNet-100"}
LINE = 0.24  # inches of a line of names


def printed_minus_ours(records: Iterable[Record], dataset: str = "cifar100") -> Figure:
    """LA and AA as the paper prints them minus ours, a line for each group of runs that has a printed counterpart.

    Args:
        records: finished runs; those on other data sets than ``dataset`` are left out, since on other images a
            difference says nothing about the paper.
        dataset: cifar100 or imagenet100.

    Raises:
        LabError: no run on that data set that the paper prints.
    """
    import pandas as pd

    there = [record for record in records if paper.dataset_of(record) == dataset]
    rows: list[dict[str, Any]] = []
    shown: list[Group] = []
    ids: dict[str, list[str]] = {}
    for group, row in zip(groups(there), compare(there).to_dict("records"), strict=True):
        if row["paper LA"] != row["paper LA"]:
            continue
        shown.append(group)
        name = group.label if group.first.joint else f"{group.label}, {tasks_text(group.first.tasks)}"
        ids[name] = [record.id for record in group.records]
        for measure in LOOKS:
            theirs, mine = row[f"paper {measure}"], row[measure]
            if theirs == theirs:  # joint models have no AA
                rows.append(_difference(name, measure, theirs, mine, "ours") | {"record": seeds([group])})
    if not rows:
        raise LabError(f"no finished run on {NAMES.get(dataset, dataset)} that the paper prints. {RUN_FIRST}")
    heading = f"The paper's accuracy minus ours\n{scale(r for g in shown for r in g.records)}, {seeds(shown)}"
    frame = pd.DataFrame(rows)
    return Figure("printed_minus_ours", heading, frame, ids, _by_line, _size(frame["series"].nunique()))


def printed_minus_published() -> Figure:
    """LA and AA as the paper prints them minus those that the methods' authors, or PyCIL, published for their own code.

    A line for each method and stream that both have; the table names backbone and memory, which differ.
    """
    import pandas as pd

    keys = ["dataset", "step", "method"]
    both = paper.other_published().merge(paper.tables(), on=keys, suffixes=("", " printed"))
    rows = []
    for row in both.to_dict("records"):
        name = f"{paper.label_of(row['method'])}, {NAMES[row['dataset']]}, steps of {row['step']}"
        for measure in LOOKS:
            theirs, other = row[f"{measure.lower()} printed"], row[measure.lower()]
            if theirs == theirs and other == other:
                note = f"{row['backbone']}, {row['memory']}"
                rows.append(_difference(name, measure, theirs, other, "published") | {"record": note})
    frame = pd.DataFrame(rows)
    heading = "The paper's accuracy minus what others published\nthe networks and memories of theirs are in the table"
    return Figure("printed_minus_published", heading, frame, [], _by_line, _size(frame["series"].nunique()))


def _difference(name: str, measure: str, theirs: float, other: float, whose: str) -> dict[str, Any]:
    return {"series": name, "measure": measure, "printed": theirs, whose: other, "printed minus": theirs - other}


def printed_differences(datasets: Sequence[str] = ("cifar100", "imagenet100")) -> Figure:
    """D as the paper prints it, and against the joint model of the method's own network: a panel for each stream."""
    import pandas as pd

    rows = []
    for row in paper.differences().to_dict("records"):
        if row["dataset"] in datasets and not row["method"].startswith("joint"):
            stream = f"{NAMES[row['dataset']]}, 50 + {row['step']} x {50 // row['step']}"
            first = {"stream": stream, "series": paper.label_of(row["method"]), "against": row["against"]}
            for name, d in zip(D_LOOKS, (row["d"], row["d_own"]), strict=True):
                rows.append(first | {"what": name, "D": d, "record": paper.PRINTED})
    frame = pd.DataFrame(rows)
    heading = "D of the paper's tables: LA of the joint model minus LA\na line joins the two where they differ"
    lines = frame.groupby("stream", sort=False)["series"].nunique()
    tall = sum(max(lines.iloc[i : i + 2]) for i in range(0, len(lines), 2))
    return Figure("printed_differences", heading, frame, [], _by_stream, (8.4, 1.9 + LINE * tall))


# The drawings -----------------------------------------------------------------------------------------------------


def _size(lines: int) -> tuple[float, float]:
    return 7.6, 1.5 + LINE * lines


def _by_line(table: "pd.DataFrame") -> Drawing:
    names = list(dict.fromkeys(table["series"]))
    marks: list[Mark] = [Level("as printed", 0.0, upright=True, listed=False)]
    for measure, look in LOOKS.items():
        rows = table[table["measure"] == measure]
        at = [float(names.index(name)) for name in rows["series"]]
        marks.append(
            Points(measure, rows["printed minus"].tolist(), at, look, area=36.0, notes=rows["record"].tolist())
        )
    x = Axis(f"printed minus {'ours' if 'ours' in table else 'published elsewhere'} (points)", least=5.0)
    return one(marks, x, Axis(kind="category", names=tuple(names), reverse=True))


def _by_stream(table: "pd.DataFrame") -> Drawing:
    panels = []
    most = float(table["D"].max()) + 2.0
    for stream, rows in table.groupby("stream", sort=False):
        names = list(dict.fromkeys(rows["series"]))
        marks: list[Mark] = []
        for name, both in rows.groupby("series", sort=False)["D"]:
            place = float(names.index(str(name)))
            ink = D_LOOKS["as printed"]
            marks.append(Points("", both.tolist(), [place, place], ink, dash="-", area=0.0, listed=False, width=1.0))
        for what, look in D_LOOKS.items():
            some = rows[rows["what"] == what]
            at = [float(names.index(name)) for name in some["series"]]
            filled = what != "as printed"
            marks.append(Points(what, some["D"].tolist(), at, look, area=36.0 if filled else 60.0, filled=filled))
        y = Axis(kind="category", names=tuple(names), reverse=True)
        panels.append(Panel(marks, Axis("D (points)", low=0.0, high=most), y, str(stream)))
    return Drawing([panels[i : i + 2] for i in range(0, len(panels), 2)])
