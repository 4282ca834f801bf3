"""Fragmentation: how spread out a row of attention is, layer by layer, as its entropy and as effective keys."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.decomposition import TRAINED, Decomposition
from dne_lab.measure.groups import TITLES
from dne_lab.measure.metrics import interval
from dne_lab.plots.attention_drawings import UNIFORM, lines
from dne_lab.plots.attention_settings import estimate, scale_of, settings
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Level, Mark, Panel, Points

if TYPE_CHECKING:
    import pandas as pd

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
    return Figure("fragmentation", heading, frame, [m.run for m in members], _marks, (8.4, 3.8))


# The drawings -----------------------------------------------------------------------------------------------------


def _marks(table: "pd.DataFrame") -> Drawing:
    """Two panels: entropy of a row, and effective keys in percent."""
    left: list[Mark] = []
    right: list[Mark] = [Level("uniform attention", 100.0)]
    for name, rows, look, dash in lines(table):
        layers, used, width = rows["layer"].astype(float).tolist(), rows["used %"], rows["+-"]
        notes = ["one seed" if seeds == 1 else f"{seeds} seeds" for seeds in rows["seeds"]]
        left.append(
            Points(f"{name}, uniform attention", layers, rows["uniform entropy"].tolist(), UNIFORM, "--", area=0.0,
                   width=0.8, listed=False)
        )  # fmt: skip
        for marks, values, low, high in (
            (left, rows["entropy"], rows["entropy low"], rows["entropy high"]),
            (right, used, used - width, used + width),
        ):
            ends: dict[str, Any] = {"low": low.tolist(), "high": high.tolist(), "notes": notes}
            marks.append(Points(name, layers, values.tolist(), look, dash, band=True, **ends))
    x = Axis("layer", ticks=tuple(sorted(map(float, table["layer"].unique()))))
    both = Panel(left, x, Axis(ENTROPY, low=0.0)), Panel(right, x, Axis(USED, low=0.0, high=105.0))
    return Drawing([both])
