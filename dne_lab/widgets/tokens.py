"""Vision transformers of other libraries by hand: where a patch or a named token looks, head by head, and rollout."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from dne_lab.analysis.token_views import TokenView, read_tokens
from dne_lab.analysis.views import most_structured
from dne_lab.core.errors import LabError, reason
from dne_lab.plots import attention_colours, attention_views
from dne_lab.plots.figure import Figure
from dne_lab.widgets import svg
from dne_lab.widgets.browser import Panel, Patches, scene
from dne_lab.widgets.panel import ExplorerTab, dropdown, html, limit, slider
from dne_lab.widgets.subject import Shown

if TYPE_CHECKING:
    import pandas as pd

REMEMBERED = 4  # images whose maps of all layers are kept
ONE = (
    "Shares of one image are exact: nothing is sampled, so they have no interval; one over images needs several images."
)
REFUSALS = (ValueError, AssertionError, RuntimeError, TypeError)
CHOSEN = ""  # the query is the chosen patch


class TokenSubject(Shown):
    """Networks of timm, torchvision or transformers by name, and the images that they are shown.

    Args:
        models: networks that `lab.probe` reads, all for images of one kind.
        images: floats (B, C, H, W), normalised as the models were made for.
        names: of the classes by number; default: those that a model's configuration has.

    Raises:
        LabError: no image, or images of another kind; and what the probe refuses.
    """

    takes_files = False  # how a file of one's own is to be normalised is not known here

    def __init__(self, models: Mapping[str, nn.Module], images: Any, names: Any = ()) -> None:
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not len(images):
            given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise LabError(
                "networks of other libraries take images as they were made to: floats (B, C, H, W), normalised, as "
                f"their processor or transform gives them; given: {given}."
            )
        super().__init__(list(images.detach().cpu()), [None] * len(images), names)
        self.models = dict(models)
        self._views: dict[tuple[str, int], TokenView] = {}
        for name in self.models:
            self.view(name, 0)

    def forget(self) -> None:
        super().forget()
        self.models.clear()
        self._views.clear()

    def view(self, model: str, image: int) -> TokenView:
        """All attention of one image; that of the last few is remembered."""
        key = (model, image)
        if key not in self._views:
            while len(self._views) >= REMEMBERED:
                del self._views[next(iter(self._views))]
            self._views[key] = self._read(model, self.images[image])
        return self._views[key]

    def _read(self, model: str, image: Tensor) -> TokenView:
        try:
            view = read_tokens(self.models[model], image)
        except LabError:
            raise
        except REFUSALS as error:  # of the network itself: each library has its own for images that it does not take
            raise LabError(
                f"{model} could not compute an image of shape {tuple(image.shape)}: {reason(error)}. Give images as "
                "its processor or transform makes them."
            ) from error
        if not all(bool(torch.isfinite(weights).all()) for weights in map(torch.as_tensor, view.weights)):
            what = "the image has" if not bool(torch.isfinite(image).all()) else "the network computes"
            raise LabError(
                f"the attention of {model} is not finite: {what} values that are NaN or infinite. In half precision "
                "numbers run over sooner, model.float() does not."
            )
        return view

    def pixels(self, image: int) -> attention_colours.Pixels:
        """(H, W, 3): normalised values between the smallest and the largest of the image."""
        values = self.images[image].float()
        low, high = values.min(), values.max()
        return attention_colours.picture((255 * (values - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8))

    def prediction(self, model: str, image: int) -> str:
        """Prediction of one image in words."""
        logits = self.view(model, image).logits
        if logits is None:
            return f"{model} gives no logits: it has no classifier."
        best = int(logits.argmax())
        known = getattr(getattr(self.models[model], "config", None), "id2label", None) or {}
        name = self.name(best) if best < len(self.names) else str(known.get(best, self.name(best)))
        return f"{model} predicts {name} (softmax {float(logits.softmax(0)[best]):.2f})"


class TokenExplorer(ExplorerTab):
    """Image, layer, head and query; plain attention beside rollout, each head's map, spread and distance."""

    title = "Attention"
    subject: TokenSubject

    def __init__(self, subject: TokenSubject) -> None:
        super().__init__(subject)
        names = list(subject.models)
        self.model = dropdown("model", names, names[0])
        self.layer = slider("layer", 0, 0, 0)
        self.head = slider("head", 0, 0, 0)
        self.query = dropdown("query", [("the chosen patch", CHOSEN)])
        self.colours = dropdown("colours", attention_colours.SCALES, attention_colours.ABSOLUTE)
        self.maps = Patches()
        self.scale = widgets.HTML()
        self.table = html("dne-tokens")
        self.patches.label = "The image, the attention over it, and rollout; arrow keys choose the patch"
        self.maps.label = "Attention in each head of the layer; arrow keys choose the patch"
        self.maps.hint = ""
        with self.quietly():
            self.fit()
        widgets.link((self.patches, "patch"), (self.maps, "patch"))
        self.begin(
            [[self.model, self.layer, self.head], [self.query, self.colours]],
            [self.patches, self.maps, self.scale, self.table],
        )

    def links(self) -> dict[str, tuple[Any, str]]:
        controls = {"model": self.model, "layer": self.layer, "head": self.head}
        return {name: (control, "value") for name, control in controls.items()} | {"patch": (self.patches, "patch")}

    def aim(self) -> None:
        (self.layer.value, head), patch = most_structured(self.current().structure())
        self.fit()
        self.head.value, self.patches.patch = head, patch

    def fit(self) -> None:
        view = self.current()
        limit(self.layer, 0, len(view.weights) - 1)
        limit(self.head, 0, len(view.weights[self.layer.value]) - 1)
        options = [("the chosen patch", CHOSEN), *((name, name) for name in view.prefix)]
        if tuple(options) != tuple(self.query.options):
            self.query.options = options
        self.patches.patch = min(self.patches.patch, view.patches - 1)

    def current(self) -> TokenView:
        """The numbers on the screen."""
        return self.subject.view(self.model.value, self.image)

    def asked(self) -> int | str:
        """The query: a patch, or a token by name."""
        return self.patches.patch if self.query.value == CHOSEN else str(self.query.value)

    def update(self) -> None:
        import pandas as pd

        self.fit()
        view, layer, head, query = self.current(), self.layer.value, self.head.value, self.asked()
        self.said.value = svg.sentence(self.subject.prediction(self.model.value, self.image))
        pixels, first = self.subject.pixels(self.image), len(view.prefix)
        rows = view.rows(layer, query)[:, first:]  # (H, n)
        rollout = view.rollout(layer)[view.token(query)][first:]
        scale = attention_colours.scale_of(rows, 1 / view.weights[layer].shape[-1], self.colours.value)
        one, mean = rows[head].reshape(view.grid), rows.mean(0).reshape(view.grid)
        rolled = attention_colours.heat(rollout.reshape(view.grid), max(float(rollout.max()), 1e-12))
        shown = {
            f"head {head}, over it": (attention_colours.laid_over(pixels, one, scale), one),
            "mean of the heads": (scale.colours(mean), mean),
            f"rollout, layers 0 to {layer}: from 0 to its largest": (rolled, rollout),
        }
        panels = [Panel(title, colours, 150, values) for title, (colours, values) in shown.items()]
        self.patches.scene = scene([Panel("picture", pixels, 150, lines=True), *panels], view.grid)
        small = 100 if len(rows) <= 8 else 70
        heads = [
            Panel(f"head {number}", scale.colours(row.reshape(view.grid)), small, row)
            for number, row in enumerate(rows)
        ]
        self.maps.scene = scene(heads, view.grid)
        self.scale.value = svg.heat_scale(scale, "attention to a patch")
        where = query if isinstance(query, str) else attention_views.place_name(query, view.grid)
        table = view.summary(layer, query)
        table["head"] = [str(number) for number in table["head"]]
        self.table.value = svg.table(
            pd.concat([table, pd.DataFrame([view.uniform(query)])]), f"what {where} attends to, head by head"
        ) + svg.sentence(ONE)

    def figure(self) -> Figure:
        pixels = self.subject.pixels(self.image)
        return attention_views.token_figure(
            self.current(), pixels, self.layer.value, self.asked(), self.model.value, self.colours.value
        )

    def numbers(self) -> "pd.DataFrame":
        return self.current().keys(self.layer.value, self.asked())
