"""What the explorers share: sliders that keep to what a model has, a view that follows them, and its two downloads."""

import asyncio
import math
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets as widgets

from dne_lab.core.errors import LabError
from dne_lab.core.files import file_name
from dne_lab.plots.figure import FORM, PLOTLY_MIME, STATIC, Figure
from dne_lab.widgets import code, svg
from dne_lab.widgets.browser import Copy, Download, Patches
from dne_lab.widgets.subject import Shown

if TYPE_CHECKING:
    import pandas as pd

NOTICED = 0.5  # seconds from which on a view says that it is being computed
ALL = -1  # a Dropdown takes None for "nothing is chosen"


def _wide() -> Any:
    return widgets.Layout(width="252px")


def slider(label: str, value: int, low: int, high: int) -> Any:
    """A slider of whole numbers that reports when it comes to rest."""
    return widgets.IntSlider(
        value, min=low, max=high, description=label, continuous_update=False, layout=_wide(), style=described()
    )


def dropdown(label: str, options: Sequence[Any], value: Any = None) -> Any:
    """A choice among (words, value) pairs or words."""
    made = widgets.Dropdown(options=options, description=label, layout=_wide(), style=described())
    if value is not None:
        made.value = value
    return made


def html(name: str) -> Any:
    """A place for text and drawings; ``name`` is its class on the page."""
    made = widgets.HTML()
    made.add_class(name)
    return made


