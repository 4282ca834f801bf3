"""Fragmentation: how spread out a row of attention is, layer by layer, as its entropy and as effective keys."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.decomposition import TRAINED, Decomposition
from dne_lab.measure.groups import TITLES
from dne_lab.measure.metrics import interval
from dne_lab.plots.attention_drawings import lines
from dne_lab.plots.attention_settings import estimate, scale_of, settings
from dne_lab.plots.figure import Figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

USED, ENTROPY = "effective keys / keys (%)", "entropy of a row (nats)"


def fragmentation(found: Iterable[Decomposition]) -> Figure:
    """Entropy of a row in nats, and its exponential, the effective keys, in percent of the keys that the row could use.

    Layer by layer, with the values of uniform attention: log of the number of keys, and 100.

    Raises LabError as `attention.attention_groups` does.
    """
    import pandas as pd

    made = settings(found, TRAINED)
    rows: list[dict[str, Any]] = []
    for (preset, method), members in made.items():
        tables = [member.patches(name="rows_by_layer") for member in members]
        for layer in tables[0]["layer"]:
            chosen = [t[t["layer"] == layer].iloc[0] for t in tables]
            mean, width = interval([100 * float(row["effective keys"] / row["keys"]) for row in chosen])
            keys, low, high = estimate(chosen, "effective keys")
            if width is None:  # one seed: over its images
                width = 50 * (high - low) / float(chosen[0]["keys"])
            entropy, least, most = estimate(chosen, "entropy")
            rows.append(
                {"series": f"{TITLES.get(method, method)}, {preset}", "method": method, "preset": preset}
                | {"layer": int(layer), "entropy": entropy, "entropy low": least, "entropy high": most}
                | {"uniform entropy": float(chosen[0]["uniform entropy"])}
                | {"effective keys": keys, "keys": float(chosen[0]["keys"]), "used %": mean, "+-": width}
                | {"largest %": float(np.mean([row["largest %"] for row in chosen]))}
                | {"uniform largest %": float(chosen[0]["uniform largest %"]), "seeds": len(members)}
            )
    members = [member for several in made.values() for member in several]
    heading = "Entropy of attention, and keys in effective use of those that a query sees, by layer\n"
    heading += f"experts 2, 3, ...; {scale_of(members)}"
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure("fragmentation", heading, frame, [m.run for m in members], _axes, _plotly, (9.4, 3.8))


# The drawings -----------------------------------------------------------------------------------------------------


def _axes(axes: "Axes", table: "pd.DataFrame") -> None:
    axes.set_axis_off()
    left, right = axes.inset_axes((0.06, 0.12, 0.36, 0.84)), axes.inset_axes((0.52, 0.12, 0.36, 0.84))
    for name, rows, look, dash in lines(table):
        layers, used, width = rows["layer"], rows["used %"].to_numpy(float), rows["+-"].to_numpy(float)
        for part, values, low, high in (
            (left, rows["entropy"], rows["entropy low"], rows["entropy high"]),
            (right, used, used - width, used + width),
        ):
            part.plot(layers, values, color=look.colour, marker=look.marker, linestyle=dash, label=name)
            part.fill_between(layers, low, high, color=look.colour, alpha=0.15, linewidth=0)
        left.plot(layers, rows["uniform entropy"], color="#555555", linewidth=0.8, linestyle="--", zorder=1)
    right.axhline(100, color="#555555", linewidth=0.8, linestyle="--", label="uniform attention")
    right.set_ylim(0, 105)
    left.set_ylim(bottom=0)
    for part, label in ((left, ENTROPY), (right, USED)):
        part.set_xticks(sorted(table["layer"].unique()))
        part.set_xlabel("layer")
        part.set_ylabel(label)
    right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def _plotly(figure: Any, table: "pd.DataFrame") -> None:
    for name, rows, look, _ in lines(table):
        for column, axis in (("entropy", ""), ("used %", "2")):
            figure.add_scatter(
                x=[int(v) for v in rows["layer"]],
                y=[float(v) for v in rows[column]],
                name=name,
                legendgroup=name,
                showlegend=not axis,
                mode="lines+markers",
                line={"color": look.colour},
                marker={"symbol": look.symbol, "size": 8},
                xaxis=f"x{axis}",
                yaxis=f"y{axis}",
            )
    figure.update_layout(
        xaxis={"title": "layer", "domain": [0, 0.45]}, xaxis2={"title": "layer", "domain": [0.55, 1]},
        yaxis={"title": ENTROPY, "rangemode": "tozero"}, yaxis2={"title": USED, "anchor": "x2", "range": [0, 105]},
    )  # fmt: skip
