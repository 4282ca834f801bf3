"""What controls change: LA of each minus that of the method that it is of, with its interval over seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dne_lab.measure import trained_controls
from dne_lab.measure.trained_controls import Control
from dne_lab.methods.base import title_of
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Level, Mark, Points, around, one
from dne_lab.plots.series import scale
from dne_lab.plots.style import style

if TYPE_CHECKING:
    import pandas as pd

DIFFERENCE = "LA minus the method itself"


def controls_figure(found: Mapping[str, Sequence[Control]]) -> Figure:
    """A row for each control, below the method that it changes; bars: 95% intervals, paired by seed.

    Args:
        found: of `dne_lab.measure.trained_controls.controls`, not empty.
    """
    import pandas as pd

    tables = [
        trained_controls.table(mine, DIFFERENCE).assign(method=method).sort_values(DIFFERENCE, kind="stable")
        for method, mine in found.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "method", table.pop("method"))
    members = [record for mine in found.values() for control in mine for record in control.pair.one.records]
    seeds = sorted({len(control.pair.seeds) for mine in found.values() for control in mine})
    counted = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] > 1)}"
    heading = f"Controls that were trained: {scale(members)}, {counted}\n"
    heading += "points of LA that a control is above (right) or below the method itself, paired by seed"
    ids = {control.words: [r.id for r in control.pair.one.records] for mine in found.values() for control in mine}
    return Figure("controls", heading, table, ids, _marks, (8.4, 1.4 + 0.27 * len(table)))


def _marks(table: "pd.DataFrame") -> Drawing:
    names = tuple(f"{title_of(m)} {words}" for m, words in zip(table["method"], table["control"], strict=True))
    marks: list[Mark] = [Level("the method itself", 0.0, upright=True, listed=False)]
    for method, rows in table.groupby("method", sort=False):
        values, half = rows[DIFFERENCE], rows["+-"]
        notes = [
            f"LA {last:.1f}, {seeds} seed{'s' * (seeds > 1)}" + (f", p (Holm) {p:.2g}" if p == p else "")
            for last, seeds, p in zip(rows["LA"], rows["seeds"], rows["p (Holm)"], strict=True)
        ]
        places = [float(place) for place in rows.index]
        ends = around(values, half)
        look = style(str(method))
        marks.append(Points(title_of(str(method)), values.tolist(), places, look, "", across=True, notes=notes, **ends))
    return one(marks, Axis("points of LA"), Axis("", "category", names, reverse=True))
