"""What read-outs hold, as a figure: linear probes of all experts, expert 1, the later ones, and each."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dne_lab.analysis.read_outs import OWN, ProbeRecord, probe_table
from dne_lab.errors import LabError
from dne_lab.measure.groups import TITLES
from dne_lab.plots.figure import Figure
from dne_lab.plots.series import PAPER_DATASETS
from dne_lab.plots.style import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

WORDS = {"all": "all read-outs", "later": "the later experts"}
# What is measured, its columns, and its mark: matplotlib's, plotly's, and whether it is filled.
MARKS = {"over all classes": ("accuracy", "o", "circle", True), "task told": ("told", "s", "square-open", False)}


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
    return Figure(
        "read_outs", title, table, [m.run for m in members], _on_axes, _on_plotly, (8.0, 1.8 + 0.26 * len(table))
    )


def _name(row: Any) -> str:
    heads = f" ({row['heads']} heads)" if row["heads"] else ""
    what = row["read-outs"]
    return f"{TITLES.get(row['method'], row['method'])}{heads}: {what if what == OWN else WORDS.get(what, what)}"


def _on_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    for what, (name, mark, _, filled) in MARKS.items():
        for place, (_, row) in enumerate(table.iterrows()):
            colour = style(row["method"]).colour
            axes.errorbar(
                row[f"{name} %"], place, xerr=row[f"{name} +-"], color=colour, marker=mark, linestyle="none",
                capsize=2, linewidth=1.2, markersize=5, markerfacecolor=colour if filled else "white",
            )  # fmt: skip
        face = "#333333" if filled else "white"
        axes.plot([], [], color="#333333", marker=mark, linestyle="none", label=what, markerfacecolor=face)
    axes.set_yticks(range(len(table)), [_name(row) for _, row in table.iterrows()], fontsize=8)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel("accuracy (%)")
    below = -0.6 / (0.26 * len(table) + 0.5)  # about 0.6 inch under the axes
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, below), ncol=2, fontsize=8, frameon=False)


def _on_plotly(figure: Any, table: "pd.DataFrame") -> None:
    for what, (name, _, symbol, _) in MARKS.items():
        for method, rows in table.groupby("method", sort=False):
            figure.add_scatter(
                x=[float(v) for v in rows[f"{name} %"]],
                y=[_name(row) for _, row in rows.iterrows()],
                error_x={"type": "data", "array": [float(v) for v in rows[f"{name} +-"]], "thickness": 1},
                name=f"{TITLES.get(str(method), str(method))}, {what}",
                mode="markers",
                marker={"color": style(str(method)).colour, "symbol": symbol, "size": 8},
            )
    names = [_name(row) for _, row in table.iterrows()]
    figure.update_layout(xaxis_title="accuracy (%)")
    figure.update_yaxes(categoryorder="array", categoryarray=names, autorange="reversed", automargin=True)