def begun(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None] | None":
    """Work that goes on in the notebook's loop; None outside of one, where nobody would look."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        work.close()
        return None
    return loop.create_task(work)


def belonging(widget: widgets.Widget) -> list[widgets.Widget]:
    """A widget and all that it is made of."""
    found: dict[int, widgets.Widget] = {}
    waiting: list[Any] = [widget]
    while waiting:
        one = waiting.pop()
        if isinstance(one, widgets.Widget) and id(one) not in found:
            found[id(one)] = one
            waiting += [*vars(one).values(), *one._trait_values.values()]
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
    return list(found.values())


def close_all(widget: widgets.Widget) -> None:
    """Closes a widget and all that belong to it: a widget stays in the memory until it is closed, and keeps what its
    callbacks know."""
    for one in belonging(widget):
        one.unobserve_all()
        widgets.Widget.close(one)


def without_null(widget: widgets.Widget) -> None:
    """Tooltips that are not there are empty: ipywidgets shows "null" under the mouse."""
    for one in belonging(widget):
        if getattr(one, "tooltip", "") is None:
            one.tooltip = ""


def described() -> dict[str, str]:
    """Room for labels that are words."""
    return {"description_width": "92px"}


def limit(control: Any, low: int, high: int) -> None:
    """New ends for a slider; its value moves only if it has to."""
    value = min(max(control.value, low), high)
    control.min, control.max = min(low, control.min), max(high, control.max)
    control.value = value
    control.min, control.max = low, high
    _can_choose(control, low < high)


def _can_choose(control: Any, several: bool) -> None:
    """A control with one value alone is greyed out, and says why under the mouse."""
    control.disabled = not several
    control.tooltip = "" if several else f"there is one {control.description} here: nothing to choose"


def offer(control: Any, options: Sequence[tuple[str, Any]]) -> None:
    """New options for a choice; what was chosen stays if it is still there."""
    if tuple(control.options) == tuple(options):
        return
    before, there = control.value, [value for _, value in options]
    control.options = options
    if isinstance(before, tuple):
        control.value = tuple(value for value in before if value in there)
    elif before in there:
        control.value = before


def _offered(change: Any) -> None:
    _can_choose(change["owner"], len(change["new"]) > 1)


def pictured(shown: "Drawn", bundle: Any) -> Any:
    """A widget's MIME bundle with the picture and the text of its figure, where figures are static.

    Raises:
        LabError: there is nothing to see.
    """
    if os.environ.get(FORM) != STATIC:
        return bundle
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    more, sizes = shown.figure()._repr_mimebundle_()
    return {**data, **more}, {**metadata, **sizes}


class Drawn(Protocol):
    """What has a figure."""

    def figure(self) -> Figure: ...


class FigureView(widgets.Output):
    """Shows a `Figure` as plotly's JSON, which the renderer that JupyterLab and Voilà have of it draws.

    plotly's own FigureWidget is not used: each one brings 5 MB of JavaScript, into the memory of the page and into the
    notebook that is saved with its widgets, and after a reload, or in Voilà, it shows what it held first. This one
    holds what is drawn (some kB), and shows it again after a reload.
    """

    def __init__(self, name: str) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        self.add_class(name)

    def show(self, figure: Figure) -> None:
        """Draws a figure in place of what is there."""
        tree = figure.plotly()
        self.layout.min_height = f"{tree['layout']['height']}px"  # what stands below does not jump
        data: dict[str, Any] = {PLOTLY_MIME: tree, "text/plain": figure.title}
        self.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)


class ExplorerTab(widgets.VBox):
    """One explorer: controls above, a view below.

    Subclasses set controls, then call `begin`; `update` computes the view and puts it on the screen, `figure` draws the
    same statically. A `LabError` in `update` is shown as a sentence in place of the view.
    """

    title = ""

    subject: Any  # a `Shown`, of the kind that the tab is for

    def __init__(self, subject: Shown) -> None:
        super().__init__()
        self.subject = subject
        self.image = 0
        self.message = html("dne-message")
        self.said = html("dne-said")  # prediction and truth
        self.busy = html("dne-busy")  # that something is being computed
        self.seconds = math.inf  # that the view took last: at first nobody knows
        self.patches = Patches()
        self.view = widgets.VBox()
        self.written: Callable[[], str] = lambda: ""  # the code of this view
        self.saving = widgets.HBox(
            [
                Download("save picture (PNG)", self._png),
                Download("save numbers (CSV)", self._csv),
                Copy(lambda: self.written()),
            ],
            layout=widgets.Layout(margin="6px 0 0 0", flex_flow="row wrap"),
        )
        self.controls: list[Any] = []  # those with a value, the ones first on which the others depend
        self._quiet = False
        self.stale = True
        self._followed: dict[str, Any] = {}  # what was chosen in any tab when this one was last seen

    @property
    def behind(self) -> bool:
        """Another image, or something that the tabs share, was chosen since the view was computed."""
        return self.stale or any(self._followed.get(name) != self.subject.shared.get(name) for name in self.links())

    def begin(self, rows: Sequence[Sequence[Any]], view: Sequence[Any]) -> None:
        """Puts the parts in their places and follows the controls (those with a value)."""
        lines = [widgets.HBox(list(row), layout=widgets.Layout(flex_flow="row wrap")) for row in rows]
        self.view.children = (*view, self.saving)
        self.children = (*lines, self.busy, self.said, self.message, self.view)
        self.controls = [control for row in rows for control in row if hasattr(control, "value")]
        for control in self.controls:
            control.observe(self._changed, "value")
            if isinstance(control, widgets.Dropdown):
                control.observe(_offered, "_options_labels")
                _can_choose(control, len(control.options) > 1)
        self.patches.observe(self._changed, "patch")

    def also_save(self, *buttons: Any) -> None:
        """Further downloads, between those that every tab has and the code."""
        self.saving.children = (*self.saving.children[:2], *buttons, *self.saving.children[2:])

    def _changed(self, change: Any) -> None:
        if self._quiet:
            return
        for name, (control, trait) in self.links().items():
            if change["owner"] is control and change["name"] == trait:
                self.subject.shared[name] = change["new"]
        self.refresh()

    def links(self) -> dict[str, tuple[Any, str]]:
        """The controls that all tabs share and their traits, by name, the ones first on which the others depend."""
        return {}

    def fit(self) -> None:
        """Makes the controls offer what there is."""

    def aim(self) -> None:
        """Moves the controls to where most is to be seen; called before anything was chosen."""

    def set_in_order(self, patch: int, *chosen: tuple[Any, Any]) -> None:
        """Sets controls, the ones first on which the others depend, and the patch."""
        for control, value in chosen:
            self.fit()
            control.value = value
        self.patches.patch = patch

    def _follow(self) -> None:
        """Takes over what was chosen in another tab, as far as it is there in this one."""
        links, shared = self.links(), self.subject.shared
        self.fit()
        if "patch" in links and "patch" not in shared:
            self.aim()
            # each tab begins with the models that it can show
            shared |= {name: getattr(*link) for name, link in links.items() if name != "model"}
        for name, (control, trait) in links.items():
            chosen = shared.get(name, getattr(control, trait))
            if chosen != getattr(control, trait) and (not hasattr(control, "options") or chosen in control.options):
                setattr(control, trait, chosen)
                self.fit()
        self._followed = dict(shared)

    def state(self) -> dict[str, Any]:
        """What is chosen, by the labels of the controls, and the patch."""
        return code.state(self.controls) | ({"patch": self.patches.patch} if "patch" in self.links() else {})

    def restore(self, given: Mapping[str, Any]) -> None:
        """Chooses what `state` gave. Raises a `LabError` for what is not there."""
        left, linked = dict(given), self.links()
        with self.quietly():
            patch = left.pop("patch", self.patches.patch) if "patch" in linked else self.patches.patch
            code.restore(self.controls, left, self.fit)
            self.patches.patch = max(0, patch)
            self.fit()
            if self.patches.patch != patch:
                raise LabError(f"view['patch'] = {patch!r}: must be a whole number from 0 to {self.patches.patch}.")
        self.subject.shared |= {name: getattr(*link) for name, link in linked.items()}

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Changes of controls inside do not compute the view anew."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def show(self, image: int) -> None:
        """Another image."""
        self.image = image
        self.refresh()

    def refresh(self) -> None:
        """Computes the view anew; what cannot be seen is said in a sentence."""
        self.stale = False
        try:
            with self.quietly(), self.computing():
                self._follow()
                self.update()
        except LabError as error:
            self.message.value = svg.sentence(str(error), wrong=True)
            self.view.layout.display = "none"
        except Exception as error:  # ipywidgets writes it to a log that nobody has open
            what = f"This view could not be computed ({type(error).__name__}: {error})."
            self.message.value = svg.sentence(f"{what} The traceback is in the log of the notebook.", wrong=True)
            self.view.layout.display = "none"
            raise
        else:
            self.message.value = ""
            self.view.layout.display = ""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """What is done inside takes long, if it did the last time: the screen says so, and the old view fades."""
        began, slow = time.monotonic(), self.seconds > NOTICED and not self.busy.value
        if slow:
            self.tell("Computing ...")
            self.view.add_class("dne-old")
        try:
            yield
        finally:
            self.seconds = time.monotonic() - began
            if slow:
                self.busy.value = ""
                self.view.remove_class("dne-old")

    def tell(self, doing: str) -> None:
        """Says what is being done; it stands there until the view is up to date."""
        self.busy.value = svg.sentence(f"{doing} What is chosen meanwhile is done next.")

    def update(self) -> None:
        """Brings the screen up to date; raises a `LabError` where there is nothing to see."""
        raise NotImplementedError(f"{type(self).__name__} must define update()")

    def figure(self) -> Figure:
        """What is on the screen, as a figure with its table."""
        raise NotImplementedError(f"{type(self).__name__} must define figure()")

    def numbers(self) -> "pd.DataFrame":
        """What the CSV button saves: the weights, keys or logits behind the view."""
        raise NotImplementedError(f"{type(self).__name__} must define numbers()")

    def _png(self) -> tuple[str, str, bytes]:
        figure = self.figure()
        return f"{file_name(figure.name)}.png", "image/png", figure.image("png")

    def _csv(self) -> tuple[str, str, bytes]:
        text = self.numbers().to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return f"{file_name(self.figure().name)}.csv", "text/csv", text.encode()
