"""Spatial and joint attention by hand: where a patch looks, by the four groups of keys, two models side by side."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from dne_lab.analysis import views
from dne_lab.core.errors import LabError
from dne_lab.plots import attention_colours, attention_views
from dne_lab.plots.figure import Figure
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Download, Panel, Patches, scene
from dne_lab.widgets.panel import ExplorerTab, dropdown, html, limit, slider
from dne_lab.widgets.subject import Subject

if TYPE_CHECKING:
    import pandas as pd


NOBODY = ""


class SpatialExplorer(ExplorerTab):
    """Image, expert, layer, query head and patch; where it looks in one model or in two."""

    title = "Spatial and joint"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        names = list(subject.models)
        joint = [name for name in names if subject.models[name].variant.joint]
        own = sorted(set(names) - set(joint), key=lambda n: (subject.models[n].variant.mixes != "mlp", names.index(n)))
        first, *others = [*own[:1], *joint[:1], *own[1:]]  # independent and joint attention, where both are there
        self.left = dropdown("model", names, first)
        other = next((name for name in others if subject.grid(name) == subject.grid(first)), NOBODY)
        self.right = dropdown("beside it", [("nothing", NOBODY), *((name, name) for name in names)], other)
        self.expert = slider("task (expert)", 1, 1, 1)
        self.layer = slider("layer", 0, 0, 0)
        self.head = slider("query head", 0, 0, 0)
        self.colours = dropdown("colours", attention_colours.SCALES, attention_colours.RELATIVE)
        self.maps = [Patches(), Patches()]
        self.tables = [html("dne-shares"), html("dne-shares")]
        self.names = [widgets.HTML(), widgets.HTML()]
        self.columns = [
            widgets.VBox([name, maps, table], layout=widgets.Layout(flex="1 1 380px", overflow="auto"))
            for name, maps, table in zip(self.names, self.maps, self.tables, strict=True)
        ]
        self.scale = widgets.HTML()
        self.patches.label = "The image; arrow keys choose the patch"
        for maps in self.maps:
            maps.label, maps.hint = "Where the chosen patch looks, head by head; arrow keys choose the patch", ""
        with self.quietly():
            self.fit()
        for maps in self.maps:
            widgets.link((self.patches, "patch"), (maps, "patch"))
        above = widgets.HBox([self.patches, self.scale], layout=widgets.Layout(flex_flow="row wrap"))
        both = widgets.HBox(self.columns, layout=widgets.Layout(flex_flow="row wrap"))
        exact = widgets.HTML(svg.sentence(svg.EXACT))
        self.begin([[self.left, self.right, self.colours], [self.expert, self.layer, self.head]], [above, both, exact])
        self.also_save(Download("save shares (CSV)", self._shares_csv))

    def _shares_csv(self) -> tuple[str, str, bytes]:
        import pandas as pd

        frames = [view.frame().assign(model=name) for name, view in self.current().items()]
        text = pd.concat(frames, ignore_index=True).to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return "attention_shares.csv", "text/csv", text.encode()

    def shown(self) -> list[str]:
        """The names of the models on the screen."""
        return [name for name in dict.fromkeys((self.left.value, self.right.value)) if name != NOBODY]

    def _layers(self, name: str) -> dict[int, tuple[str, list[int]]]:
        """Kind and layers of each expert's attention over patches."""
        return views.of_experts(self.subject.models[name])

    def links(self) -> dict[str, tuple[Any, str]]:
        controls = {"model": self.left, "expert": self.expert, "layer": self.layer, "head": self.head}
        return {name: (control, "value") for name, control in controls.items()} | {"patch": (self.patches, "patch")}

    def aim(self) -> None:
        """Where the models on the screen are furthest from uniform together; an expert on which they differ, if any."""
        found = [self.subject.structure(name, self.image, views.PATCHWISE) for name in self.shown()]
        kinds: dict[tuple[int, int, int], set[str]] = {}
        rows: dict[tuple[int, int, int], list[views.Values]] = {}
        for each in found:
            for (kind, *place), far in each.items():
                kinds.setdefault((place[0], place[1], place[2]), set()).add(kind)
                rows.setdefault((place[0], place[1], place[2]), []).append(far)
        means = {place: np.mean(each, axis=0) for place, each in rows.items() if len(each) >= len(found)}
        differ = {place: mean for place, mean in means.items() if len(kinds[place]) > 1}
        if not means:
            return
        (layer, expert, head), patch = views.most_structured(differ or means)
        self.set_in_order(patch, (self.expert, expert), (self.layer, layer), (self.head, head))

    def fit(self) -> None:
        """Makes the controls offer what all models on the screen have."""
        shown = self.shown()
        per_model = [self._layers(name) for name in shown]
        if any(not layers for layers in per_model):
            raise LabError(f"{' and '.join(shown)}: there is no attention over patches to look at.")
        grids = {self.subject.grid(name) for name in shown}
        if len(grids) > 1:
            raise LabError(f"{' and '.join(shown)} cut images into different patches ({grids}): look at one of them.")
        experts = set.intersection(*(set(layers) for layers in per_model))
        limit(self.expert, min(experts), max(experts))
        expert = self.expert.value
        layers = set.intersection(*(set(layers[expert][1]) for layers in per_model))
        limit(self.layer, min(layers), max(layers))
        limit(self.head, 0, min(self.subject.models[name].heads[expert - 1] for name in shown) - 1)
        rows, columns = next(iter(grids))
        self.patches.patch = min(self.patches.patch, rows * columns - 1)

    def current(self) -> dict[str, views.LookView]:
        """The numbers on the screen, by model; a `LabError` where models cannot be shown side by side."""
        self.fit()
        expert, layer = self.expert.value, self.layer.value
        found = {}
        for name in self.shown():
            kind = self._layers(name)[expert][0]
            maps = self.subject.map(name, self.image, kind, layer, expert)
            found[name] = views.look_view(maps, self.patches.patch, self.head.value)
        return found

    def update(self) -> None:
        predictions = [self.subject.prediction(name, self.image) for name in self.shown()]
        if self.left.value == self.right.value:
            predictions.append(f"{self.right.value} is chosen twice and shown once: choose another one beside it.")
        self.said.value = "".join(svg.sentence(text) for text in predictions)
        seen = self.current()
        scales = attention_colours.look_scales(seen, self.colours.value)
        pixels = attention_colours.picture(self.subject.images[self.image])
        shared = attention_colours.total_scale(list(seen.values()), self.colours.value)
        over = [
            Panel(f"{name}: all heads, over it", attention_colours.laid_over(pixels, total, shared), 150, total)
            for name, view in seen.items()
            for total in [view.total.reshape(view.grid)]
        ]
        picture = Panel("picture", pixels, 150, lines=True)
        between, words = _difference(seen)
        self.patches.scene = scene([picture, *over, *between], self.subject.grid(self.left.value))
        for place, (name, view) in enumerate(seen.items()):
            side = 150 if len(view.names) == 1 else 70 if len(view.names) <= 18 else 52
            panels = []
            for head, weights, groups in zip(view.names, view.weights, view.groups, strict=True):
                colours = attention_colours.tinted(scales[name].place(weights), groups, 1).reshape(*view.grid, 3)
                panels.append(Panel(head, colours, side, weights))
            self.maps[place].scene = scene(panels, view.grid)
            self.names[place].value = f"<b>{escape(name)}</b>: {view.kind} attention of expert {view.expert}"
            title = f"attention of {attention_views.place_name(view.patch, view.grid)} by group"
            maps = self.subject.map(name, self.image, view.kind, view.layer, view.expert)
            every = views.shares_of_patches(maps, self.head.value)
            self.tables[place].value = svg.shares(view.frame(), title, every)
        self.columns[1].layout.display = "none" if len(seen) == 1 else ""
        both = svg.heat_scale(shared, "over the picture") + svg.group_scale(list(scales.values()))
        self.scale.value = f'<div style="display: flex; flex-wrap: wrap">{both}</div>{words}'

    def figure(self) -> Figure:
        return attention_views.look_figure(self.current(), self.subject.images[self.image], self.colours.value)

    def numbers(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.concat([view.keys().assign(model=name) for name, view in self.current().items()], ignore_index=True)


def _difference(seen: Mapping[str, views.LookView]) -> tuple[list[Panel], str]:
    """A panel of the first model minus the second, and what its colours say; nothing for one model."""
    if len(seen) < 2:
        return [], ""
    (one, first), (other, second) = seen.items()
    found = views.difference(first, second)
    end = max(float(np.abs(found).max()), 1e-12)
    colours = attention_colours.signed(found, end).reshape(*first.grid, 3)
    words = f"{one} minus {other}: orange where {one} looks more, violet where {other} does; the ends are {end:.2g}."
    return [Panel(f"{one} minus {other}, all heads", colours, 150, found, "difference")], svg.sentence(words)
