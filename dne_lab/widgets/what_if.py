"""What if: connections, experts or groups switched off by hand."""

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from dne_lab.analysis import views
from dne_lab.analysis.ablation import Selection, WhatIf, accuracy, what_if
from dne_lab.analysis.labelling import GROUPS
from dne_lab.data.stream import Batch
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, TASK1, TASK2
from dne_lab.plots import attention_colours
from dne_lab.plots.attention_views import AFTER, BEFORE, moved_words, what_if_figure
from dne_lab.plots.figure import Figure
from dne_lab.plots.style import GROUP_WORDS
from dne_lab.widgets import svg
from dne_lab.widgets.panel import ExplorerTab, described, dropdown, html, offer
from dne_lab.widgets.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

SUBSET = 256  # labelled images on which the accuracy is counted
ANY = ""  # a Dropdown takes None for "nothing is chosen"
HOW = {
    "mean": "mean: what depends on the image goes",
    "zero": "zero: the rest is kept",
    "mask": "mask: the rest is scaled up (much, in task blocks)",
}
KIND_WORDS = {
    SPATIAL: "spatial attention",
    JOINT: "joint attention",
    TASK1: "first task block",
    TASK2: "second task block",
    CLASS: "class attention",
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
        self.how.layout, self.group.layout = widgets.Layout(width="430px"), widgets.Layout(width="340px")
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
            [[self.model, self.reads, self.expert], [self.kind, self.layer], [self.how, self.group]],
            [
                widgets.HBox([self.picture, self.classes], layout=wrapped),
                widgets.HBox([self.moved, self.accuracy], layout=wrapped),
            ],
        )

    def links(self) -> dict[str, tuple[Any, str]]:
        return {"model": (self.model, "value")}

    def fit(self) -> None:
        """Makes the controls offer what the model has."""
        state = (self.model.value, self.subject.stamp(self.model.value))
        if self._fitted == state:
            return
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
        if self._fitted[0] != state[0]:  # another model, not another moment of the same one
            for control in (self.reads, self.expert, self.kind, self.layer):
                control.value = ANY
            self.group.value = ()
        self._fitted = state

    def selection(self) -> Selection:
        """What the controls say."""
        controls = {"reads": self.reads, "expert": self.expert, "kind": self.kind, "layer": self.layer}
        chosen: dict[str, Any] = {n: None if control.value == ANY else control.value for n, control in controls.items()}
        return Selection(**chosen, group=self.group.value, how=self.how.value)

    def update(self) -> None:
        self.fit()
        selection, name = self.selection(), self.model.value
        network, image = self.subject.models[name], self.subject.images[self.image]
        self.said.value = svg.sentence(self.subject.prediction(name, self.image))
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
        self._counted = self._accuracy(selection)
        self.accuracy.value = self._accuracy_words()

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
        self.update()
        assert self.result is not None
        image = self.subject.images[self.image]
        return what_if_figure(self.result, image, self.subject.names, self._counted)

    def numbers(self) -> "pd.DataFrame":
        import pandas as pd

        self.update()
        assert self.result is not None
        old, new = (logits[0].double().numpy() for logits in (self.result.before, self.result.after))
        ranks = np.arange(len(old))
        names = [self.subject.name(int(rank)) for rank in ranks]
        return pd.DataFrame({"class": ranks, "name": names, "logit before": old, "logit after": new})
