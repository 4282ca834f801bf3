"""Runs side by side, from a folder; and one run while it trains."""

import asyncio
import itertools
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from dne_lab.analysis import run_views
from dne_lab.analysis.run_groups import GroupView, curve_rows, grouped, matching, with_intervals
from dne_lab.analysis.run_views import RunView, natural, short
from dne_lab.core.errors import LabError
from dne_lab.core.files import absolute
from dne_lab.plots.accuracy import run_series, runs_panel
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Panel, Points
from dne_lab.plots.run_curves import COST, LOSSES, runs_compared
from dne_lab.plots.style import DASHES, STYLES, other
from dne_lab.plots.vector import chart
from dne_lab.training.run import Run
from dne_lab.widgets import code, svg
from dne_lab.widgets.browser import Copy, Download
from dne_lab.widgets.panel import FigureView, begun, described, html, pictured, without_null
from dne_lab.widgets.run_details import RunDetails
from dne_lab.widgets.run_pairs import PairOfGroups
from dne_lab.widgets.turns import in_turn

if TYPE_CHECKING:
    import pandas as pd

SECONDS = 2.0  # between two looks at a folder that is followed
FIRST = 6  # runs, or configurations, that are chosen where nothing was
MOST_ROWS = 60  # of the table on the page
LIVE = (390, 230)  # pixels of a chart of a run that is watched
HINT = "words, e.g. dne seed=0 finished -joint learn.epochs=30; then Enter"


