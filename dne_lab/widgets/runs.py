"""Runs side by side, from a folder; and one run while it trains."""

import asyncio
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from dne_lab.analysis import run_views
from dne_lab.analysis.run_views import RunView
from dne_lab.core.errors import LabError
from dne_lab.plots.accuracy import run_series, runs_figure, runs_panel
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Panel, Points
from dne_lab.plots.style import DASHES, STYLES, other, style
from dne_lab.plots.vector import chart
from dne_lab.training.run import Run
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Download
from dne_lab.widgets.panel import begun, described, html
from dne_lab.widgets.turns import in_turn

if TYPE_CHECKING:
    import pandas as pd

SECONDS = 2.0  # between two looks at a folder that is followed


class RunsExplorer(widgets.VBox):
    """Accuracy, cost and attention of the runs chosen from a folder; ``follow`` looks again every two seconds."""

    def __init__(self, folder: Path, attention: Path | None = None) -> None:
        super().__init__()
        self.path, self.attention = folder, attention
        self.folder = widgets.Text(str(folder), description="folder", continuous_update=False, style=described())
        self.folder.layout.width = "420px"
        self.follow = widgets.Checkbox(description="follow runs that are still going", indent=False)
        self.chosen = widgets.SelectMultiple(description="runs", rows=8, style=described())
        self.chosen.layout.width = "640px"
        self.message = widgets.HTML()
        self.curves, self.losses, self.table = html("dne-curves"), html("dne-losses"), html("dne-table")
        saving = [Download("save picture (PNG)", self._png), Download("save numbers (CSV)", self._csv)]
        self.view = widgets.VBox(
            [
                widgets.HBox([self.curves, self.losses], layout=widgets.Layout(flex_flow="row wrap")),
                self.table,
                widgets.HBox(saving),
            ]
        )
        self.children = (widgets.HBox([self.folder, self.follow]), self.chosen, self.message, self.view)
        self.layout.max_width = "1000px"
        self.runs: list[RunView] = []
        self._seen: Any = None
        self._task: asyncio.Task[None] | None = None
        self.folder.observe(self._moved, "value")
        self.chosen.observe(lambda change: self.draw(), "value")
        self.follow.observe(self._followed, "value")
        in_turn(self)
        self._moved()

    def _moved(self, change: Any = None) -> None:
        self.path, self._seen = Path(self.folder.value).expanduser(), None
        self.look()

    def look(self) -> bool:
        """Reads the folder again if a file of it has changed; whether one has."""
        now = run_views.changed(self.path) if self.path.is_dir() else ()
        if now == self._seen:
            return False
        self._seen = now
        before, first = set(self.chosen.value), not self.runs
        try:
            self.runs = run_views.find(self.path, self.attention)
        except LabError as error:
            self.runs = []
            self.message.value = svg.sentence(str(error), wrong=True)
        names = [run.name for run in self.runs]
        self.chosen.options = [(f"{run.name}: {run.label}", run.name) for run in self.runs]
        chosen = tuple(name for name in names if name in before) or (tuple(names[:6]) if first else ())
        self.chosen.value = chosen
        self.draw()
        return True

    def shown(self) -> list[RunView]:
        """The chosen runs."""
        return [run for run in self.runs if run.name in self.chosen.value]

    def draw(self) -> None:
        """Draws the chosen runs."""
        shown = self.shown()
        self.view.layout.display = "" if shown else "none"
        if not shown:
            if self.runs:
                self.message.value = svg.sentence("Choose one or more runs above.")
            return
        self.message.value = ""
        self.curves.value = chart(runs_panel(run_series(shown)))
        self.losses.value = _losses(shown)
        title = (
            "runs side by side (same patch: share of attention on the query's own patch, by dne-lab report --attention)"
        )
        self.table.value = svg.table(run_views.table(shown), title, digits=2)

    def _followed(self, change: Any) -> None:
        if not self.follow.value or (self._task is not None and not self._task.done()):
            return
        self._task = begun(_follow(weakref.ref(self)))

    def figure(self) -> Figure:
        """The chosen runs, drawn statically."""
        return runs_figure(self.shown())

    def _png(self) -> tuple[str, str, bytes]:
        return "runs.png", "image/png", self.figure().image("png")

    def _csv(self) -> tuple[str, str, bytes]:
        return "runs.csv", "text/csv", self.figure().csv().encode()


