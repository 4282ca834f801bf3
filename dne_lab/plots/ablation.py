"""What is lost without attention, as figures: by group of attention, and connection by connection."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.ablation_record import FIRST, AblationRecord
from dne_lab.analysis.ablation_tables import group_table, settings, sweep_table
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

HOW_WORDS = {"mask": "removed, the rest renormalised", "zero": "set to zero", "mean": "replaced by its mean"}
READS_WORDS = {
    OTHERS: "all that is read of other experts",
    FIRST: "what is read of expert 1",
    BETWEEN: "what is read of experts 2 to t - 1",
}
ANNOTATED = 8  # experts up to which matrices carry their numbers
# Blue gains, white nothing, red losses: told apart under every common colour blindness.
COLOURS = "RdBu_r"


def drawings(found: Iterable[AblationRecord]) -> dict[str, Figure]:
    """All figures that the records can fill, by file name."""
    found = list(found)
    made: dict[str, Figure] = {}
    for preset, how in dict.fromkeys((record.preset, record.how) for record in found):
        mine = [record for record in found if (record.preset, record.how) == (preset, how)]
        stem = f"ablation_{preset.replace('-', '_').replace(',', '_')}" + ("" if how == "mask" else f"_{how}")
        made[f"{stem}_groups"] = ablation_groups(mine)
        for method in dict.fromkeys(record.method for record in mine if record.sweep):
            made[f"{stem}_{method}"] = ablation_matrix(record for record in mine if record.method == method)
    return made


def ablation_groups(found: Iterable[AblationRecord]) -> Figure:
    """Accuracy lost without each group of the later experts' attention; the table has every expert on its own too.

    Raises:
        LabError: no record, or records of several presets or ways of removing.
    """
    members = _one(found)
    table = group_table(members)
    heading = f"Attention of experts 2, 3, ... {HOW_WORDS[members[0].how]} ({members[0].how})"
    rows = int((table["experts"] == "later").sum())
    return Figure(
        "ablation_groups", f"{heading}\n{_scale(members, True)}", table, [m.run for m in members], _groups_axes,
        _groups_plotly, (9.2, 1.5 + 0.26 * rows),
    )  # fmt: skip


def ablation_matrix(found: Iterable[AblationRecord]) -> Figure:
    """Accuracy lost without each connection: a matrix (expert that reads, expert that is read) a kind and layer.

    Raises:
        LabError: no record with connections, or records of several methods, presets or ways of removing.
    """
    members = _one(found)
    if len({member.method for member in members}) > 1:
        raise LabError("ablation_matrix: records of several methods in one figure: draw one figure for each.")
    table, how = sweep_table(members), members[0].how
    title = TITLES.get(members[0].method, members[0].method)
    heading = f"{title}: accuracy lost (points) without a connection\n"
    heading += f"{HOW_WORDS[how]} ({how})\n{_scale(members, False)}"
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
    for name in ("preset", "how"):
        values = sorted({getattr(member, name) for member in members})
        if len(values) > 1:
            raise LabError(f"ablation records of several ({name}: {', '.join(values)}) in one figure: draw one each.")
    return [member for several in settings(members).values() for member in several]


def _scale(members: list[AblationRecord], intervals: bool) -> str:
    seeds = max(len(several) for several in settings(members).values())
    small = "" if members[0].dataset in PAPER_DATASETS and not members[0].preset.endswith("small") else ", small scale"
    over = "one seed" if seeds == 1 else f"mean over {seeds} seeds"
    if intervals:
        over = "one seed, 95% interval over images" if seeds == 1 else f"mean and 95% interval over {seeds} seeds"
    return f"{members[0].preset}{small}, {members[0].images:,} test images\n{over}"


# Groups ------------------------------------------------------------------------------------------------------------


def _series(table: "pd.DataFrame") -> list[tuple[str, "pd.DataFrame"]]:
    """The rows of all later experts at once, method by method."""
    later = table[table["experts"] == "later"]
    return [(str(method), rows) for method, rows in later.groupby("method", sort=False)]


def _name(row: Any) -> str:
    what = READS_WORDS.get(row["removed"], row["removed"])
    return f"{TITLES.get(row['method'], row['method'])}, {row['kind']}: {what} ({row['mass %']:.0f}% of the attention)"


def _groups_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    names: list[str] = []
    for method, rows in _series(table):
        look = style(method)
        for _, row in rows.iterrows():
            axes.errorbar(
                row["loss"], len(names), xerr=row["+-"], color=look.colour, marker=look.marker, capsize=2, linewidth=1.2
            )
            names.append(_name(row))
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("accuracy lost (percentage points)")


def _groups_plotly(figure: Any, table: "pd.DataFrame") -> None:
    for method, rows in _series(table):
        look = style(method)
        figure.add_scatter(
            x=[float(v) for v in rows["loss"]],
            y=[_name(row) for _, row in rows.iterrows()],
            error_x={"type": "data", "array": [float(v) for v in rows["+-"]], "thickness": 1},
            name=TITLES.get(method, method),
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 8},
        )
    figure.update_layout(xaxis_title="accuracy lost (percentage points)", showlegend=False)
    figure.update_yaxes(autorange="reversed", automargin=True)


# Connections -------------------------------------------------------------------------------------------------------

Block = tuple[str, int, int]  # name, first row, first column


def _mosaic(table: "pd.DataFrame") -> tuple[NDArray[Any], list[Block], list[int], list[int]]:
    """All matrices in one, in rows as long as a kind has layers, with a gap between them; NaN is no connection.

    Also the blocks, the experts that read and those that are read.
    """
    readers, sources = sorted(table["expert"].unique()), sorted(table["reads"].unique())
    places = list(dict.fromkeys(zip(table["kind"], table["layer"], strict=True)))
    kinds = [kind for kind, _ in places]
    side = max(kinds.count(kind) for kind in kinds)
    high, wide = len(readers) + 2, len(sources) + 1
    whole = np.full((high * -(-len(places) // side) - 2, wide * side - 1), np.nan)
    blocks: list[Block] = []
    for number, (kind, layer) in enumerate(places):
        top, left = high * (number // side), wide * (number % side)
        blocks.append(("all kinds and layers" if kind == "all" else f"{kind}, layer {layer}", top, left))
        rows = table[(table["kind"] == kind) & (table["layer"] == layer)]
        for reader, source, loss in zip(rows["expert"], rows["reads"], rows["loss"], strict=True):
            whole[top + readers.index(reader), left + sources.index(source)] = loss
    return whole, blocks, readers, sources


def _size(table: "pd.DataFrame") -> tuple[float, float]:
    """Inches for the matrices of a table."""
    height, width = _mosaic(table)[0].shape
    return 2.0 + 0.36 * width, 1.6 + 0.36 * height


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
