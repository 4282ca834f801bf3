"""How the figures of `attention` are drawn, on matplotlib axes and as plotly figures."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED
from dne_lab.analysis.labelling import GROUPS as LABELS
from dne_lab.plots.style import DASHES, GROUP_WORDS, GROUPS, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PAPER, SAME_PATCH, DIFFERENT_PATCH = "paper", "same patch", "different patch"
START = {"content": ("o", "#56b4e9"), "position": ("s", "#e69f00"), "attention": ("D", "#0072b2")}  # marker, colour


def groups_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    """Stacked bars of the four groups, uniform attention beside each."""
    names = list(table["series"].unique())
    for place, name in enumerate(names):
        rows = table[table["series"] == name].set_index("group")
        printed = rows["preset"].iloc[0] == PAPER
        base = under = 0.0
        for group in (SAME_PATCH, DIFFERENT_PATCH) if printed else LABELS:
            share, uniform = float(rows.loc[group, "share %"]), float(rows.loc[group, "uniform %"])
            colour = GROUPS["SPSH" if group == SAME_PATCH else "DPSH"] if printed else GROUPS[group]
            hatch: dict[str, Any] = {"hatch": "///", "edgecolor": "white", "linewidth": 0} if printed else {}
            axes.bar(place - (0 if printed else 0.12), share, 0.5, bottom=base, color=colour, **hatch)
            if not printed:
                axes.bar(place + 0.3, uniform, 0.24, bottom=under, color=colour, alpha=0.45)
            base, under = base + share, under + uniform
        same = rows.loc[SAME_PATCH]
        if not printed:
            bars = [[same["share %"] - same["low"]], [same["high"] - same["share %"]]]
            axes.errorbar(place - 0.12, same["share %"], yerr=bars, color="black", capsize=3, linewidth=1.2)
        at = max(same["share %"], same["high"] if same["high"] == same["high"] else 0)
        middle = place - (0 if printed else 0.12)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
        axes.text(middle, at + 2.5, f"{same['share %']:.1f}", ha="center", va="bottom", fontsize=8, bbox=box)
    for group in LABELS:
        axes.bar(0, 0, color=GROUPS[group], label=f"{group}: {GROUP_WORDS[group]}")
    axes.bar(0, 0, color=GROUPS["SPSH"], hatch="///", edgecolor="white", linewidth=0, label="same patch, as printed")
    axes.bar(
        0, 0, color=GROUPS["DPSH"], hatch="///", edgecolor="white", linewidth=0, label="different patch, as printed"
    )
    axes.set_xticks(range(len(names)), [name.replace(", ", "\n", 1) for name in names])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(0, 100)
    axes.set_ylabel("share of the attention (%)")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def groups_plotly(figure: Any, table: "pd.DataFrame") -> None:
    """Stacked bars of the four groups."""
    for group in (*LABELS, DIFFERENT_PATCH, SAME_PATCH):
        rows = table[table["group"] == group]
        if group == SAME_PATCH:
            rows = rows[rows["preset"] == PAPER]
        key = {SAME_PATCH: "SPSH", DIFFERENT_PATCH: "DPSH"}.get(group, group)
        figure.add_bar(
            x=[name.replace(", ", "<br>", 1) for name in rows["series"]],
            y=[float(v) for v in rows["share %"]],
            name=f"{group}, as printed" if group in (SAME_PATCH, DIFFERENT_PATCH) else f"{group}: {GROUP_WORDS[group]}",
            marker={"color": GROUPS[key], "pattern": {"shape": "/" if group not in LABELS else ""}},
            customdata=[None if v != v else float(v) for v in rows["uniform %"]],
            hovertemplate="%{x}: %{y:.2f}% (uniform %{customdata:.2f}%)",
        )
    figure.update_layout(barmode="stack", yaxis_title="share of the attention (%)")


def moments_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    """Same-patch share in multiples of its uniform value at three moments."""
    moments = [INITIAL, TRAINED, SHUFFLED]
    shown = lines(table)
    for number, (name, rows, look, dash) in enumerate(shown):
        places = np.array([moments.index(m) for m in rows["moment"]]) + 0.06 * (number - (len(shown) - 1) / 2)
        axes.errorbar(
            places, rows["times uniform"].to_numpy(float), yerr=rows["+-"].fillna(0).to_numpy(float), color=look.colour,
            marker=look.marker, linestyle=dash, capsize=3, label=name, linewidth=1.2,
        )  # fmt: skip
    axes.axhline(1, color="#555555", linewidth=0.8, linestyle="--", label="uniform attention")
    axes.set_xticks(range(3), ["untrained", "trained", "trained, other experts\nsee another picture"])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("same-patch share / uniform share")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def moments_plotly(figure: Any, table: "pd.DataFrame") -> None:
    """Same-patch share in multiples of its uniform value at three moments."""
    for name, rows, look, _ in lines(table):
        figure.add_scatter(
            x=list(rows["moment"]),
            y=[float(v) for v in rows["times uniform"]],
            name=name,
            mode="lines+markers",
            line={"color": look.colour},
            marker={"symbol": look.symbol, "size": 8},
        )
    figure.update_layout(yaxis_title="same-patch share / uniform share", yaxis_rangemode="tozero")


def lines(table: "pd.DataFrame") -> list[tuple[str, "pd.DataFrame", Any, str]]:
    """Series, rows, style and dash: a method has its colour everywhere, a preset its dash."""
    dashes = {preset: DASHES[i % len(DASHES)][0] for i, preset in enumerate(table["preset"].unique())}
    return [
        (str(name), rows, style(str(rows["method"].iloc[0])), dashes[rows["preset"].iloc[0]])
        for name, rows in table.groupby("series", sort=False)
    ]


def tasks_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    """A line a series after each task, hollow marks before it."""
    for name, rows, look, dash in lines(table):
        for moment, part in rows.groupby("moment", sort=False):
            after = moment == "after its task"
            axes.errorbar(
                part["task"], part["times uniform"], yerr=part["+-"].fillna(0), color=look.colour, marker=look.marker,
                linestyle=dash if after else "", markerfacecolor=look.colour if after else "white", capsize=2,
                linewidth=1.2, label=name if after else None,
            )  # fmt: skip
    axes.axhline(1, color="#555555", linewidth=0.8, linestyle="--", label="uniform attention")
    axes.set_xticks(sorted(table["task"].unique()))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("task of the expert")
    axes.set_ylabel("same-patch share / uniform share")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def tasks_plotly(figure: Any, table: "pd.DataFrame") -> None:
    """A line a series after each task, hollow marks before it."""
    for name, rows, look, _ in lines(table):
        for moment, part in rows.groupby("moment", sort=False):
            after = moment == "after its task"
            figure.add_scatter(
                x=[int(v) for v in part["task"]],
                y=[float(v) for v in part["times uniform"]],
                name=f"{name}, {moment}",
                mode="lines+markers" if after else "markers",
                line={"color": look.colour},
                marker={"symbol": look.symbol if after else f"{look.symbol}-open", "color": look.colour, "size": 8},
            )
    figure.update_layout(xaxis_title="task of the expert", yaxis_title="same-patch share / uniform share")
    figure.update_yaxes(rangemode="tozero")


def start_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    """Same-patch shares of each part as dots on one line a series and scope."""
    lines = table[["series", "scope"]].drop_duplicates().to_numpy().tolist()
    for place, (name, scope) in enumerate(lines):
        rows = table[(table["series"] == name) & (table["scope"] == scope)].set_index("part")
        axes.plot(rows["same patch %"], [place] * len(rows), color="#cccccc", linewidth=1, zorder=1)
        for part, (marker, colour) in START.items():
            axes.plot(rows.loc[part, "same patch %"], place, marker=marker, color=colour, linestyle="", zorder=2)
        axes.plot(rows["uniform %"].iloc[0], place, marker="|", color="black", markersize=12, linestyle="")
        if rows["paper, trained %"].notna().any():
            axes.plot(rows["paper, trained %"].iloc[0], place, marker="x", color="#d55e00", linestyle="")
    for part, (marker, colour) in START.items():
        axes.plot([], [], marker=marker, color=colour, linestyle="", label=part)
    axes.plot([], [], marker="|", color="black", markersize=12, linestyle="", label="uniform attention")
    axes.plot([], [], marker="x", color="#d55e00", linestyle="", label="the paper, trained")
    axes.set_yticks(range(len(lines)), [f"{name}: {scope}" for name, scope in lines])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("same-patch share of the attention (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def start_plotly(figure: Any, table: "pd.DataFrame") -> None:
    """Same-patch shares of each part as dots on one line a series and scope."""
    for part, (_, colour) in START.items():
        rows = table[table["part"] == part]
        figure.add_scatter(
            x=[float(v) for v in rows["same patch %"]],
            y=[f"{name}: {scope}" for name, scope in zip(rows["series"], rows["scope"], strict=True)],
            mode="markers",
            name=part,
            marker={"color": colour, "size": 9},
        )
    figure.update_layout(xaxis_title="same-patch share of the attention (%)", xaxis_rangemode="tozero")
    figure.update_yaxes(autorange="reversed")


def _flow_blocks(table: "pd.DataFrame") -> list[tuple[str, np.ndarray]]:
    """A (reader, read) matrix a kind and layer, NaN where there is no connection."""
    size = int(table["expert"].max())
    blocks = []
    for (kind, layer), rows in table.groupby(["kind", "layer"], sort=False):
        square = np.full((size, size), np.nan)
        square[rows["expert"].to_numpy(int) - 1, rows["reads"].to_numpy(int) - 1] = rows["share %"].to_numpy(float)
        blocks.append((f"{kind}, layer {layer}", square[1:]))
    return blocks


def flow_axes(axes: "Axes", table: "pd.DataFrame") -> None:
    """A heat map of readers and read, one block a kind and layer."""
    blocks = _flow_blocks(table)
    rows, columns = blocks[0][1].shape
    gap = np.full((rows, 1), np.nan)
    whole = np.concatenate([part for _, square in blocks for part in (square, gap)][:-1], 1)
    image = axes.imshow(whole, cmap="cividis", vmin=0, vmax=100, aspect="equal")
    for (i, j), value in np.ndenumerate(whole):
        if value == value and columns <= 8:
            axes.text(
                j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value < 55 else "black"
            )
    starts = [number * (columns + 1) for number in range(len(blocks))]
    top = axes.secondary_xaxis("top")
    top.set_xticks([start + (columns - 1) / 2 for start in starts], [name for name, _ in blocks])
    top.tick_params(length=0, labelsize=8)
    top.spines["top"].set_visible(False)
    axes.set_xticks(
        [start + i for start in starts for i in range(columns)], [str(i + 1) for _ in starts for i in range(columns)]
    )
    axes.set_yticks(range(rows), [str(i + 2) for i in range(rows)])
    axes.tick_params(labelsize=7)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("expert that is read")
    axes.set_ylabel("expert that reads")
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label="%", shrink=0.7, pad=0.01)


def flow_plotly(figure: Any, table: "pd.DataFrame") -> None:
    """A heat map of readers and read, one block a kind and layer."""
    blocks = _flow_blocks(table)
    names = [f"{name}: {column + 1}" for name, square in blocks for column in range(square.shape[1])]
    whole = np.concatenate([square for _, square in blocks], 1)
    z = [[None if v != v else float(v) for v in row] for row in whole]
    rows = [f"expert {i + 2}" for i in range(len(z))]
    figure.add_heatmap(z=z, x=names, y=rows, zmin=0, zmax=100, colorscale="Cividis", colorbar={"title": "%"})
    figure.update_layout(xaxis={"title": "expert that is read", "type": "category"})
    figure.update_yaxes(title="expert that reads", autorange="reversed", type="category")