async def _follow(explorer: "weakref.ref[RunsExplorer]") -> None:
    """Looks at the folder as long as the explorer is there and its box is ticked."""
    while True:
        await asyncio.sleep(SECONDS)
        there = explorer()
        if there is None or not there.follow.value or there.comm is None:
            return
        there.look()
        del there


def _losses(shown: Sequence[RunView]) -> str:
    lines = []
    for place, run in enumerate(shown):
        frame = run_views.losses(run.curves)
        lines += (
            loss_lines(frame, run.name, DASHES[place % len(DASHES)][0], style(run.record.method)) if len(frame) else []
        )
    return chart(epochs_panel(lines, "training loss, all terms together")) if lines else ""


def epochs_panel(lines: Sequence[Points], title: str) -> Panel:
    """Losses over the epochs of a run."""
    return Panel(lines, Axis("epoch of the run"), Axis(title))


def loss_lines(frame: "pd.DataFrame", name: str, dash: str, look: Any) -> list[Points]:
    """The sum of the losses of each epoch as a line."""
    terms = [column for column in frame.columns if column not in ("epoch of the run", "task", "stage", "epoch", "lr")]
    total = frame[terms].sum(axis=1)
    return [Points(name, frame["epoch of the run"].tolist(), total.tolist(), look, dash)]


class LiveRun(widgets.VBox):
    """One run while it trains: where it is, every loss by epoch, accuracy after each task."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.losses, self.accuracy = widgets.HTML(), widgets.HTML(), widgets.HTML()
        both = widgets.HBox([self.losses, self.accuracy], layout=widgets.Layout(flex_flow="row wrap"))
        self.children = (self.place, both)
        self.layout.max_width = "1000px"

    def show(self, run: Run) -> None:
        """Brings the screen up to date with a run."""
        rows = run.curves
        last = rows[-1] if rows else None
        status = "finished" if run.finished else f"task {run.cursor.task} of {len(run.stream)}"
        if last is not None and not run.finished:
            status += f", last epoch: {last['epoch']} of stage {last['stage']} in task {last['task']}"
        self.place.value = svg.sentence(f"{run.config.method}, seed {run.config.seed}: {status}")
        frame = run_views.losses(rows)
        terms = [name for name in frame.columns if name not in ("epoch of the run", "task", "stage", "epoch", "lr")]
        looks = [*STYLES.values(), *map(other, range(3))]
        lines = []
        for place, name in enumerate(terms):
            there = frame[frame[name].notna()]
            x, y = there["epoch of the run"].tolist(), there[name].tolist()
            lines.append(Points(name, x, y, looks[(place + 1) % len(looks)], DASHES[place % len(DASHES)][0]))
        self.losses.value = chart(epochs_panel(lines, "training losses"))
        view = RunView(run.config.method, run.record)
        self.accuracy.value = chart(runs_panel(run_series([view])))


def watch(run: Run) -> LiveRun:
    """A view of a run that follows its training, the same one each time; `Run.watch` calls this."""
    there = [viewer for viewer in run.viewers if isinstance(getattr(viewer, "__self__", None), LiveRun)]
    for viewer in there:
        if (before := viewer.__self__).comm is not None:  # type: ignore[attr-defined]
            before.show(run)
            return before
        run.viewers.remove(viewer)  # one that was closed
    live = LiveRun()
    live.show(run)
    run.viewers.append(live.show)
    return live


def explore_runs(folder: str | Path = "runs", attention: str | Path = "runs/report/records/attention") -> RunsExplorer:
    """Runs of a folder side by side, for JupyterLab and Voilà; also runs that are still going in another process.

    Args:
        folder: where the runs are, or the records of runs.
        attention: where `dne-lab report --attention` has written what it measured of them; it need not exist.
    """
    return RunsExplorer(Path(folder), Path(attention))
