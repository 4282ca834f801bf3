"""`lab.explore`: pictures, and a tab for each way of looking at what a network does with them."""

import asyncio
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from torch import nn

from dne_lab.analysis.head_table import Head
from dne_lab.analysis.hosts import ExpandableHost, find_host
from dne_lab.analysis.moments import Moments, opened
from dne_lab.analysis.views import PATCHWISE
from dne_lab.core.errors import LabError, brief
from dne_lab.plots.figure import Figure
from dne_lab.training.run import Run
from dne_lab.widgets import code, saved, svg
from dne_lab.widgets.gallery import GalleryExplorer
from dne_lab.widgets.overview import OverviewExplorer
from dne_lab.widgets.panel import ExplorerTab, begun, close_all, described, html, pictured, slider, without_null
from dne_lab.widgets.spatial import SpatialExplorer
from dne_lab.widgets.subject import Images, Shown, Subject, words_of
from dne_lab.widgets.task import TaskExplorer
from dne_lab.widgets.timeline import TimelineExplorer
from dne_lab.widgets.tokens import TokenExplorer, TokenSubject
from dne_lab.widgets.turns import in_turn
from dne_lab.widgets.what_if import WhatIfExplorer

TABS: Mapping[str, type[ExplorerTab]] = {
    "task": TaskExplorer,
    "looking": SpatialExplorer,
    "what_if": WhatIfExplorer,
    "overview": OverviewExplorer,
    "gallery": GalleryExplorer,
}
OF_RUNS: Mapping[str, type[ExplorerTab]] = {**TABS, "timeline": TimelineExplorer}
SECONDS = 1.0  # that a moment is shown when all are played
SHARE = 10  # times as long as looking took, a run that is followed trains before it is looked at again


