"""Many images at once: where one patch of one head looks in each of them, and how far images differ."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch

from dne_lab.analysis import views
from dne_lab.analysis.image_table import (
    GROUP,
    IN_ORDER,
    ORDERS,
    WAYS,
    Chosen,
    Parts,
    by_label,
    image_table,
    over_images,
    parts_of,
    sorted_images,
)
from dne_lab.analysis.views import LookView
from dne_lab.core.errors import LabError
from dne_lab.measure.metrics import with_half_width
from dne_lab.plots import attention_colours
from dne_lab.plots.attention_views import place_name
from dne_lab.plots.figure import Figure
from dne_lab.plots.image_views import gallery_figure, spread_figure, spread_panel
from dne_lab.plots.style import KIND_WORDS
from dne_lab.plots.vector import chart
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Download, Panel, Patches, scene
from dne_lab.widgets.panel import ALL, ExplorerTab, dropdown, html, limit, offer, slider
from dne_lab.widgets.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

MOST = 60  # images on the screen and in one pass


class GalleryExplorer(ExplorerTab):
    """Model, expert, layer, query head and patch; the attention over every image, and the spread of the groups' shares.

    ``entered`` is called with the number of the image that is clicked.
    """

    title = "All images"
    subject: Subject

    def __init__(self, subject: Subject, entered: Callable[[int], None] | None = None) -> None:
        super().__init__(subject)
        names = list(subject.models)
        self.entered = entered
        self.model = dropdown("model", names, names[0])
        self.order = dropdown("sort", list(ORDERS), IN_ORDER)
        self.label = dropdown("only class", [("all", ALL)])
        self.colours = dropdown("colours", attention_colours.SCALES, attention_colours.RELATIVE)
        self.way = dropdown("shares by", [(f"{way} of the keys", way) for way in WAYS], GROUP)
        self.expert = slider("task (expert)", 1, 1, 1)
        self.layer = slider("layer", 0, 0, 0)
        self.head = slider("query head", 0, 0, 0)
        self.maps = Patches()
        self.maps.label, self.maps.hint = "All images; a click on a title chooses the image in all tabs", ""
        self.maps.on_enter(self._enter)
        self.patches.label = "The chosen image; arrow keys choose the patch"
        self.scale = widgets.HTML()
        self.count, self.spread, self.table = widgets.HTML(), html("dne-spread"), html("dne-by-class")
        self.found: dict[int, LookView] = {}  # by the number of the image
        self._key: Any = None
        widgets.link((self.patches, "patch"), (self.maps, "patch"))
        wrapped = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
        self.begin(
            [[self.model, self.order, self.label], [self.expert, self.layer, self.head], [self.colours, self.way]],
            [
                widgets.HBox([self.patches, self.scale], layout=widgets.Layout(flex_flow="row wrap")),
                self.count,
                self.maps,
                widgets.HBox([self.spread, self.table], layout=wrapped),
            ],
        )

        self.also_save(Download("save spread (PNG)", self._spread_png), Download("save shares (CSV)", self._shares_csv))

    def links(self) -> dict[str, tuple[Any, str]]:
        controls = {"model": self.model, "expert": self.expert, "layer": self.layer, "head": self.head}
        return {name: (control, "value") for name, control in controls.items()} | {"patch": (self.patches, "patch")}

    def _experts(self) -> dict[int, tuple[str, list[int]]]:
        """Kind and layers of each expert's attention over patches."""
        return views.of_experts(self.subject.models[self.model.value])

    def aim(self) -> None:
        """Where the chosen image's attention is furthest from uniform."""
        found = self.subject.structure(self.model.value, self.image, views.PATCHWISE)
        if not found:
            return
        (_, layer, expert, head), patch = views.most_structured(found)
        self.set_in_order(patch, (self.expert, expert), (self.layer, layer), (self.head, head))

    def fit(self) -> None:
        """Makes the controls offer what the model and the images have."""
        experts = self._experts()
        if not experts:
            raise LabError(f"{self.model.value}: there is no attention over patches to look at.")
        limit(self.expert, min(experts), max(experts))
        layers = experts[self.expert.value][1]
        limit(self.layer, min(layers), max(layers))
        limit(self.head, 0, self.subject.models[self.model.value].heads[self.expert.value - 1] - 1)
        labels = sorted({label for label in self.subject.labels if label is not None})
        offer(self.label, [("all", ALL), *((self.subject.name(label), label) for label in labels)])
        rows, columns = self.subject.grid(self.model.value)
        self.patches.patch = min(self.patches.patch, rows * columns - 1)

    def current(self) -> dict[int, LookView]:
        """Where the patch looks in each image, by its number, at most `MOST` of them."""
        self.fit()
        kind = self._experts()[self.expert.value][0]
        chosen = Chosen(kind, self.layer.value, self.expert.value, self.head.value, self.patches.patch)
        there = [n for n, label in enumerate(self.subject.labels) if self.label.value in (ALL, label)]
        # of many some from end to end: streams give images class by class
        wanted = there if len(there) <= MOST else [there[i * len(there) // MOST] for i in range(MOST)]
        name = self.model.value
        key = name, self.subject.stamp(name), chosen, tuple(wanted)
        if key != self._key:
            pixels = torch.stack([self.subject.images[number] for number in wanted])
            found = over_images(self.subject.models[name], pixels, chosen)
            self.found, self._key = dict(zip(wanted, found, strict=True)), key
        return self.found

    def shown(self) -> list[int]:
        """The numbers of the images, sorted."""
        found = self.current()
        numbers = list(found)
        return [numbers[place] for place in sorted_images(list(found.values()), self.order.value)]

    def per_image(self) -> "pd.DataFrame":
        """A row for each image that is shown, see `image_table`; shares of the parts that were chosen."""
        found, labels = self.current(), self.subject.labels
        words = ["no label" if (label := labels[n]) is None else self.subject.name(label) for n in found]
        return image_table(list(found.values()), words, self.way.value).assign(image=list(found))

    def by_class(self) -> "pd.DataFrame":
        """A row for each class of the images that are shown, in words, and one for uniform attention; parts without
        keys are left out."""
        import pandas as pd

        table, parts = by_label(self.per_image()), self.parts()
        uniform = {f"{name} %": share for name, share in zip(parts.names, 100 * parts.uniform, strict=True) if share}
        there = list(uniform)
        rows = {"class": table["label"], "images": table["images"].astype(str)}
        for name in (*there, "effective keys"):
            halves = zip(table[name], table[f"{name} +-"], strict=True)
            rows[name] = pd.Series([with_half_width(mean, half) for mean, half in halves])
        even = {name: f"{share:.2f}" for name, share in uniform.items()} | {"effective keys": str(parts.labels.size)}
        last = pd.DataFrame([{"class": "uniform", "images": "", **even}])
        return pd.concat([pd.DataFrame(rows), last], ignore_index=True)

    def parts(self) -> Parts:
        """The keys as they are sorted here: the same in every image."""
        return parts_of(next(iter(self.current().values())), self.way.value)

    def update(self) -> None:
        found, numbers = self.current(), self.shown()
        self.said.value = svg.sentence(self.subject.prediction(self.model.value, self.image))
        grid = self.subject.grid(self.model.value)
        pixels = {number: attention_colours.picture(self.subject.images[number]) for number in {*numbers, self.image}}
        self.patches.scene = scene([Panel("picture", pixels[self.image], 150, lines=True)], grid)
        panels = []
        scale = attention_colours.total_scale(list(found.values()), self.colours.value)
        for number in numbers:
            total = found[number].total
            over = attention_colours.laid_over(pixels[number], total.reshape(grid), scale)
            title = f"{number}: {found[number].effective:.3g} of {found[number].weights.size}"
            panels.append(Panel(title, over, 92, total))
        self.maps.scene = scene(panels, grid)
        every = len(self.subject.images)
        some = f"{len(numbers)} of {every} images. " if len(numbers) < every else ""
        view = found[numbers[0]]
        self.count.value = svg.sentence(
            f"{some}Each picture: where {place_name(view.patch, grid)} of expert {view.expert} looks "
            f"({KIND_WORDS[view.kind]}, layer {view.layer}, head {view.head}; all key heads together). Number: "
            "effective keys of all keys. A click chooses the image."
        )
        table = self.per_image()
        self.spread.value = chart(spread_panel(table, self.parts()))
        words = svg.table(self.by_class(), "mean over images and 95% interval, by class", digits=2)
        self.table.value = f'<div style="overflow-x: auto; max-width: 900px">{words}</div>'
        self.scale.value = svg.heat_scale(scale, "attention to a patch")

    def _enter(self, place: int) -> None:
        numbers = self.shown()
        if self.entered is not None and place < len(numbers):
            self.entered(numbers[place])

    def _title(self, what: str) -> str:
        view = next(iter(self.current().values()))
        where = place_name(view.patch, self.subject.grid(self.model.value))
        title = f"{self.model.value}: where {where} of expert {view.expert} looks in each image\n"
        return f"{title}{KIND_WORDS[view.kind]}, layer {view.layer}, head {view.head}; {what}"

    def spread_figure(self) -> Figure:
        """How far the shares differ between the images, as a figure."""
        return spread_figure(self.per_image(), self.parts(), self._title(f"shares by {self.way.value} of the keys"))

    def _spread_png(self) -> tuple[str, str, bytes]:
        return "attention_spread.png", "image/png", self.spread_figure().image("png")

    def _shares_csv(self) -> tuple[str, str, bytes]:
        return "attention_shares.csv", "text/csv", self.spread_figure().csv().encode()

    def figure(self) -> Figure:
        found = self.current()
        title = self._title(f"effective keys of {next(iter(found.values())).weights.size}")
        pictures = [(found[n], attention_colours.picture(self.subject.images[n])) for n in self.shown()]
        table = self.per_image().set_index("image").loc[self.shown()].reset_index()
        return gallery_figure(table, pictures, self.colours.value, title)

    def numbers(self) -> "pd.DataFrame":
        return self.per_image()
