"""Overview: every head of every layer as a small map, sorted by what it does; a click enters it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from dne_lab.analysis import head_table
from dne_lab.analysis.head_table import Head
from dne_lab.analysis.views import PATCHWISE
from dne_lab.core.errors import LabError
from dne_lab.models.attention import TASK1, TASK2
from dne_lab.plots import attention_colours
from dne_lab.plots.attention_views import place_name
from dne_lab.plots.figure import Figure
from dne_lab.plots.image_views import thumbnails_figure
from dne_lab.plots.style import KIND_WORDS
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Panel, Patches, scene
from dne_lab.widgets.panel import ALL, ExplorerTab, dropdown, offer
from dne_lab.widgets.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

MOST = 60  # maps on the screen
SORTS = {  # of attention: words, kinds
    "patches": ("where patches look", PATCHWISE),
    TASK1: (KIND_WORDS[TASK1], (TASK1,)),
    TASK2: (KIND_WORDS[TASK2], (TASK2,)),
}
KINDS = dict(SORTS.values())


class OverviewExplorer(ExplorerTab):
    """Image and patch; all heads of a kind of attention, sorted and filtered; ``entered`` is called with the one that
    is clicked."""

    title = "Overview"
    subject: Subject

    def __init__(self, subject: Subject, entered: Callable[[str, Head], None] | None = None) -> None:
        super().__init__(subject)
        names = list(subject.models)
        self.entered = entered
        self.model = dropdown("model", names, names[0])
        self.kind = dropdown("attention", list(KINDS))
        self.order = dropdown("sort", [(head_table.IN_ORDER, head_table.IN_ORDER)])
        self.of_layer = dropdown("only layer", [("all", ALL)])
        self.of_expert = dropdown("only expert", [("all", ALL)])
        self.colours = dropdown("colours", attention_colours.SCALES, attention_colours.RELATIVE)
        self.maps = Patches()
        self.maps.label, self.maps.hint = "All heads; a click on a title enters the head", ""
        self.maps.on_enter(self._enter)
        self.patches.label = "The image; arrow keys choose the patch"
        self.scale, self.count = widgets.HTML(), widgets.HTML()
        self.found: list[Head] = []
        widgets.link((self.patches, "patch"), (self.maps, "patch"))
        above = widgets.HBox([self.patches, self.scale], layout=widgets.Layout(flex_flow="row wrap"))
        self.begin(
            [[self.model, self.kind, self.order], [self.of_layer, self.of_expert, self.colours]],
            [above, self.count, self.maps],
        )

    def links(self) -> dict[str, tuple[Any, str]]:
        return {"model": (self.model, "value"), "patch": (self.patches, "patch")}

    def _all(self) -> list[Head]:
        return self.subject.heads(self.model.value, self.image)

    def fit(self) -> None:
        """Offers the kinds, orders, layers and experts that there are."""
        everything = self._all()
        kinds = [name for name, of in KINDS.items() if any(one.kind in of for one in everything)]
        if not kinds:
            raise LabError(f"{self.model.value}: there is no attention over patches to look at.")
        offer(self.kind, [(name, name) for name in kinds])
        there = [one for one in everything if one.kind in KINDS[self.kind.value]]
        names = [head_table.IN_ORDER, *head_table.orders(there)]
        offer(self.order, [(name, name) for name in names])
        offer(self.of_layer, [("all", ALL), *((f"layer {n}", n) for n in sorted({one.layer for one in there}))])
        offer(self.of_expert, [("all", ALL), *((f"expert {n}", n) for n in sorted({one.expert for one in there}))])
        self.patches.patch = min(self.patches.patch, len(there[0].maps) - 1)

    def aim(self) -> None:
        """The patch of the whole network's least spread-out head that is furthest from uniform."""
        there = [one for one in self._all() if one.kind in PATCHWISE]
        if there:
            first = head_table.ordered(there, head_table.ENTROPY)[0]
            self.patches.patch = int(first.maps.max(1).argmax())

    def chosen(self) -> list[Head]:
        """The heads that the controls name, sorted."""
        there = [one for one in self._all() if one.kind in KINDS[self.kind.value]]
        there = [one for one in there if self.of_layer.value in (ALL, one.layer)]
        there = [one for one in there if self.of_expert.value in (ALL, one.expert)]
        return head_table.ordered(there, self.order.value)

    def update(self) -> None:
        self.fit()
        chosen, patch = self.chosen(), self.patches.patch
        self.found = chosen[:MOST]
        self.said.value = svg.sentence(self.subject.prediction(self.model.value, self.image))
        pixels = attention_colours.picture(self.subject.images[self.image])
        grid = self.subject.grid(self.model.value)
        self.patches.scene = scene([Panel("picture", pixels, 150, lines=True)], grid)
        scale = attention_colours.scale_at(self.found, patch, self.colours.value)
        rows, colours = (
            attention_colours.rows_at(self.found, patch),
            attention_colours.colours_at(self.found, patch, scale),
        )
        unit = "attention" if scale is not None else "expert read most"
        self.maps.scene = scene(
            [
                Panel(f"L{one.layer} E{one.expert} H{one.head}: {one.effective:.3g} of {one.keys}", made, 92, row, unit)
                for one, made, row in zip(self.found, colours, rows, strict=True)
            ],
            grid,
        )
        more = f"{len(self.found)} of {len(chosen)} heads: sort them, or name a layer. " if len(chosen) > MOST else ""
        what = f"where {place_name(patch, grid)} looks" if scale is not None else "the expert read most at each patch"
        words = "L layer, E expert, H head: effective keys of all keys. A click enters the head."
        self.count.value = svg.sentence(f"{more}Each map: {what}. {words}")
        self.scale.value = svg.heat_scale(scale, "attention to a patch") if scale is not None else self._palette()

    def _palette(self) -> str:
        experts = sorted({expert for one in self.found for expert in one.key_expert})
        return svg.palette([f"expert {number}" for number in experts], experts)

    def _enter(self, place: int) -> None:
        if self.entered is not None and place < len(self.found):
            self.entered(self.model.value, self.found[place])

    def figure(self) -> Figure:
        self.fit()
        words = f"{self.model.value}: {self.kind.value}, {self.order.value}"
        where = place_name(self.patches.patch, self.subject.grid(self.model.value))
        title = f"{words}\nat {where}; L layer, E expert, H head, effective keys of all keys"
        return thumbnails_figure(self.chosen()[:MOST], self.patches.patch, self.colours.value, title)

    def numbers(self) -> "pd.DataFrame":
        self.fit()
        return head_table.table(self.chosen())