class Explorer(widgets.VBox):
    """An image above, explorers in tabs below.

    Attributes: ``image`` (the slider), ``upload``, ``tabs``, ``parts`` (the explorers by name);
    ``parts["task"].figure()`` is what that tab shows, as a figure.
    """

    def __init__(
        self,
        subject: Shown,
        tab: str,
        tabs: Mapping[str, type[ExplorerTab]],
        given: tuple[Any, Any, Any] = (None, None, None),
        view: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._given = given  # what `explore` was given: model, images, names
        self.subject = subject
        self.image = slider("image", 0, 0, len(subject.images) - 1)
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, description="your own image", icon="")
        self.upload.layout.width = "auto"
        self.upload.tooltip = "an image file, which is fitted to what the network takes"
        self.caption = html("dne-caption")
        self.caption.value = escape(subject.captions[0])
        self.refused = html("dne-refused")  # why a file, or a moment, was not taken
        self.parts = {name: kind(subject) for name, kind in tabs.items()}
        self.tabs = widgets.Tab(list(self.parts.values()), titles=[part.title for part in self.parts.values()])
        self.tabs.selected_index = list(self.parts).index(tab)
        above = [self.image, self.upload, self.caption] if subject.takes_files else [self.image, self.caption]
        self.clock = Clock(subject, self.go) if isinstance(subject, Subject) and subject.moments else None
        first = widgets.HBox(above, layout=widgets.Layout(flex_flow="row wrap"))
        self.children = (first, self.refused, *([self.clock] if self.clock else []), self.tabs)
        self.layout.max_width = "1000px"
        self.add_class("dne-explorer")
        self._taken: tuple[Any, ...] = ()  # files of one's own, without their content
        self._seen = 0.0  # when a run that is followed may be looked at again
        self.image.observe(self._move, "value")
        self.upload.observe(self._uploaded, "value")
        self.tabs.observe(self._turn, "selected_index")
        if isinstance(overview := self.parts.get("overview"), OverviewExplorer):
            overview.entered = self.enter
        if isinstance(gallery := self.parts.get("gallery"), GalleryExplorer):
            gallery.entered = self.to_image
        for part in self.parts.values():
            part.written = self.code
        if view:
            self._restore(view)
        without_null(self)
        self._turns = in_turn(self)
        self._turn()

    @property
    def part(self) -> ExplorerTab:
        """The explorer that is seen."""
        return list(self.parts.values())[self.tabs.selected_index or 0]

    def figure(self) -> Figure:
        """What the tab that is seen shows, as a figure with its table."""
        return self.part.figure()

    def code(self) -> str:
        """The lines of a notebook that open an explorer at what is seen here."""
        model, images, names = self._given
        given = [code.named(model, "model"), code.named(images, "images")]
        if words_of(names):
            given.append(f"names={code.named(names, 'names')}")
        where = {"image": self.image.value} | ({} if self.clock is None else {"moment": self.clock.moment.label})
        tab = list(self.parts)[self.tabs.selected_index or 0]
        return code.call("lab.explore", given, {} if tab == "tokens" else {"tab": tab}, where | self.part.state())

    def _restore(self, view: Mapping[str, Any]) -> None:
        left = dict(view)
        above = [self.image, *([self.clock.moment, self.clock.newest] if self.clock else [])]
        mine = {one.description: left.pop(one.description) for one in above if one.description in left}
        code.restore(above, mine, lambda: None)
        self.part.restore(left)

    def _repr_mimebundle_(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where committed notebooks are made, what is seen as a picture besides: pages that only show them have it."""
        return pictured(self.part, super()._repr_mimebundle_(**given))

    def close(self) -> None:
        """Closes all its widgets, and lets go of runs, models and images."""
        self._given = (None, None, None)
        for moments in getattr(getattr(self, "subject", None), "moments", {}).values():
            if self.follow in moments.run.viewers:
                moments.run.viewers.remove(self.follow)
        close_all(self)
        if hasattr(self, "subject"):
            self.subject.forget()

    def save(
        self,
        path: str | Path,
        images: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        experts: Sequence[int] | None = None,
        force: bool = False,
    ) -> Path:
        """Writes one .html file that shows the same maps without a kernel, a server or a network; its path.

        Args:
            path: of the file. One that is there is replaced if it is a page that this function wrote.
            images, layers, experts: numbers of what is in it; None: all.
            force: replace any file.

        Raises:
            LabError: another suffix, a file of another kind that is there, a choice that is not there, too much for a
                page; networks of other libraries.
        """
        if not isinstance(self.subject, Subject):
            raise LabError("a page is made of the networks of this library: save the picture or the numbers instead.")
        start = {name: value for name, value in self.subject.shared.items() if value is not None}
        if isinstance(self.part, TaskExplorer):
            start["kind"] = self.part.block.value
        return saved.save(self.subject, path, images, layers, experts, start | {"image": self.image.value}, force)

    def enter(self, model: str, head: Head) -> None:
        """Turns to the tab that shows one head, at that head."""
        name = "looking" if head.kind in PATCHWISE else "task"
        part: Any = self.parts[name]
        with part.quietly():
            if name == "task":
                part.model.value, part.block.value = model, head.kind
            else:
                part.left.value = model
        chosen = {"model": model, "layer": head.layer, "expert": head.expert, "head": head.head}
        self.subject.shared |= {"patch": part.patches.patch} | self.subject.shared | chosen
        part.stale = True
        before, self.tabs.selected_index = self.tabs.selected_index, list(self.parts).index(name)
        if before == self.tabs.selected_index:
            part.refresh()

    def to_image(self, number: int) -> None:
        """Another image, in all tabs."""
        self.image.value = number

    def go(self, place: int) -> None:
        """Shows another moment of the runs; one whose file is gone or damaged is said, and not chosen."""
        assert self.clock is not None and isinstance(self.subject, Subject)
        self.refused.value = ""
        try:
            self.subject.go(place)
        except LabError as error:
            self.refused.value = svg.sentence(str(error), wrong=True)
            self.clock.back(self.subject.moment)
            return
        if self.clock.newest.value and "expert" in self.subject.shared:
            self.subject.shared["expert"] = max(len(network.heads) for network in self.subject.models.values())
        self._again()

    def follow(self, run: Run) -> None:
        """Brings the screen up to date with a run that trains; runs call it after every epoch and task."""
        if self.comm is None:
            run.viewers.remove(self.follow)
            return
        self._turns.catch_up()  # what was chosen while an epoch was learned
        if self.clock is None or (not run.finished and time.monotonic() < self._seen):
            return
        assert isinstance(self.subject, Subject)
        began = time.monotonic()
        try:
            self.subject.changed()
        except LabError as error:  # of a run beside it, whose file is gone: the one that trains goes on
            self.refused.value = svg.sentence(str(error), wrong=True)
        else:
            if not self.clock.renew():
                self._again()
        now = time.monotonic()
        self._seen = now + SHARE * (now - began)

    def _again(self) -> None:
        for part in self.parts.values():
            part.stale = True
        self.part.refresh()

    def _move(self, change: Any) -> None:
        self.caption.value = escape(self.subject.captions[self.image.value])
        self.refused.value = ""
        for part in self.parts.values():
            part.stale, part.image = True, self.image.value
        self.part.refresh()  # the others when they are turned to

    def _turn(self, change: Any = None) -> None:
        if self.part.behind:
            self.part.refresh()

    def _uploaded(self, change: Any) -> None:
        refused, number = [], None
        for file in self.upload.value:
            try:
                number = self.subject.add(bytes(file["content"]), file["name"])
            except LabError as error:
                refused.append(svg.sentence(f"{file['name']}: {error}", wrong=True))
            else:
                self._taken += ({**file, "content": memoryview(b"")},)
        self.upload.unobserve(self._uploaded, "value")
        self.upload.value = self._taken  # its button counts them; the files' bytes are not kept
        self.upload.observe(self._uploaded, "value")
        if number is not None:
            self.image.max = number
            self.image.value = number
        self.refused.value = "".join(refused)


class Clock(widgets.HBox):
    """The moments of the runs as a slider, and a button that plays them one after the other.

    Args:
        subject: whose moments.
        go: called with the moment that was chosen.
    """

    def __init__(self, subject: Subject, go: Callable[[int], None]) -> None:
        self.subject, self._go = subject, go
        options = self._options()
        self.moment = widgets.SelectionSlider(
            options=options, value=options[-1][1], description="moment", continuous_update=False, style=described()
        )
        self.moment.layout.width = "460px"
        self.play = widgets.ToggleButton(description="play", tooltip="shows all moments, one after the other")
        self.play.layout.width, self.play.layout.margin = "70px", "2px 14px"
        self.newest = widgets.Checkbox(True, description="with the newest expert", indent=False)
        self.newest.layout.width = "190px"
        super().__init__([self.moment, self.play, self.newest], layout=widgets.Layout(flex_flow="row wrap"))
        self._task: asyncio.Task[None] | None = None
        self._quiet = False
        self.moment.observe(self._moved, "value")
        self.play.observe(self._played, "value")
        self.newest.observe(lambda change: self._go(self.moment.value), "value")

    def _moved(self, change: Any) -> None:
        if not self._quiet:
            self._go(change["new"])

    def back(self, place: int) -> None:
        """To the moment that is still shown; nothing is played on."""
        self._quiet, self.play.value = True, False
        try:
            self.moment.value = place
        finally:
            self._quiet = False

    def _options(self) -> list[tuple[str, int]]:
        return [(self.subject.moment_name(place), place) for place in self.subject.places]

    def renew(self) -> bool:
        """Offers what there is by now; whoever was at the last moment is at the last one again. Whether it moved."""
        options, before = self._options(), self.moment.value
        if tuple(options) == tuple(self.moment.options):
            return False
        last = before == self.moment.options[-1][1]
        there = [place for _, place in options]
        chosen = there[-1] if last or before not in there else before
        self._quiet = True
        try:
            self.moment.options = options
            self.moment.value = chosen
        finally:
            self._quiet = False
        self._go(chosen)
        return True

    def _played(self, change: Any) -> None:
        if not self.play.value or (self._task is not None and not self._task.done()):
            return
        self._task = begun(_play(weakref.ref(self)))
        if self._task is None:
            self.play.value = False


async def _play(clock: "weakref.ref[Clock]") -> None:
    """From the first moment, or from the chosen one, to the last, as long as the button is pressed."""
    there = clock()
    if there is not None and there.moment.index == len(there.moment.options) - 1:
        there.moment.index = 0
    del there
    while True:
        await asyncio.sleep(SECONDS)
        there = clock()
        if there is None or there.comm is None or not there.play.value:
            return
        if there.moment.index == len(there.moment.options) - 1:
            there.play.value = False
            return
        there.moment.index += 1
        del there


Explored = nn.Module | Run | str | Path


def explore(
    model: Explored | Mapping[str, Explored],
    images: Images,
    names: Sequence[str] | None = (),
    tab: str = "task",
    view: Mapping[str, Any] | None = None,
) -> widgets.DOMWidget:
    """Explorers of a network's attention, for JupyterLab and Voilà.

    Args:
        model: a run, its folder or a file that ``dne-lab export --every-task`` wrote: then a slider goes from the
            untrained network to the one after the last task, and a run that trains is followed. Or ``run.model`` alone,
            or several of these by name, ``{"IA": ia, "STA": sta}``, to look at side by side. Or a network of timm,
            torchvision or transformers that `lab.probe` reads: one tab with its heads and rollout.
        images: ``stream.test_images(16)``, or a uint8 tensor (B, C, H, W) without labels. For networks of other
            libraries floats (B, C, H, W), normalised as they were made for.
        names: of the classes by rank, such as ``stream.class_names``; default: those of the run, where it has any.
        tab: which explorer is seen first: task, looking, what_if, overview, gallery, or of a run also timeline.
        view: what is chosen in it first, as its button "copy as code" writes it: values by the labels of the controls.

    Returns:
        a widget; where there is nothing to explore, one that says why.
    """
    if tab not in OF_RUNS:
        raise LabError(f"tab = {tab!r}: must be one of {', '.join(OF_RUNS)}.")
    if view is not None and not isinstance(view, Mapping):
        raise LabError(f"view = {brief(view)}: give values by the labels of the controls, {{'image': 3}}.")
    try:
        if isinstance(model, Mapping):
            there = {str(name): opened(one) for name, one in model.items()}
            if "" in there or len(there) < len(model):
                raise LabError("models side by side need names that differ, {'IA': ia, 'STA': sta}, and none is empty.")
        else:
            alone = opened(model)
            there = {_name(alone): alone}
        moments = {name: Moments(run) for name, run in there.items() if isinstance(run, Run)}
        models: dict[str, Any] = {
            name: moments[name].network(moments[name].places[-1]) if name in moments else one
            for name, one in there.items()
        }
        if models and not any(isinstance(find_host(network), ExpandableHost) for network in models.values()):
            tokens = {"tokens": TokenExplorer}
            return Explorer(TokenSubject(models, images, names), "tokens", tokens, (model, images, names), view)
        subject = Subject(models, images, words_of(names) or _class_names(moments), moments)
        if moments:
            subject.go(subject.moment)
    except LabError as error:
        return widgets.HTML(svg.sentence(str(error), wrong=True))
    made = Explorer(subject, tab, OF_RUNS if moments or tab not in TABS else TABS, (model, images, names), view)
    for each in moments.values():
        if not each.run.finished:
            each.run.viewers.append(made.follow)
    return made


def _name(model: Any) -> str:
    if isinstance(model, Run):
        return model.config.method.upper()
    variant = getattr(model, "variant", None)
    return str(variant.name).upper() if variant is not None else type(model).__name__


def _class_names(moments: Mapping[str, Moments]) -> tuple[str, ...]:
    """Those that all runs share, unless they are numbers alone."""
    found = {tuple(each.run.stream.class_names) for each in moments.values()}
    names = found.pop() if len(found) == 1 else ()
    return () if all(name.isdigit() for name in names) else names