class RunsExplorer(widgets.VBox):
    """Accuracy, losses, cost and attention of runs of a folder, one by one or averaged over seeds, two configurations
    compared, one run's matrices; ``follow`` looks again every two seconds."""

    def __init__(self, folder: Path, attention: Path | None = None, view: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.path, self.attention = folder, attention
        wide, wrap = widgets.Layout(width="420px"), widgets.Layout(flex_flow="row wrap")
        long = {"continuous_update": False, "style": described()}
        self.folder = widgets.Text(str(folder), description="folder", layout=wide, **long)
        self.follow = widgets.Checkbox(description="follow runs that are still going", indent=False)
        self.words = widgets.Text(description="filter", placeholder=HINT, layout=wide, **long)
        self.by_configuration = widgets.Checkbox(description="group by configuration (mean over seeds)", indent=False)
        self.beside = widgets.Dropdown(
            options=[("training losses", LOSSES), ("cost and attention", COST)],
            description="beside it", style=described(),
        )  # fmt: skip
        self.beside.layout.width = "252px"
        self.chosen = widgets.SelectMultiple(description="runs", rows=6, style=described())
        self.chosen.layout.width = "640px"
        self.message, self.count = widgets.HTML(), html("dne-count")
        self.curves, self.table = FigureView("dne-curves"), html("dne-table")
        saving = [
            Download("save picture (PNG)", self._png),
            Download("save numbers (CSV)", self._csv),
            Download("save curves (CSV)", self._curves_csv),
            Copy(self.code),
        ]
        self.pair, self.details = PairOfGroups(), RunDetails()
        self.view = widgets.VBox([self.curves, self.table, widgets.HBox(saving, layout=wrap), self.pair, self.details])
        self.children = (
            widgets.HBox([self.folder, self.follow], layout=wrap),
            widgets.HBox([self.words, self.by_configuration], layout=wrap),
            widgets.HBox([self.chosen, self.beside], layout=wrap),
            self.count,
            self.message,
            self.view,
        )
        self.layout.max_width = "1000px"
        self.add_class("dne-explorer")
        self.runs: list[RunView] = []
        self.wrong: list[LabError] = []  # what is damaged in the folder
        self.groups: list[GroupView] = []
        self._grouped: tuple[Any, ...] = ()  # the runs of which `groups` were made
        self._seen: Any = None
        self._complaint = ""  # why runs cannot be grouped
        self._quiet = False
        self._task: asyncio.Task[None] | None = None
        self.folder.observe(self._moved, "value")
        for control in (self.words, self.by_configuration):
            control.observe(lambda change: self._offer(), "value")
        for control in (self.chosen, self.beside):
            control.observe(lambda change: self.draw(), "value")
        self.follow.observe(self._followed, "value")
        self._moved()
        if view:
            first, left = [self.words, self.by_configuration], dict(view)
            mine = {one.description: left.pop(one.description) for one in first if one.description in left}
            code.restore(first, mine, lambda: None)
            code.restore(self._controls()[len(first) :], left, lambda: None)
        without_null(self)
        in_turn(self)

    def _controls(self) -> list[Any]:
        """Those that say what is seen, the ones first on which the others depend."""
        first = [self.words, self.by_configuration, self.chosen, self.beside]
        pair = [self.pair.one, self.pair.other] if self.by_configuration.value else []
        return [*first, *pair, self.details.which, self.details.after]

    def code(self) -> str:
        """The lines of a notebook that open an explorer at what is seen here."""
        attention = {} if self.attention is None else {"attention": str(self.attention)}
        return code.call("lab.explore_runs", [repr(str(self.path))], attention, code.state(self._controls()))

    def _repr_mimebundle_(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where committed notebooks are made, what is seen as a picture besides: pages that only show them have it."""
        bundle = super()._repr_mimebundle_(**given)
        return pictured(self, bundle) if self.shown() else bundle

    def _moved(self, change: Any = None) -> None:
        self._seen, self.runs = None, []
        self.look()

    def look(self) -> bool:
        """Reads what has changed in the folder; whether anything has. What is wrong is said in `message`."""
        try:
            self.path = absolute(self.folder.value)
            now = run_views.changed(self.path) if self.path.is_dir() else ()
            if now == self._seen:
                return False
            self._seen, self.wrong = now, []
            found = run_views.find(self.path, self.attention, self.wrong)
            self.runs = sorted(found, key=lambda run: natural(run.name))
        except LabError as error:
            self.runs, self.wrong = [], [error]
        except OSError as error:
            self.runs, self.wrong = [], [LabError(f"{self.path} cannot be read: {error.strerror or error}.")]
        self._offer()
        return True

    def _offer(self) -> None:
        """Lists the runs, or configurations, that fit the words; those that were chosen stay chosen."""
        fits = matching(self.runs, self.words.value)
        failed = ""
        self._quiet = True
        try:
            if self.by_configuration.value and tuple(map(id, fits)) != self._grouped:
                self.groups, self._grouped = [], tuple(map(id, fits))
                self.groups = grouped(fits)
        except LabError as error:
            failed = f"{error} Or leave one of them out with the filter."
            self._grouped = ()
        if self.by_configuration.value:
            options = [(view.label, view.name) for view in self.groups]
        else:
            options = [(f"{short(run.name)}: {run.label}", run.name) for run in fits]
        before = set(self.chosen.value)
        there = [name for _, name in options]
        self.chosen.description = "groups" if self.by_configuration.value else "runs"
        if tuple(self.chosen.options) != tuple(options):
            self.chosen.value = ()  # the page would look for those chosen among fewer options
            self.chosen.options = options
        self.chosen.value = tuple(name for name in there if name in before) or self._first(fits)
        self._quiet = False
        self.count.value = svg.sentence(self._counted(fits)) if self.runs else ""
        self._complaint = failed
        self.pair.offer(self.groups if self.by_configuration.value else [])
        self.draw()

    def _first(self, fits: Sequence[RunView]) -> tuple[str, ...]:
        """What is shown first: of every method in turn one run, or one configuration."""
        views = self.groups if self.by_configuration.value else fits
        waiting: dict[str, list[str]] = {}
        for view in views:
            record = view.runs[0].record if isinstance(view, GroupView) else view.record
            waiting.setdefault(record.method, []).append(view.name)
        each = itertools.chain.from_iterable(itertools.zip_longest(*waiting.values()))
        chosen = {*itertools.islice((name for name in each if name is not None), FIRST)}
        return tuple(view.name for view in views if view.name in chosen)

    def _counted(self, fits: Sequence[RunView]) -> str:
        text = f"{len(fits)} of {len(self.runs)} runs fit the filter" if self.words.value.strip() else ""
        text = text or f"{len(self.runs)} run{'s' * (len(self.runs) != 1)}"
        if self.by_configuration.value:
            going = sum(not run.record.finished for run in fits)
            text += f", {len(self.groups)} configurations"
            text += f"; {going} not finished and in none" if going else ""
        return f"{text}."

    def shown(self) -> list[RunView]:
        """The chosen runs, or those of the chosen configurations."""
        if self.by_configuration.value:
            return [run for view in self.shown_groups() for run in view.runs]
        chosen = set(self.chosen.value)
        return [run for run in self.runs if run.name in chosen]

    def shown_groups(self) -> list[GroupView]:
        """The chosen configurations; none where runs are shown one by one."""
        chosen = set(self.chosen.value) if self.by_configuration.value else set()
        return [view for view in self.groups if view.name in chosen]

    def draw(self) -> None:
        """Draws the chosen runs or configurations."""
        if self._quiet:
            return
        shown = self.shown()
        self.view.layout.display = "" if shown else "none"
        self.message.value = "".join(svg.sentence(text, wrong=True) for text in self._complaints(bool(shown)))
        self.details.offer(shown)
        if shown:
            figure = self.figure()
            self.curves.show(figure)
            self.table.value = _table(figure.table, self.shown_groups())

    def _complaints(self, shown: bool) -> list[str]:
        found = [self._complaint] if self._complaint else []
        if self.wrong:
            more = f" And {len(self.wrong) - 1} more like it." if len(self.wrong) > 1 else ""
            found.append(f"{run_views.readable(str(self.wrong[0]))}{more}")
        if not shown and self.chosen.options:
            found.append(f"Choose one or more {self.chosen.description} above.")
        elif not shown and self.runs and not found:
            found.append("No run fits the filter." if self.words.value.strip() else "No run is finished.")
        return found

    def _followed(self, change: Any) -> None:
        if not self.follow.value or (self._task is not None and not self._task.done()):
            return
        self._task = begun(_follow(weakref.ref(self)))

    def figure(self) -> Figure:
        """What is drawn, as a figure: of the chosen runs, or of the chosen configurations."""
        return runs_compared(self.shown_groups() or self.shown(), self.beside.value)

    def _png(self) -> tuple[str, str, bytes]:
        return "runs.png", "image/png", self.figure().image("png")

    def _csv(self) -> tuple[str, str, bytes]:
        return "runs.csv", "text/csv", self.figure().csv().encode()

    def _curves_csv(self) -> tuple[str, str, bytes]:
        frame = curve_rows(self.shown(), self.shown_groups())
        return "curves.csv", "text/csv", frame.to_csv(index=False, float_format="%.4f", lineterminator="\n").encode()


def _table(frame: "pd.DataFrame", groups: Sequence[GroupView]) -> str:
    title = "same patch: share of attention on the query's own patch, by dne-lab report --attention"
    if groups:
        title = f"mean over seeds ± half width of the 95% interval (Student's t); {title}"
        frame = with_intervals(frame)
    if len(frame) > MOST_ROWS:
        title = f"the first {MOST_ROWS} of {len(frame)} rows, the CSV file has all; {title}"
    return f'<div style="overflow-x: auto">{svg.table(frame[:MOST_ROWS], title, digits=2)}</div>'


async def _follow(explorer: "weakref.ref[RunsExplorer]") -> None:
    """Looks at the folder as long as the explorer is there and its box is ticked."""
    while True:
        await asyncio.sleep(SECONDS)
        there = explorer()
        if there is None or not there.follow.value or there.comm is None:
            return
        there.look()
        del there


def epochs_panel(lines: Sequence[Points], title: str) -> Panel:
    """Losses over the epochs of a run."""
    return Panel(lines, Axis("epoch of the run"), Axis(title))


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
        series = run_series([RunView(run.config.method, run.record)])
        self.losses.value = _live(epochs_panel(lines, "training losses"), "Losses are drawn after the first epoch.")
        self.accuracy.value = _live(runs_panel(series), "Accuracy is drawn after the first task.")


def _live(panel: Panel, otherwise: str) -> str:
    """Its chart, in so few pixels that two stand beside one another in a cell of JupyterLab at 1280."""
    there = any(mark.x for mark in panel.marks if isinstance(mark, Points))
    return chart(panel, size=LIVE) if there else svg.sentence(otherwise)


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


def explore_runs(
    folder: str | Path = "runs",
    attention: str | Path = "runs/report/records/attention",
    view: Mapping[str, Any] | None = None,
) -> RunsExplorer:
    """Runs of a folder side by side, for JupyterLab and Voilà; also runs that are still going in another process.

    Args:
        folder: where the runs are, or the records of runs.
        attention: where `dne-lab report --attention` has written what it measured of them; it need not exist.
        view: what is chosen first, as its button "copy as code" writes it: values by the labels of the controls.
    """
    return RunsExplorer(Path(folder), Path(attention), view)
