"""What the explorers share: sliders that keep to what a model has, a view that follows them, and its two downloads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from dne_lab.analysis import views
from dne_lab.analysis.ablation import means_of
from dne_lab.analysis.hosts import Entry, find_network
from dne_lab.analysis.maps import AttentionMap
from dne_lab.analysis.probe import evaluating
from dne_lab.analysis.removal import Means, Views, views_of
from dne_lab.analysis.views import Values
from dne_lab.core.errors import LabError
from dne_lab.core.files import file_name
from dne_lab.data import image_file
from dne_lab.data.stream import Batch
from dne_lab.models.expandable import ExpandableViT
from dne_lab.plots.figure import Figure
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Download, Patches

if TYPE_CHECKING:
    import pandas as pd


# What the explorers look at: models, and pictures with or without labels.

REMEMBERED = 16  # maps kept, of one image each
MEANT = 256  # images over which attention is averaged
Images = Batch | Tensor


class Shown:
    """Pictures with or without labels, and what was chosen last in any tab.

    Args:
        images: one tensor each, as the models take them.
        labels: ranks, or None.
        names: of the classes by rank; default: their ranks.
    """

    takes_files = True

    def __init__(self, images: list[Tensor], labels: Sequence[int | None], names: Sequence[str] | None = ()) -> None:
        self.images = images
        self.labels: list[int | None] = list(labels)
        self.names = [str(name) for name in names or ()]
        self.captions = ["" if label is None else f"truth: {self.name(label)}" for label in self.labels]
        self.shared: dict[str, Any] = {}  # model, expert, layer, head and patch

    def forget(self) -> None:
        """Lets go of models and images, and of what was computed with them."""
        for held in (self.images, self.labels, self.captions, self.shared):
            held.clear()

    def add(self, content: bytes, name: str) -> int:
        """Takes an image file; its number."""
        raise LabError("files of one's own are taken where the network itself normalises pixels.")

    def name(self, rank: int) -> str:
        """A class in words."""
        return self.names[rank] if rank < len(self.names) else f"class {rank}"


class Subject(Shown):
    """Models by name, and the images that they are shown.

    Args:
        models: networks that take images of one size.
        images: a `Batch`, such as ``stream.test_images(16)`` gives, or uint8 (B, C, H, W) without labels.
        names: of the classes by rank; default: their ranks.

    Raises:
        LabError: no image, images of another size, networks of different sizes, a network that `lab.probe` refuses.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        images: Images,
        names: Sequence[str] | None = (),
        tasks: Sequence[int] = (),
    ) -> None:
        if not models:
            raise LabError("there is no model to look at: give one, or a dictionary of several by name.")
        self.models: dict[str, ExpandableViT] = {name: find_network(model, "explore") for name, model in models.items()}
        shapes = {name: tuple(network.shape) for name, network in self.models.items()}
        if len(set(shapes.values())) > 1:
            raise LabError(f"the models take images of different sizes, {shapes}: explore them one at a time.")
        pixels, labels = (images.images, images.labels.tolist()) if isinstance(images, Batch) else (images, None)
        if not isinstance(pixels, Tensor) or not len(pixels):
            raise LabError("there is no image to look at: give stream.test_images(16), or a uint8 tensor (B, C, H, W).")
        for network in self.models.values():
            network.check(pixels)
        super().__init__(list(pixels.cpu()), [None] * len(pixels) if labels is None else list(labels), names)
        self._maps: dict[Any, AttentionMap] = {}
        self._scores: dict[Any, Tensor] = {}
        self._views: dict[Any, Views] = {}
        self._means: dict[Any, Means] = {}

    def forget(self) -> None:
        super().forget()
        self.models.clear()
        for computed in (self._maps, self._scores, self._views, self._means):
            computed.clear()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(next(iter(self.models.values())).shape)  # type: ignore[return-value]

    def grid(self, model: str) -> tuple[int, int]:
        """(rows, columns) of patches of a model."""
        return self.models[model].grid

    def labelled(self) -> Batch | None:
        """All images that have a label, or None."""
        places = [place for place, label in enumerate(self.labels) if label is not None]
        if not places:
            return None
        pixels = torch.stack([self.images[place] for place in places])
        return Batch(pixels, torch.tensor([self.labels[place] for place in places]), torch.tensor(places))

    def add(self, content: bytes, name: str) -> int:
        """Takes an image file, fitted to the models' size; its number."""
        image, how = fit(content, self.shape)
        self.images.append(image)
        self.labels.append(None)
        self.captions.append(f"{name}: {how}")
        return len(self.images) - 1

    def map(self, model: str, image: int, kind: str, layer: int, expert: int) -> AttentionMap:
        """One point's attention for one image; the last few are remembered."""
        key = (model, image, kind, layer, expert)
        if key not in self._maps:
            while len(self._maps) >= REMEMBERED:
                del self._maps[next(iter(self._maps))]
            self._maps[key] = views.read(self.models[model], self.images[image], kind, layer, expert)
        return self._maps[key]

    def structure(self, model: str, image: int, kinds: tuple[str, ...]) -> dict[Entry, Values]:
        """How far from uniform each head's patches are, see `dne_lab.analysis.views.structure`."""
        return views.structure(self.models[model], self.images[image], kinds)

    def connections(self, model: str) -> Views:
        """What each expert of a model looks at, remembered; a model that is still learning gets more experts."""
        network = self.models[model]
        key = (model, network.heads)
        if key not in self._views:
            self._views[key] = views_of(network)
        return self._views[key]

    def means(self, model: str) -> Means:
        """A model's mean attention over (at most 256 of) the images, remembered."""
        network = self.models[model]
        key = (model, network.heads)
        if key not in self._means:
            step = -(-len(self.images) // MEANT)
            self._means[key] = means_of(network, torch.stack(self.images[::step]))
        return self._means[key]

    def scores(self, model: str, image: int) -> Tensor:
        """(classes,) logits of one image, remembered."""
        key = (model, image)
        if key not in self._scores:
            network = self.models[model]
            with evaluating(network) as device:
                self._scores[key] = network(self.images[image][None].to(device)).logits[0].float().cpu()
        return self._scores[key]

    def prediction(self, model: str, image: int) -> str:
        """Prediction of one image in words, and the truth where it is known."""
        scores = self.scores(model, image)
        best = int(scores.argmax())
        share = float(scores.softmax(0)[best])
        label = self.labels[image]
        said = f"{model} predicts {self.name(best)} (softmax {share:.2f})"
        return said if label is None else f"{said}, truth {self.name(label)}, {'right' if label == best else 'wrong'}"


def fit(content: bytes, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """An image file as (C, H, W) uint8: the largest part of the right proportions from its middle, resized.

    Returns:
        the image, and what was done to it in words.

    Raises:
        LabError: not an image that Pillow reads.
    """
    import numpy as np

    channels, height, width = shape
    name = "this file"
    colours = image_file.opened(content, lambda image: image_file.to_rgb(image, name), name)
    fitted = image_file.fitted(colours, width, height).convert("L" if channels == 1 else "RGB")
    pixels = torch.from_numpy(np.array(fitted))
    image = pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
    same = colours.size == (width, height)
    how = "as it is" if same else f"fitted from {colours.size[0]} x {colours.size[1]} to {width} x {height} pixels"
    return image, how


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


def close_all(widget: widgets.Widget) -> None:
    """Closes a widget and all that belong to it: a widget stays in the memory until it is closed, and keeps what its
    callbacks know."""
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
    for one in found.values():
        one.unobserve_all()
        widgets.Widget.close(one)


def described() -> dict[str, str]:
    """Room for labels that are words."""
    return {"description_width": "92px"}


def limit(control: Any, low: int, high: int) -> None:
    """New ends for a slider; its value moves only if it has to."""
    value = min(max(control.value, low), high)
    control.min, control.max = min(low, control.min), max(high, control.max)
    control.value = value
    control.min, control.max = low, high
    control.disabled = low == high


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
        self.patches = Patches()
        self.view = widgets.VBox()
        self.saving = widgets.HBox(
            [Download("save picture (PNG)", self._png), Download("save numbers (CSV)", self._csv)],
            layout=widgets.Layout(margin="6px 0 0 0"),
        )
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
        self.children = (*lines, self.said, self.message, self.view)
        for control in [control for row in rows for control in row if hasattr(control, "value")]:
            control.observe(self._changed, "value")
        self.patches.observe(self._changed, "patch")

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
            with self.quietly():
                self._follow()
                self.update()
        except LabError as error:
            self.message.value = svg.sentence(str(error), wrong=True)
            self.view.layout.display = "none"
        else:
            self.message.value = ""
            self.view.layout.display = ""

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
