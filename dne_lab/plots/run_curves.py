"""Runs, or configurations of several seeds, side by side: accuracy as classes arrive, and beside it the losses by epoch
or the cost."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.run_groups import GroupView, group_table
from dne_lab.analysis.run_views import RunView, short, table
from dne_lab.core.errors import LabError
from dne_lab.measure.record import RUN_FIRST
from dne_lab.plots.accuracy import cost_panels, run_series, runs_panel
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Panel, Points, around
from dne_lab.plots.series import scale
from dne_lab.plots.style import line_of

if TYPE_CHECKING:
    import pandas as pd

MOST_LINES = 16  # that one picture takes, and an eye
MOST_POINTS = 200  # of a line of losses; of more epochs every second, third, ... is drawn
MARKED = 40  # points up to which a line has markers
LOSSES, COST = "losses", "cost"
SIZE = (8.4, 3.9)


def group_series(made: Sequence[GroupView]) -> list[Points]:
    """Accuracy over the classes seen, a line per configuration: mean over seeds, and its 95% interval as a band."""
    used: dict[str, int] = {}
    found = []
    for view in made:
        method = view.group.first.method
        used[method] = used.get(method, -1) + 1
        x, mean, half = view.accuracy()
        look, dash, filled = line_of(method, used[method])
        more: dict[str, Any] = {"filled": filled, "band": len(x) > 1, "notes": [view.seeds] * len(x)}
        y = mean.tolist()
        found.append(Points(short(view.name), list(map(float, x)), y, look, dash, **more, **around(y, half)))
    return found


def runs_compared(shown: Sequence[RunView] | Sequence[GroupView], beside: str = LOSSES) -> Figure:
    """Runs, or configurations, side by side; the table has a row for each, the drawing at most `MOST_LINES`.

    Args:
        shown: runs, or all of them groups of runs.
        beside: what stands beside accuracy: `LOSSES` by epoch, or `COST` (accuracy against it, and attention).

    Raises:
        LabError: nothing is chosen.
    """
    if not shown:
        raise LabError(f"no run is chosen. {RUN_FIRST}")
    made = [view for view in shown if isinstance(view, GroupView)]
    runs = [view for view in shown if isinstance(view, RunView)]
    frame = group_table(made) if made else table(runs)
    lines = group_series(made[:MOST_LINES]) if made else run_series(runs[:MOST_LINES])
    records = [record for view in made for record in view.group.records] or [run.record for run in runs]
    heading = f"{'Configurations' if made else 'Runs'} side by side: {scale(records)}"
    said = ["mean over seeds, of accuracy with its 95% interval"] if any(len(view.runs) > 1 for view in made) else []
    if len(shown) > MOST_LINES:
        said.append(f"the first {MOST_LINES} of {len(shown)} are drawn")
    if beside == COST:
        draw = functools.partial(_beside_cost, lines=lines)
    else:
        some = MOST_LINES
        losses = [view.total_loss() for view in made[:some]] or [run.total_loss for run in runs[:some]]
        said += [] if any(map(len, losses)) else ["no curves.csv beside these records: no losses"]
        draw = functools.partial(_beside_losses, lines=lines, losses=losses)
    heading = "\n".join(filter(None, [heading, ", ".join(said)]))
    return Figure("runs", heading, frame, [record.id for record in records], draw, SIZE)


# The drawings --------------------------------------------------------------------------------------------------------


def _beside_cost(table: "pd.DataFrame", lines: Sequence[Points]) -> Drawing:
    return Drawing([cost_panels(table[: len(lines)], lines)])


def _beside_losses(table: "pd.DataFrame", lines: Sequence[Points], losses: Sequence[NDArray[np.float64]]) -> Drawing:
    """Accuracy over the classes seen, and where there are any the losses by epoch."""
    there = [_loss_line(line, values) for line, values in zip(lines, losses, strict=True) if len(values)]
    beside = [Panel(there, Axis("epoch of the run"), Axis("training loss, all terms"), wide=1.5)] if there else []
    return Drawing([[runs_panel(lines), *beside]])


def _loss_line(line: Points, values: NDArray[np.float64]) -> Points:
    """The losses of a run in the look of its accuracy."""
    step = -(-len(values) // MOST_POINTS)
    places = np.arange(len(values))[::-1][::step][::-1]  # the last epoch is among them
    x, y = (places + 1.0).tolist(), values[places].tolist()
    area = 16.0 if len(x) <= MARKED else 0.0
    return Points(line.name, x, y, line.look, line.dash or "-", filled=line.filled, area=area, listed=False, width=1.1)
