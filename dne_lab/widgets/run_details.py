"""One run in the runs explorer: accuracy on each task after each task, and what it takes for what."""

from collections.abc import Sequence
from dataclasses import replace

import ipywidgets as widgets

from dne_lab.analysis.confusion import confusion
from dne_lab.analysis.run_views import RunView, names
from dne_lab.core.errors import LabError
from dne_lab.plots.accuracy import accuracy_matrix
from dne_lab.plots.figure import Figure
from dne_lab.plots.matrices import confusion_matrix
from dne_lab.plots.vector import chart
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Download
from dne_lab.widgets.panel import described, html, limit, offer

FEW, ROW, NARROW = 12, 26, 16  # rows up to which cells are wide; pixels of one


class RunDetails(widgets.VBox):
    """A choice of one run, R and the confusion matrix after a task."""

    def __init__(self) -> None:
        super().__init__()
        self.which = widgets.Dropdown(description="details of", style=described())
        self.which.layout.width = "480px"
        self.after = widgets.IntSlider(
            1, min=1, max=1, description="after task", continuous_update=False, style=described()
        )
        self.after.layout.width = "252px"
        self.matrix, self.confusion, self.message = html("dne-matrix"), html("dne-confusion"), html("dne-message")
        saving = [
            Download("save confusion (PNG)", lambda: self._saved("png")),
            Download("save confusion (CSV)", lambda: self._saved("csv")),
        ]
        self.saving = widgets.HBox(saving)
        wrap = widgets.Layout(flex_flow="row wrap")
        self.children = (
            widgets.HBox([self.which, self.after], layout=wrap),
            widgets.HBox([self.matrix, self.confusion], layout=wrap),
            self.message,
            self.saving,
        )
        self.runs: dict[str, RunView] = {}
        self._drawn: tuple[RunView, int] | None = None
        self._quiet = False
        self.which.observe(lambda change: self._moved(), "value")
        self.after.observe(lambda change: self.draw(), "value")

    def offer(self, runs: Sequence[RunView]) -> None:
        """The runs to choose from; the one that is shown stays if it is among them."""
        self.runs = {run.name: run for run in runs}
        self._quiet = True
        offer(self.which, list(zip(names(runs), self.runs, strict=True)))
        if self.which.value is None and runs:  # a choice that had nothing to choose from
            self.which.value = runs[0].name
        self._quiet = False
        self.layout.display = "" if runs else "none"
        self._moved()

    def _moved(self) -> None:
        run = self.runs.get(self.which.value)
        if run is None or self._quiet:
            return
        if self._drawn is None or self._drawn[0] is not run:
            self._quiet, last = True, max(1, len(run.record.seen_accuracy))
            limit(self.after, 1, last)
            self.after.value = last
            self._quiet = False
        self.draw()

    def draw(self) -> None:
        """Draws both matrices of the chosen run."""
        run = self.runs.get(self.which.value)
        if run is None or self._quiet or self._drawn == (run, self.after.value):
            return
        self._drawn = run, self.after.value
        said = []
        try:
            self.matrix.value = _matrix(accuracy_matrix(run.record), "accuracy on the test images of each task (%)")
        except LabError as error:
            self.matrix.value = ""
            said.append(str(error))
        try:
            title = f"what is taken for what after task {self.after.value} (% of a row)"
            self.confusion.value = _matrix(self.figure(), title)
            self.saving.layout.display = ""
        except LabError as error:
            self.confusion.value, self.saving.layout.display = "", "none"
            said.append(str(error))
        self.message.value = "".join(svg.sentence(text) for text in dict.fromkeys(said))

    def figure(self) -> Figure:
        """The confusion matrix of the chosen run after the chosen task. Raises LabError where there is none."""
        run = self.runs[self.which.value]
        return confusion_matrix(confusion(run, self.after.value), run)

    def _saved(self, suffix: str) -> tuple[str, str, bytes]:
        figure = self.figure()
        if suffix == "csv":
            return "confusion.csv", "text/csv", figure.csv().encode()
        return "confusion.png", "image/png", figure.image("png")


def _matrix(figure: Figure, title: str) -> str:
    """The one panel of a figure as SVG, which is on the page at once; its rows say what they are."""
    drawing = figure.marks()
    assert drawing is not None  # it has marks
    (panel,) = drawing.panels
    side = len(panel.y.names)
    rows = tuple(f"{panel.y.title} {name}" for name in panel.y.names)
    shown = replace(panel, y=replace(panel.y, names=rows), title=title)
    style = "display: inline-block; margin: 0 24px 8px 0"
    return f'<div style="{style}">{chart(shown, row=ROW if side <= FEW else NARROW)}</div>'
