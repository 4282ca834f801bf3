"""`lab.explore`: pictures, and a tab for each way of looking at what a network does with them."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
from torch import nn

from dne_lab.analysis.hosts import ExpandableHost, find_host
from dne_lab.core.errors import LabError
from dne_lab.widgets import svg
from dne_lab.widgets.panel import ExplorerTab, Images, Shown, Subject, close_all, slider
from dne_lab.widgets.spatial import SpatialExplorer
from dne_lab.widgets.task import TaskExplorer
from dne_lab.widgets.tokens import TokenExplorer, TokenSubject
from dne_lab.widgets.what_if import WhatIfExplorer

TABS: Mapping[str, type[ExplorerTab]] = {"task": TaskExplorer, "looking": SpatialExplorer, "what_if": WhatIfExplorer}


class Explorer(widgets.VBox):
    """An image above, explorers in tabs below.

    Attributes: ``image`` (the slider), ``upload``, ``tabs``, ``parts`` (the explorers by name);
    ``parts["task"].figure()`` is what that tab shows, as a figure.
    """

    def __init__(self, subject: Shown, tab: str, tabs: Mapping[str, type[ExplorerTab]]) -> None:
        super().__init__()
        self.subject = subject
        self.image = slider("image", 0, 0, len(subject.images) - 1)
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, description="your own image", icon="")
        self.upload.layout.width = "auto"
        self.caption = widgets.HTML(subject.captions[0])
        self.parts = {name: kind(subject) for name, kind in tabs.items()}
        self.tabs = widgets.Tab(list(self.parts.values()), titles=[part.title for part in self.parts.values()])
        self.tabs.selected_index = list(self.parts).index(tab)
        above = [self.image, self.upload, self.caption] if subject.takes_files else [self.image, self.caption]
        self.children = (widgets.HBox(above), self.tabs)
        self.layout.max_width = "1000px"
        self.image.observe(self._move, "value")
        self.upload.observe(self._uploaded, "value")
        self.tabs.observe(self._turn, "selected_index")
        self._turn()

    @property
    def part(self) -> ExplorerTab:
        """The explorer that is seen."""
        return list(self.parts.values())[self.tabs.selected_index or 0]

    def close(self) -> None:
        """Closes all its widgets, and lets go of models and images."""
        close_all(self)
        if hasattr(self, "subject"):
            self.subject.forget()

    def _move(self, change: Any) -> None:
        self.caption.value = self.subject.captions[self.image.value]
        for part in self.parts.values():
            part.stale, part.image = True, self.image.value
        self.part.refresh()  # the others when they are turned to

    def _turn(self, change: Any = None) -> None:
        if self.part.behind:
            self.part.refresh()

    def _uploaded(self, change: Any) -> None:
        files = self.upload.value
        self.upload.unobserve(self._uploaded, "value")
        self.upload.value = ()  # the file's bytes are not kept
        self.upload.observe(self._uploaded, "value")
        for file in files:
            try:
                number = self.subject.add(bytes(file["content"]), file["name"])
            except LabError as error:
                self.caption.value = svg.sentence(f"{file['name']}: {error}", wrong=True)
                return
            self.image.max = number
            self.image.value = number


def explore(
    model: nn.Module | Mapping[str, nn.Module],
    images: Images,
    names: Sequence[str] | None = (),
    tab: str = "task",
) -> widgets.DOMWidget:
    """Explorers of a network's attention, for JupyterLab and Voilà.

    Args:
        model: ``run.model``, or several by name, ``{"IA": ia.model, "STA": sta.model}``, to look at side by side. Or a
            network of timm, torchvision or transformers that `lab.probe` reads: one tab with its heads and rollout.
        images: ``stream.test_images(16)``, or a uint8 tensor (B, C, H, W) without labels. For networks of other
            libraries floats (B, C, H, W), normalised as they were made for.
        names: of the classes by rank, such as ``stream.class_names``.
        tab: which explorer is seen first: task, looking or what_if.

    Returns:
        a widget; where there is nothing to explore, one that says why.
    """
    if tab not in TABS:
        raise LabError(f"tab = {tab!r}: must be one of {', '.join(TABS)}.")
    try:
        models = dict(model) if isinstance(model, Mapping) else {_name(model): model}
        if models and not any(isinstance(find_host(network), ExpandableHost) for network in models.values()):
            return Explorer(TokenSubject(models, images, names), "tokens", {"tokens": TokenExplorer})
        subject = Subject(models, images, names)
    except LabError as error:
        return widgets.HTML(svg.sentence(str(error), wrong=True))
    return Explorer(subject, tab, TABS)


def _name(model: Any) -> str:
    variant = getattr(model, "variant", None)
    return str(variant.name).upper() if variant is not None else type(model).__name__
