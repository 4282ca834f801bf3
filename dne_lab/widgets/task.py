"""Task attention by hand: which heads of which experts a task reads at each patch."""

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from dne_lab.analysis import views
from dne_lab.core.errors import LabError
from dne_lab.plots import attention_colours, attention_views
from dne_lab.plots.figure import Figure
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Panel, Patches, scene
from dne_lab.widgets.panel import ExplorerTab, dropdown, html, limit, slider
from dne_lab.widgets.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

BLOCKS = {"task1": "first of the two", "task2": "second of the two"}


class TaskExplorer(ExplorerTab):
    """Image, task, layer, task attention block, query head and patch; the weights over all heads of all experts."""

    title = "Task attention"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        with_blocks = [name for name in subject.models if views.points(subject.models[name], views.TASKWISE)]
        names = with_blocks or list(subject.models)
        self.model = dropdown("model", names, names[0])
        self.expert = slider("task (expert)", 2, 2, 2)
        self.layer = slider("layer", 0, 0, 0)
        self.layer.tooltip = "the blocks with task attention; the last block of a class-attention network has none"
        self.block = dropdown("task attention", [(words, kind) for kind, words in BLOCKS.items()])
        self.head = slider("query head", 0, 0, 0)
        self.colours = dropdown("colours", attention_colours.SCALES, attention_colours.ABSOLUTE)
        self.bars = html("dne-bars")
        self.scale = html("dne-scale")
        self.maps = Patches()
        self.patches.label = "The image, and the expert that is read most at each patch; arrow keys choose the patch"
        self.maps.label = "Attention to each head; arrow keys choose the patch"
        self.maps.hint = ""
        with self.quietly():
            self.fit()
        widgets.link((self.patches, "patch"), (self.maps, "patch"))
        self.begin(
            [[self.model, self.block, self.colours], [self.expert, self.layer, self.head]],
            [
                widgets.HBox([self.patches, self.bars], layout=widgets.Layout(flex_flow="row wrap")),
                self.maps,
                self.scale,
            ],
        )

    def links(self) -> dict[str, tuple[Any, str]]:
        controls = {"model": self.model, "expert": self.expert, "layer": self.layer, "head": self.head}
        return {name: (control, "value") for name, control in controls.items()} | {"patch": (self.patches, "patch")}

    def aim(self) -> None:
        found = self.subject.structure(self.model.value, self.image, views.TASKWISE)
        if found:
            (block, layer, expert, head), patch = views.most_structured(found)
            self.set_in_order(patch, (self.block, block), (self.expert, expert), (self.layer, layer), (self.head, head))

    def fit(self) -> None:
        """Makes the controls offer what the model has."""
        found = views.points(self.subject.models[self.model.value], views.TASKWISE)
        if not found:
            return
        if self.block.value not in found or len(self.block.options) != len(found):
            self.block.options = [(BLOCKS[kind], kind) for kind in found]
        experts = found[self.block.value]
        limit(self.expert, min(experts), max(experts))
        layers = experts[self.expert.value]
        limit(self.layer, min(layers), max(layers))
        limit(self.head, 0, self.subject.models[self.model.value].heads[self.expert.value - 1] - 1)
        rows, columns = self.subject.grid(self.model.value)
        self.patches.patch = min(self.patches.patch, rows * columns - 1)

    def current(self) -> views.TaskView:
        """The numbers on the screen.

        Raises:
            LabError: the model has no task attention.
        """
        name = self.model.value
        network = self.subject.models[name]
        if not views.points(network, views.TASKWISE):
            if len(network.heads) == 1:
                raise LabError(
                    f"{name} has one expert so far. Task attention begins with the second: learn another task."
                )
            raise LabError(
                f"{name} ({network.variant.name}) has no task attention: its experts mix features by "
                f"{network.variant.mixes}. Look at a DNE model, or at the other tabs."
            )
        self.fit()
        found = self.subject.map(name, self.image, self.block.value, self.layer.value, self.expert.value)
        return views.task_view(found, self.head.value)

    def update(self) -> None:
        self.said.value = svg.sentence(self.subject.prediction(self.model.value, self.image))
        view = self.current()
        patch, most = self.patches.patch, view.most_read
        scale = attention_colours.task_scale(view, self.colours.value)
        top = attention_colours.scale_top(float(view.weights.max()), view.uniform)
        panels = [
            Panel("picture", attention_colours.picture(self.subject.images[self.image]), 180, lines=True),
            Panel(
                "expert read most, for each head",
                attention_colours.most_read(view),
                180,
                most,
                unit="expert",
                texts=tuple(str(number) for number in most),
                words=tuple(
                    f"expert {number}, {100 * margin:.3g}% above the next"
                    for number, margin in zip(most, view.margin, strict=True)
                ),
            ),
        ]
        self.patches.scene = scene(panels, view.grid)
        side = 78 if len(view.names) <= 18 else 56
        maps = [scale.colours(weights.reshape(view.grid)) for weights in view.weights.T]
        heads = [Panel(*each[:2], side, each[2]) for each in zip(view.names, maps, view.weights.T, strict=True)]
        self.maps.scene = scene(heads, view.grid)
        where = attention_views.place_name(patch, view.grid)
        title = f"what {where} of expert {view.expert} reads"
        self.bars.value = svg.bars(view.names, view.weights[patch], view.uniform, top, title, scale)
        total = view.by_expert[patch]
        even = [100 * view.key_expert.count(expert) * view.uniform for expert in view.experts]
        shares = "; ".join(
            f"expert {e}: {100 * v:.1f}% (uniform {u:.1f}%; all {len(every)} patches {svg.spanned(every)}%)"
            for e, v, u, every in zip(view.experts, total, even, view.by_expert.T, strict=True)
        )
        self.scale.value = (
            svg.heat_scale(scale, "attention to a head")
            + f'<div style="line-height: 18px; margin-top: 6px">All heads together, mean and range over patches: '
            f"{shares}. {svg.EXACT}<br>Colour of the expert read most: white where the next one is read as much, full "
            "where it is read half as much or less.</div>"
        )

    def figure(self) -> Figure:
        return attention_views.task_figure(
            self.current(), self.subject.images[self.image], self.patches.patch, self.colours.value
        )

    def numbers(self) -> "pd.DataFrame":
        return self.current().frame()
