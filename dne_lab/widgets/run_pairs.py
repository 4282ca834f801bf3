"""Two configurations in the runs explorer: their difference, seed by seed."""

from collections.abc import Sequence

import ipywidgets as widgets

from dne_lab.analysis.run_groups import GroupView, difference, opening_pair
from dne_lab.core.errors import LabError
from dne_lab.widgets import svg
from dne_lab.widgets.panel import described, html, offer

HIGHEST = 200  # pixels of the table: of many seeds it scrolls


class PairOfGroups(widgets.VBox):
    """Two choices of a configuration, and the paired difference between them in words and as a table."""

    def __init__(self) -> None:
        super().__init__()
        self.one = widgets.Dropdown(description="difference of", style=described())
        self.other = widgets.Dropdown(description="minus", style=described())
        for control in (self.one, self.other):
            control.layout.width = "420px"
        self.said, self.table = html("dne-difference"), html("dne-pairs")
        row = widgets.HBox([self.one, self.other], layout=widgets.Layout(flex_flow="row wrap"))
        self.children = (row, self.said, self.table)
        self.groups: dict[str, GroupView] = {}
        self._asked: tuple[str, str] | None = None  # by the user
        self._quiet = False
        for control in (self.one, self.other):
            control.observe(self._moved, "value")

    def offer(self, groups: Sequence[GroupView]) -> None:
        """The groups to choose from; what was chosen stays if it is among them."""
        self.groups = {view.name: view for view in groups}
        options = [(view.label, view.name) for view in groups]
        opening = opening_pair(groups)
        self._quiet = True
        for control in (self.one, self.other):
            offer(control, options)
        if self._asked is not None and {*self._asked} <= {*self.groups}:
            self.one.value, self.other.value = self._asked
        elif opening is not None:
            self.one.value, self.other.value = (view.name for view in opening)
        self._quiet = False
        self.layout.display = "" if len(groups) > 1 else "none"
        self.draw()

    def _moved(self, change: object) -> None:
        if not self._quiet:
            self._asked = self.one.value, self.other.value
            self.draw()

    def draw(self) -> None:
        """Says how the two differ."""
        if self._quiet or len(self.groups) < 2:
            return
        one, other = self.groups[self.one.value], self.groups[self.other.value]
        try:
            found = difference(one, other)
        except LabError as error:
            self.said.value, self.table.value = svg.sentence(str(error), wrong=True), ""
            return
        self.said.value = "".join(map(svg.sentence, found.said))
        title = "last accuracy (%) seed by seed, and the difference in points"
        style = f"max-height: {HIGHEST}px; overflow-y: auto; width: fit-content; padding-right: 16px"
        table = svg.table(found.frame, title) if len(found.frame) else ""
        self.table.value = f'<div style="{style}">{table}</div>'
