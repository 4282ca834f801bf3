"""What is lost without attention, as figures: by group of attention, and connection by connection."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.ablation_record import EVERYTHING, FIRST, AblationRecord
from dne_lab.analysis.ablation_tables import group_table, settings, sweep_table
from dne_lab.analysis.cutter import HOW
from dne_lab.analysis.removal import BETWEEN, OTHERS
from dne_lab.analysis.sweep import Sweep
from dne_lab.errors import LabError
from dne_lab.measure.groups import TITLES
from dne_lab.plots.figure import Figure
from dne_lab.plots.series import PAPER_DATASETS
from dne_lab.plots.style import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

HOW_WORDS = {"mean": "replaced by its mean", "zero": "set to zero", "mask": "removed, the rest renormalised"}
# The mark of each way of removing: matplotlib's and plotly's, and whether it is filled.
HOW_MARKS = {"mean": ("o", "circle", True), "zero": ("s", "square-open", False), "mask": ("x", "x-thin-open", False)}
READS_WORDS = {
    OTHERS: "all that is read of other experts",
    FIRST: "what is read of expert 1",
    BETWEEN: "what is read of experts 2 to t - 1",
    EVERYTHING: "all of it",
}
ANNOTATED = 8  # experts up to which matrices carry their numbers
# Blue gains, white nothing, red losses: told apart under every common colour blindness.
COLOURS = "RdBu_r"


def drawings(found: Iterable[AblationRecord]) -> dict[str, Figure]:
    """All figures that the records can fill, by file name."""
    found = list(found)
    made: dict[str, Figure] = {}
    for preset in dict.fromkeys(record.preset for record in found):
        mine = [record for record in found if record.preset == preset]
        stem = f"ablation_{preset.replace('-', '_').replace(',', '_')}"
        made[f"{stem}_groups"] = ablation_groups(mine)
        for method in dict.fromkeys(record.method for record in mine if record.sweep):
            made[f"{stem}_{method}"] = ablation_matrix(record for record in mine if record.method == method)
    return made


def ablation_groups(found: Iterable[AblationRecord]) -> Figure:
    """Accuracy lost without each group of the later experts' attention, the ways of removing it side by side; the table
    has every expert on its own too.

    Raises:
        LabError: no record, or records of several presets.
    """
    members = _one(found)
    table = group_table(members)
    rows = len(_places(table))
    return Figure(
        "ablation_groups", f"Attention of experts 2, 3, ... removed\n{_scale(members, True)}", table,
        [m.run for m in members], _groups_axes, _groups_plotly, (9.2, 2.2 + 0.3 * rows),
    )  # fmt: skip


def ablation_matrix(found: Iterable[AblationRecord]) -> Figure:
    """Accuracy lost without each connection: a matrix (expert that reads, expert that is read) a kind and layer; of
    several ways of removing, each one's matrix over all kinds and layers, and all others in the table.

    Raises:
        LabError: no record with connections, or records of several methods or presets.
    """
    members = _one(found)
    if len({member.method for member in members}) > 1:
        raise LabError("ablation_matrix: records of several methods in one figure: draw one figure for each.")
    table = sweep_table(members)
    title = TITLES.get(members[0].method, members[0].method)
    heading = f"{title}: accuracy lost (points) without a connection\n{_ways(members)}{_scale(members, False)}"
    runs = [m.run for m in members]
    return Figure("ablation_matrix", heading, table, runs, _matrix_axes, _matrix_plotly, _size(table))


def sweep_figure(sweep: Sweep) -> Figure:
    """Accuracy lost without each connection of a sweep of your own (`lab.ablation_sweep`), drawn as `ablation_matrix`.

    The table is `Sweep.table`.
    """
    table = sweep.table()
    heading = "Accuracy lost (points) without a connection\n"
    heading += f"{HOW_WORDS[sweep.how]} ({sweep.how}), {sweep.images:,} images"
    return Figure("ablation_sweep", heading, table, [], _matrix_axes, _matrix_plotly, _size(table))


def _one(found: Iterable[AblationRecord]) -> list[AblationRecord]:
    members = list(found)
    if not members:
        raise LabError("no ablation record: make one with dne-lab report RUN --ablation N.")
    values = sorted({member.preset for member in members})
    if len(values) > 1:
        raise LabError(f"ablation records of several (preset: {', '.join(values)}) in one figure: draw one each.")
    return [member for several in settings(members).values() for member in several]


def _ways(members: list[AblationRecord]) -> str:
    """What the ways of removing are, for a title: in a line each."""
    hows = [how for how in HOW if any(member.how == how for member in members)]
    return "".join(f"{how}: {HOW_WORDS[how]}\n" for how in hows)


def _scale(members: list[AblationRecord], intervals: bool) -> str:
    seeds = max(len(several) for several in settings(members).values())
    small = "" if members[0].dataset in PAPER_DATASETS and not members[0].preset.endswith("small") else ", small scale"
    over = "one seed" if seeds == 1 else f"mean over {seeds} seeds"
    if intervals:
        over = "one seed, 95% interval over images" if seeds == 1 else f"mean and 95% interval over {seeds} seeds"
    return f"{members[0].preset}{small}, {members[0].images:,} test images\n{over}"


# Groups ------------------------------------------------------------------------------------------------------------


def _places(table: "pd.DataFrame") -> list[tuple[str, str, str]]:
    """Method, kind and what was removed, of all later experts at once: a row of the drawing each."""
    later = table[table["experts"] == "later"]
    found = dict.fromkeys(zip(later["method"], later["kind"], later["removed"], strict=True))
    known = [*TITLES, *later["method"]]
    return sorted(found, key=lambda place: known.index(place[0]))


def _later(table: "pd.DataFrame", how: str, method: str) -> "pd.DataFrame":
    return table[(table["experts"] == "later") & (table["how"] == how) & (table["method"] == method)]


def _name(table: "pd.DataFrame", place: tuple[str, str, str]) -> str:
    method, kind, removed = place
    rows = table[(table["method"] == method) & (table["kind"] == kind) & (table["removed"] == removed)]
    what = READS_WORDS.get(removed, removed)
    return f"{TITLES.get(method, method)}, {kind}: {what} ({rows['mass %'].iloc[0]:.0f}% of the attention)"


def _groups_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    places = _places(table)
    hows = [how for how in HOW if how in set(table["how"])]
    for number, how in enumerate(hows):
        mark, _, filled = HOW_MARKS[how]
        shift = 0.22 * (number - (len(hows) - 1) / 2)
        for method in dict.fromkeys(place[0] for place in places):
            rows = _later(table, how, method)
            colour = style(method).colour
            heights = [
                places.index(where) + shift for where in zip(rows["method"], rows["kind"], rows["removed"], strict=True)
            ]
            axes.errorbar(
                rows["loss"], heights, xerr=rows["+-"], color=colour, marker=mark, linestyle="none", capsize=2,
                linewidth=1.2, markersize=5, markerfacecolor=colour if filled else "white",
            )  # fmt: skip
        axes.plot([], [], color="#333333", marker=mark, linestyle="none", label=f"{how}: {HOW_WORDS[how]}",
                  markerfacecolor="#333333" if filled else "white")  # fmt: skip
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_yticks(range(len(places)), [_name(table, place) for place in places], fontsize=8)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlabel("accuracy lost (percentage points)")
    below = -0.6 / (0.3 * len(places) + 0.5)  # about 0.6 inch under the axes
    axes.legend(loc="upper center", bbox_to_anchor=(0.3, below), ncol=len(hows), fontsize=8, frameon=False)


def _groups_plotly(figure: Any, table: "pd.DataFrame") -> None:
    places = _places(table)
    for how in (how for how in HOW if how in set(table["how"])):
        for method in dict.fromkeys(place[0] for place in places):
            rows = _later(table, how, method)
            where = zip(rows["method"], rows["kind"], rows["removed"], strict=True)
            figure.add_scatter(
                x=[float(v) for v in rows["loss"]],
                y=[_name(table, place) for place in where],
                error_x={"type": "data", "array": [float(v) for v in rows["+-"]], "thickness": 1},
                name=f"{TITLES.get(method, method)}, {how}: {HOW_WORDS[how]}",
                mode="markers",
                marker={"color": style(method).colour, "symbol": HOW_MARKS[how][1], "size": 8},
            )
    figure.update_layout(xaxis_title="accuracy lost (percentage points)", legend={"orientation": "h", "y": -0.15})
    order = [_name(table, place) for place in places]
    figure.update_yaxes(categoryorder="array", categoryarray=order, autorange="reversed", automargin=True)


# Connections -------------------------------------------------------------------------------------------------------

Block = tuple[str, int, int]  # name, first row, first column


def _mosaic(table: "pd.DataFrame") -> tuple[NDArray[Any], list[Block], list[int], list[int]]:
    """All matrices in one, in rows as long as a kind has layers, with a gap between them; NaN is no connection. Of
    several ways of removing, their matrices of the last place (all kinds and layers, if there are several) in one row.

    Also the blocks, the experts that read and those that are read.
    """
    readers, sources = sorted(table["expert"].unique()), sorted(table["reads"].unique())
    places = list(dict.fromkeys(zip(table["kind"], table["layer"], strict=True)))
    hows = [how for how in HOW if "how" in table and how in set(table["how"])]
    parts: list[tuple[str, Any]] = []
    if len(hows) > 1:
        side = len(hows)
        last = (table["kind"] == places[-1][0]) & (table["layer"] == places[-1][1])
        parts = [(how, table[last & (table["how"] == how)]) for how in hows]
    else:
        kinds = [kind for kind, _ in places]
        side = max(kinds.count(kind) for kind in kinds)
        for kind, layer in places:
            name = "all kinds and layers" if kind == "all" else f"{kind}, layer {layer}"
            parts.append((name, table[(table["kind"] == kind) & (table["layer"] == layer)]))
    high, wide = len(readers) + 2, len(sources) + 1
    whole = np.full((high * -(-len(parts) // side) - 2, wide * side - 1), np.nan)
    blocks: list[Block] = []
    for number, (name, rows) in enumerate(parts):
        top, left = high * (number // side), wide * (number % side)
        blocks.append((name, top, left))
        for reader, source, loss in zip(rows["expert"], rows["reads"], rows["loss"], strict=True):
            whole[top + readers.index(reader), left + sources.index(source)] = loss
    return whole, blocks, readers, sources


def _size(table: "pd.DataFrame") -> tuple[float, float]:
    """Inches for the matrices of a table."""
    height, width = _mosaic(table)[0].shape
    ways = table["how"].nunique() if "how" in table else 1
    return 2.0 + 0.36 * width, 1.6 + 0.36 * height + 0.3 * (ways - 1)


def _matrix_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    whole, blocks, readers, sources = _mosaic(table)
    largest = float(np.nanmax(np.abs(whole))) or 1.0
    image = axes.imshow(whole, cmap=COLOURS, vmin=-largest, vmax=largest)
    if len(sources) <= ANNOTATED:
        for (i, j), value in np.ndenumerate(whole):
            if value == value:
                dark = abs(value) > 0.6 * largest
                axes.text(
                    j,
                    i,
                    f"{round(value, 1) + 0.0:.1f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if dark else "black",
                )
    for name, row, column in blocks:
        axes.text(column - 0.4, row - 0.65, name, ha="left", va="bottom", fontsize=8)
        for place, source in enumerate(sources):
            axes.text(column + place, row + len(readers) - 0.4, str(source), ha="center", va="top", fontsize=6)
    firsts = sorted({row for _, row, _ in blocks})
    axes.set_yticks([row + i for row in firsts for i in range(len(readers))], [*map(str, readers)] * len(firsts))
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_ylim(whole.shape[0] + 0.4, -1.6)
    axes.set_xlabel("expert that is read")
    axes.set_ylabel("expert that reads")
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label="accuracy lost (points)", shrink=0.8)


def _matrix_plotly(figure: Any, table: "pd.DataFrame") -> None:
    whole, blocks, readers, sources = _mosaic(table)
    largest = float(np.nanmax(np.abs(whole))) or 1.0
    words = [["" for _ in row] for row in whole]
    for name, top, left in blocks:
        for i, reader in enumerate(readers):
            for j, source in enumerate(sources):
                words[top + i][left + j] = f"{name}: expert {reader} reads expert {source}"
    figure.add_heatmap(
        z=[[None if value != value else float(value) for value in row] for row in whole],
        text=words, hovertemplate="%{text}<br>%{z:.2f} points<extra></extra>",
        colorscale="RdBu", reversescale=True, zmid=0, zmin=-largest, zmax=largest, colorbar={"title": "points"},
    )  # fmt: skip
    for name, top, left in blocks:
        figure.add_annotation(x=left - 0.5, y=top - 0.6, text=name, showarrow=False, xanchor="left", yanchor="bottom")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
