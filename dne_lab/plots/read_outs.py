"""What read-outs hold, as a figure: linear probes of all experts, expert 1, the later ones, and each."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dne_lab.analysis.read_outs import OWN, ProbeRecord, probe_table
from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import TITLES
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Mark, Points, around, one
from dne_lab.plots.series import PAPER_DATASETS
from dne_lab.plots.style import INK, Style, style

if TYPE_CHECKING:
    import pandas as pd

WORDS = {"all": "all read-outs", "later": "the later experts"}
MARKS = {  # what is measured, its columns, its mark, and whether that is filled
    "over all classes": ("accuracy", Style(INK, "o", "circle"), True),
    "task told": ("told", Style(INK, "s", "square"), False),
}


def drawings(found: Iterable[ProbeRecord]) -> dict[str, Figure]:
    """A figure a preset, by file name."""
    found = list(found)
    presets = dict.fromkeys(record.preset for record in found)
    return {
        f"read_outs_{preset.replace('-', '_').replace(',', '_')}": read_outs(r for r in found if r.preset == preset)
        for preset in presets
    }


def read_outs(found: Iterable[ProbeRecord]) -> Figure:
    """Accuracy of linear probes by method and set of read-outs: over all classes, and within the task when it is told.

    Raises:
        LabError: no record, or records of several presets.
    """
    members = list(found)
    presets = sorted({member.preset for member in members})
    if len(presets) != 1:
        what = f"probe records of several presets, {', '.join(presets)}" if presets else "no probe record"
        raise LabError(f"{what}: give those of one preset, made with dne-lab report RUN --probe.")
    table = probe_table(members)
    small = "" if members[0].dataset in PAPER_DATASETS and not presets[0].endswith("small") else ", small scale"
    seeds = int(table["seeds"].max())
    over = "one seed, 95% interval over images" if seeds == 1 else f"mean and 95% interval over {seeds} seeds"
    title = f"Linear probes of frozen read-outs\n{presets[0]}{small}; {over}"
    return Figure("read_outs", title, table, [m.run for m in members], _marks, (8.0, 1.8 + 0.26 * len(table)))


def _name(row: Any) -> str:
    heads = f" ({row['heads']} heads)" if row["heads"] else ""
    what = row["read-outs"]
    return f"{TITLES.get(row['method'], row['method'])}{heads}: {what if what == OWN else WORDS.get(what, what)}"


def _marks(table: "pd.DataFrame") -> Drawing:
    """A row a set of read-outs, both accuracies on it; a method has its colour."""
    table = table.assign(place=range(len(table)))
    marks: list[Mark] = []
    for what, (column, look, filled) in MARKS.items():
        marks.append(Points(what, [], [], look, filled=filled))
        for method, rows in table.groupby("method", sort=False):
            name, x = f"{TITLES.get(str(method), str(method))}, {what}", rows[f"{column} %"].tolist()
            notes = ["one seed" if seeds == 1 else f"{seeds} seeds" for seeds in rows["seeds"]]
            more = {"filled": filled, "notes": notes, "listed": False, **around(x, rows[f"{column} +-"])}
            own = look._replace(colour=style(str(method)).colour)
            marks.append(Points(name, x, rows["place"].tolist(), own, across=True, **more))
    y = Axis("", "category", tuple(_name(row) for _, row in table.iterrows()), reverse=True)
    return one(marks, Axis("accuracy (%)"), y)
