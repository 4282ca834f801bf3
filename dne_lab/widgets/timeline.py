"""Through time: one image along the stream of a run, from the untrained network to the last task."""

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from dne_lab.analysis.moments import NEWEST, along
from dne_lab.core.errors import LabError
from dne_lab.plots.figure import Figure
from dne_lab.plots.image_views import (
    classes_along,
    classes_panel,
    flow_panels,
    groups_panel,
    keys_panel,
    through_time_figure,
)
from dne_lab.plots.vector import chart
from dne_lab.widgets import svg
from dne_lab.widgets.panel import ALL, ExplorerTab, dropdown, html, offer
from dne_lab.widgets.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

SIZE = (390, 210)  # pixels of a chart: two stand side by side
CELL = 26  # pixels of a cell of a matrix


class TimelineExplorer(ExplorerTab):
    """Prediction, groups, effective keys and who reads whom at every moment of a run; the chosen moment is marked."""

    title = "Through time"
    subject: Subject

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        names = list(subject.moments) or list(subject.models)
        self.model = dropdown("model", names, names[0])
        self.expert = dropdown("expert", [("newest of each", NEWEST)])
        self.layer = dropdown("layer", [("all (mean)", ALL)])
        self.classes, self.groups, self.spread = html("dne-along"), html("dne-along-groups"), html("dne-along-keys")
        self.flow = html("dne-flow")
        wrapped = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
        self.begin(
            [[self.model, self.expert, self.layer]],
            [
                widgets.HBox([self.classes, self.groups], layout=wrapped),
                widgets.HBox([self.spread, self.flow], layout=wrapped),
                widgets.HTML(svg.sentence(f"Means over the image's patches. {svg.EXACT}")),
            ],
        )

    def links(self) -> dict[str, tuple[Any, str]]:
        return {"model": (self.model, "value")}

    def fit(self) -> None:
        """Offers the experts and layers of the run's last moment."""
        if self.model.value not in self.subject.moments:
            return
        found = self.subject.glances(self.model.value, self.image)
        experts = sorted({number for glance in found for number in glance.experts})
        layers = sorted({layer for glance in found for _, layer, _ in glance.groups})
        offer(self.expert, [("newest of each", NEWEST), *((f"expert {n}", n) for n in experts)])
        offer(self.layer, [("all (mean)", ALL), *((f"layer {n}", n) for n in layers)])

    def _tables(self) -> "tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, int, int]":
        """Classes, groups, who reads whom at the chosen moment; the place of that moment, and how many experts."""
        name = self.model.value
        if name not in self.subject.moments:
            raise LabError(
                f"{name} is a network without its past. Give the run in its place, lab.explore(run, images), a run's "
                "folder, or a file that `dne-lab export RUN FILE.safetensors --every-task` wrote."
            )
        moments = self.subject.moments[name]
        found, places = self.subject.glances(name, self.image), moments.places
        names = [moments.name(place) for place in places]
        at = max(number for number, place in enumerate(places) if place <= self.subject.moment)
        layer = None if self.layer.value == ALL else int(self.layer.value)
        table = along(found, names, int(self.expert.value), layer)
        words = [self.subject.name(rank) for rank in range(max(len(glance.logits) for glance in found))]
        classes = classes_along(found, names, words, self.subject.labels[self.image], at)
        return classes, table, found[at].flow(layer), at, max(len(glance.experts) for glance in found)

    def update(self) -> None:
        classes, table, flow, at, experts = self._tables()
        names = table["moment"].tolist()
        self.said.value = svg.sentence(f"{names[at]}: {self.subject.prediction(self.model.value, self.image)}")
        self.classes.value = chart(classes_panel(classes, names, at), size=SIZE)
        self.groups.value = chart(groups_panel(table, at), size=SIZE)
        self.spread.value = chart(keys_panel(table, at), size=SIZE)
        panels = flow_panels(flow, experts) if experts > 1 else []
        self.flow.value = "".join(
            f'<div style="display: inline-block; margin-right: 12px">{chart(panel, row=CELL)}</div>' for panel in panels
        ) or svg.sentence(f"{names[at]}: no expert reads another one.")

    def figure(self) -> Figure:
        classes, table, flow, at, experts = self._tables()
        title = f"{self.model.value}, one image along the stream\nmatrices: {table['moment'][at]}"
        return through_time_figure(classes, table, flow, title, at, experts)

    def numbers(self) -> "pd.DataFrame":
        return self.figure().table
