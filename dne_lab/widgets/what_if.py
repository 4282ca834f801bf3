"""What if: connections, experts or groups switched off by hand."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from dne_lab.analysis import views
from dne_lab.analysis.ablation import Selection, WhatIf, accuracy, what_if
from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.sweep import image_sweep
from dne_lab.data.stream import Batch
from dne_lab.models.attention import JOINT, TASK1, TASK2
from dne_lab.plots import attention_colours
from dne_lab.plots.attention_views import AFTER, BEFORE, moved_words, what_if_figure
from dne_lab.plots.figure import Figure
from dne_lab.plots.style import GROUP_WORDS, KIND_WORDS
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Download, Panel, Patches, scene
from dne_lab.widgets.panel import ExplorerTab, described, dropdown, html, offer
from dne_lab.widgets.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

SUBSET = 256  # labelled images on which the accuracy is counted
ANY = ""  # a Dropdown takes None for "nothing is chosen"
CLICK = "A click switches that connection off."
UNKNOWN = "It was not tried: experts read earlier ones alone, and of many experts the newest one is asked."
HOW = {
    "mean": "mean: what depends on the image goes",
    "zero": "zero: the rest is kept",
    "mask": "mask: the rest is scaled up (much, in task blocks)",
}


class WhatIfExplorer(ExplorerTab):
    """Image, what is off and where; logits, every expert's output and the accuracy before and after."""

    title = "What if"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        names = list(subject.models)
        connected = [n for n in names if {JOINT, TASK1, TASK2} & {e[0] for e in views.entries(subject.models[n])}]
        self.model = dropdown("model", names, [*connected, *names][0])
        self.reads = dropdown("switch off", [("nothing", ANY)])
        self.expert = dropdown("as read by", [("all", ANY)])
        self.kind = dropdown("in attention", [("everywhere", ANY)])
        self.layer = dropdown("in layer", [("all layers", ANY)])
        self.how = dropdown("weights", [(words, how) for how, words in HOW.items()])
        self.group = widgets.SelectMultiple(description="only groups", rows=4, style=described())
        self.how.layout.width, self.group.layout.width = "430px", "340px"
        self.ask = widgets.Button(description="what matters most here?", layout=widgets.Layout(width="auto"))
        self.ask.on_click(lambda button: self._asked())
        self.matrix, self.answer = Patches(), html("dne-answer")
        self.matrix.label = "How far each connection's removal moves the answer; arrow keys choose the connection"
        self.matrix.hint = CLICK
        self.matrix.observe(self._picked, "patch")
        self._tried: tuple[object, pd.DataFrame] | None = None
        self.picture = widgets.HTML()
        self.classes = html("dne-classes")
        self.moved = html("dne-moved")
        self.accuracy = html("dne-accuracy")
        self.result: WhatIf | None = None
        self._counted: pd.DataFrame | None = None
        self._fitted: tuple[str, object] = ("", None)
        with self.quietly():
            self.fit()
        wrapped = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
        self.begin(
            [[self.model, self.reads, self.expert], [self.kind, self.layer], [self.how, self.group], [self.ask]],
            [
                widgets.HBox([self.matrix, self.answer], layout=wrapped),
                widgets.HBox([self.picture, self.classes], layout=wrapped),
                widgets.HBox([self.moved, self.accuracy], layout=wrapped),
            ],
        )

        self.counted = Download("save accuracy (CSV)", self._accuracy_csv)
        self.also_save(self.counted)

    def _accuracy_csv(self) -> tuple[str, str, bytes]:
        assert self._counted is not None  # else the button is not seen
        text = self._counted.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return "what_if_accuracy.csv", "text/csv", text.encode()

    def links(self) -> dict[str, tuple[Any, str]]:
        return {"model": (self.model, "value")}

    def fit(self) -> None:
        """Makes the controls offer what the model has."""
        state = (self.model.value, self.subject.stamp(self.model.value))
        if self._fitted == state:
            return
        reader = self.expert.value
        network = self.subject.models[self.model.value]
        there = views.entries(network)
        kinds = list(dict.fromkeys(kind for kind, *_ in there))
        numbers = range(1, len(network.heads) + 1)
        experts = [(f"expert {number}", number) for number in numbers]
        offer(self.reads, [("no expert", ANY), ("all other experts", "others"), *experts])
        offer(self.expert, [("all", ANY), *experts])
        offer(self.kind, [("everywhere", ANY), *((KIND_WORDS[kind], kind) for kind in kinds)])
        offer(self.layer, [("all layers", ANY), *((f"layer {n}", n) for n in sorted({n for _, n, *_ in there}))])
        # where one head reads another
        across = {"SPDH": bool({JOINT, TASK1, TASK2} & {*kinds}), "DPDH": JOINT in kinds}
        groups = [name for name in GROUPS if across.get(name, True)]
        offer(self.group, [(f"{name}: {GROUP_WORDS[name]}", name) for name in groups])
        if self.expert.value != reader:  # at this moment that expert is not there: nothing is asked of it
            self.reads.value = ANY
        if self._fitted[0] != state[0]:  # another model, not another moment of the same one
            for control in (self.reads, self.expert, self.kind, self.layer):
                control.value = ANY
            self.group.value = ()
        self._fitted = state

    def restore(self, given: Mapping[str, Any]) -> None:
        super().restore(given)  # the question is that of the model, image and weights that are given
        with self.quietly():
            self._try_all()
        super().restore(given)  # what is given is chosen in place of the answer

    def _question(self) -> object:
        return self.model.value, self.subject.stamp(self.model.value), self.image, self.how.value

    def _try_all(self) -> None:
        """Switches off one connection after the other, and chooses the one that changes this image most."""
        name = self.model.value
        network, image = self.subject.models[name], self.subject.images[self.image]
        if self.busy.value:
            self.tell("Each connection between experts is switched off once, to find the one that matters most.")
        known = self.subject.connections(name), self.subject.means(name)
        found = image_sweep(network, image, self.how.value, *known)
        self._tried = self._question(), found
        if len(found):
            most = found.sort_values("change", ascending=False).iloc[0]
            self.reads.value, self.expert.value = int(most["reads"]), int(most["expert"])
            self.kind.value, self.layer.value, self.group.value = ANY, ANY, ()

    def _asked(self) -> None:
        self.seconds = math.inf  # this takes longer than what was done last
        with self.quietly(), self.computing():
            self._try_all()
            self.refresh()

    def _picked(self, change: Any) -> None:
        """A cell of the matrix: the expert that reads (row, from 2) and the one that is read (column)."""
        if self._quiet or self._tried is None or self._tried[0] != self._question():
            return  # a click that was on its way when the matrix went
        columns = self.matrix.scene["grid"][1]
        expert, reads = change["new"] // columns + 2, change["new"] % columns + 1
        there = self._tried[1]
        known = bool(((there["expert"] == expert) & (there["reads"] == reads)).any())
        self.matrix.hint = CLICK if known else UNKNOWN
        if known:
            with self.quietly():
                self.reads.value, self.expert.value = reads, expert
            self.refresh()

    def _show_tried(self) -> None:
        """The matrix of what was tried, and in words."""
        current = self._tried is not None and self._tried[0] == self._question()
        shown = current and self._tried is not None and len(self._tried[1]) > 0
        self.matrix.layout.display = "" if shown else "none"
        self.answer.value = ""
        if not shown or self._tried is None:
            return
        found = self._tried[1]
        experts = int(found["expert"].max())
        grid = experts - 1, experts - 1
        square = np.full(grid, np.nan)
        square[found["expert"].to_numpy() - 2, found["reads"].to_numpy() - 1] = found["change"]
        top = max(float(found["change"].max()), 1e-9)
        pixels = attention_colours.heat(square, top)
        pixels[np.isnan(square)] = 127
        texts = tuple("" if value != value else f"{value:.2g}" for value in square.ravel())
        names = [f"expert {row + 2} without expert {column + 1}" for row in range(grid[0]) for column in range(grid[1])]
        panel = Panel("expert that reads (from the top) x expert that is read", pixels, 200, square.ravel(), "change %",
                      texts=texts)  # fmt: skip
        self.matrix.scene = scene([panel], grid, names)
        if isinstance(self.reads.value, int) and isinstance(self.expert.value, int):
            self.matrix.patch = (self.expert.value - 2) * grid[1] + self.reads.value - 1
        first = found.sort_values("change", ascending=False).iloc[0]
        self.answer.value = svg.sentence(
            f"Of {len(found)} connections the one that matters most for this image: expert {first['expert']:.0f} reads "
            f"expert {first['reads']:.0f}. Without it {first['change']:.3g}% of the softmax moves to other classes "
            f"(median of all: {found['change'].median():.3g}%). Click another one."
        )

    def selection(self) -> Selection:
        """What the controls say."""
        controls = {"reads": self.reads, "expert": self.expert, "kind": self.kind, "layer": self.layer}
        chosen: dict[str, Any] = {n: None if control.value == ANY else control.value for n, control in controls.items()}
        return Selection(**chosen, group=self.group.value, how=self.how.value)

    def update(self) -> None:
        self.fit()
        name = self.model.value
        self.said.value = svg.sentence(self.subject.prediction(name, self.image))
        if self._tried is None:  # it opens with a question already asked
            self._try_all()
        self._show_tried()
        selection = self.selection()
        network, image = self.subject.models[name], self.subject.images[self.image]
        self.result = what_if(network, image[None], selection, self.subject.connections(name), self.subject.means(name))
        self.said.value += svg.sentence(self.result.what)
        self.picture.value = svg.image(attention_colours.picture(image), 150, "the image")
        table = self.result.classes()
        table.insert(0, "name", [self.subject.name(rank) for rank in table.pop("class")])
        before, after = (int(logits[0].argmax()) for logits in (self.result.before, self.result.after))
        verdict = "stays" if before == after else f"changes to {self.subject.name(after)}"
        self.classes.value = svg.pairs(
            list(table["name"]),
            table["softmax before"].to_numpy(),
            table["softmax after"].to_numpy(),
            (BEFORE, AFTER),
            f"softmax of the best classes; the prediction {verdict}",
        ) + svg.table(table, "", digits=3)
        self.moved.value = svg.facts(
            [f"expert {number}" for number in range(1, len(self.result.moved) + 1)],
            moved_words(self.result.moved),
            "outputs of the experts",
        )
        # The image's answer is on the screen by now; the labelled images take longer.
        if self.busy.value:
            self.view.remove_class("dne-old")
            self.tell("The accuracy on the labelled images is being counted.")
        self._counted = self._accuracy(selection)
        self.accuracy.value = self._accuracy_words()
        self.counted.layout.display = "none" if self._counted is None else ""

    def _accuracy(self, selection: Selection) -> "pd.DataFrame | None":
        found = self.subject.labelled(self.model.value)
        if found is None:
            return None
        step = -(-len(found.index) // SUBSET)
        return accuracy(self.subject.models[self.model.value], Batch(*(part[::step] for part in found)), selection)

    def _accuracy_words(self) -> str:
        if self._counted is None:
            return svg.sentence("No accuracy: these images have no labels.")
        table = self._counted[["task", "images", "before %", "after %", "loss", "+-"]]
        return svg.table(table.astype({"task": str}), "accuracy on the labelled images given", digits=1)

    def figure(self) -> Figure:
        if self.behind or self.result is None:
            self.update()
        assert self.result is not None
        image = self.subject.images[self.image]
        return what_if_figure(self.result, image, self.subject.names, self._counted)

    def numbers(self) -> "pd.DataFrame":
        import pandas as pd

        if self.behind or self.result is None:
            self.update()
        assert self.result is not None
        old, new = (logits[0].double().numpy() for logits in (self.result.before, self.result.after))
        ranks = np.arange(len(old))
        names = [self.subject.name(int(rank)) for rank in ranks]
        return pd.DataFrame({"class": ranks, "name": names, "logit before": old, "logit after": new})
