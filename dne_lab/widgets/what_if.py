"""What if: connections, experts or groups switched off by hand."""

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch

from dne_lab.analysis import switches, views
from dne_lab.analysis.switches import Switch, WhatIf
from dne_lab.plots import attention_views as plots
from dne_lab.plots.figure import Figure
from dne_lab.plots.style import GROUP_WORDS
from dne_lab.plots.what_if import AFTER, BEFORE, KIND_WORDS, moved_words, switch_words, what_if_figure
from dne_lab.widgets import drawing
from dne_lab.widgets.part import Part, described, dropdown, html
from dne_lab.widgets.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

SUBSET = 256  # labelled images on which the accuracy is counted
EVERYWHERE: Any = None
HOW = {"mask": "mask: rest scaled", "zero": "zero: rest kept"}


class WhatIfExplorer(Part):
    """Image, what is off and where; logits, every expert's output and the accuracy before and after."""

    title = "What if"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        names = list(subject.models)
        connected = [n for n in names if {"joint", "task1", "task2"} & {e[0] for e in views.entries(subject.models[n])}]
        self.model = dropdown("model", names, [*connected, *names][0])
        self.kind = dropdown("in attention", [("everywhere", EVERYWHERE)])
        self.reader = dropdown("read by", [("all experts", EVERYWHERE)])
        self.layer = dropdown("in layer", [("all layers", EVERYWHERE)])
        self.how = dropdown("weights", [(words, how) for how, words in HOW.items()])
        self.off = widgets.SelectMultiple(description="switch off", rows=10, style=described())
        self.off.layout = widgets.Layout(width="340px")
        self.picture = widgets.HTML()
        self.classes = html("dne-classes")
        self.moved = html("dne-moved")
        self.accuracy = html("dne-accuracy")
        self.result: WhatIf | None = None
        self._counted: pd.DataFrame | None = None
        self._fitted = ""
        with self.quietly():
            self._fit()
        self.begin(
            [[self.model, self.how], [self.kind, self.reader, self.layer], [self.off]],
            [
                widgets.HBox(
                    [self.picture, self.classes], layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start")
                ),
                widgets.HBox([self.moved, self.accuracy], layout=widgets.Layout(flex_flow="row wrap")),
            ],
        )

    def _fit(self) -> None:
        """Makes the controls offer what the model has."""
        if self._fitted == self.model.value:
            return
        network = self.subject.models[self.model.value]
        there = [entry for entry in views.entries(network) if entry[0] in switches.KINDS]
        kinds = list(dict.fromkeys(kind for kind, *_ in there))
        self.kind.options = [("everywhere", EVERYWHERE), *((KIND_WORDS[kind], kind) for kind in kinds)]
        experts = range(1, len(network.heads) + 1)
        self.reader.options = [("all experts", EVERYWHERE), *((f"expert {number}", number) for number in experts)]
        layers = sorted({layer for _, layer, *_ in there})
        self.layer.options = [("all layers", EVERYWHERE), *((f"layer {layer}", layer) for layer in layers)]
        across = {"SPDH": bool({*kinds} - {"spatial"}), "DPDH": "joint" in kinds}  # where one head reads another
        groups = [name for name in views.GROUP_NAMES if across.get(name, True)]
        self.off.options = [
            *((f"expert {number}", ("expert", number)) for number in experts),
            *((f"{name}: {GROUP_WORDS[name]}", ("group", name)) for name in groups),
        ]
        self._fitted = self.model.value

    def switch(self) -> Switch:
        """What the controls say."""
        chosen = self.off.value
        return Switch(
            experts=tuple(number for what, number in chosen if what == "expert"),
            groups=tuple(name for what, name in chosen if what == "group"),
            kinds=None if self.kind.value is EVERYWHERE else (self.kind.value,),
            layers=None if self.layer.value is EVERYWHERE else (self.layer.value,),
            readers=None if self.reader.value is EVERYWHERE else (self.reader.value,),
            how=self.how.value,
        )

    def update(self) -> None:
        self._fit()
        switch, name = self.switch(), self.model.value
        network = self.subject.models[name]
        image = self.subject.images[self.image]
        self.result = switches.what_if(network, image[None], switch)
        self.said.value = drawing.sentence(self.subject.prediction(name, self.image)) + drawing.sentence(
            switch_words(switch)
        )
        self.picture.value = drawing.image(plots.picture(image), 150, "the image")
        table = self.result.classes()
        table.insert(0, "name", [self.subject.name(rank) for rank in table.pop("class")])
        before, after = (int(out.logits[0].argmax()) for out in (self.result.before, self.result.after))
        verdict = "stays" if before == after else f"changes to {self.subject.name(after)}"
        self.classes.value = drawing.pairs(
            list(table["name"]),
            table["softmax before"].to_numpy(),
            table["softmax after"].to_numpy(),
            (BEFORE, AFTER),
            f"softmax of the best classes; the prediction {verdict}",
        ) + drawing.table(table, "", digits=3)
        self.moved.value = self._moved(self.result)
        # The picture is on the screen by now; the subset takes longer.
        self._counted = self._accuracy(switch)
        self.accuracy.value = self._accuracy_words()

    def _moved(self, result: WhatIf) -> str:
        lines = [
            f"<tr><td>expert {number}</td><td style='padding-left: 10px'>{words}</td></tr>"
            for number, words in enumerate(moved_words(result.moved), start=1)
        ]
        head = "outputs of the experts (frozen ones in front of the switch stay)"
        return drawing.framed("".join(lines), head)

    def _accuracy(self, switch: Switch) -> "pd.DataFrame | None":
        found = self.subject.labelled()
        if found is None:
            return None
        images, labels = (part[:: -(-len(part) // SUBSET)] for part in found)
        whole = switches.what_if(self.subject.models[self.model.value], images, switch, labels)
        return whole.accuracy(self.subject.tasks)

    def _accuracy_words(self) -> str:
        if self._counted is None:
            return drawing.sentence("No accuracy: these images have no labels.")
        return drawing.table(self._counted, "accuracy on the labelled images given", digits=1)

    def figure(self) -> Figure:
        self.update()
        assert self.result is not None
        image = self.subject.images[self.image]
        return what_if_figure(self.result, image, self.subject.names, self._counted)

    def numbers(self) -> "pd.DataFrame":
        self.update()
        assert self.result is not None
        old, new = (out.logits[0].double().cpu() for out in (self.result.before, self.result.after))
        import pandas as pd

        ranks = torch.arange(len(old)).numpy()
        names = [self.subject.name(rank) for rank in ranks]
        return pd.DataFrame({"class": ranks, "name": names, "logit before": old.numpy(), "logit after": new.numpy()})
