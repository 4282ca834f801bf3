"""What the explorers look at: models, at any moment of their runs, and pictures with or without labels."""

from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from dne_lab.analysis import views
from dne_lab.analysis.ablation import means_of
from dne_lab.analysis.head_table import Head, heads_of_image
from dne_lab.analysis.hosts import Entry, find_network
from dne_lab.analysis.maps import AttentionMap
from dne_lab.analysis.moments import Glance, Moments, glances, group_plans
from dne_lab.analysis.probe import evaluating
from dne_lab.analysis.removal import Means, Views, views_of
from dne_lab.analysis.views import Values
from dne_lab.core.errors import LabError, brief
from dne_lab.data import image_file
from dne_lab.data.stream import Batch
from dne_lab.models.expandable import ExpandableViT

REMEMBERED = 16  # maps kept, of one image each
GLANCES = 1000  # of one image at one moment that are remembered
TOGETHER = 4  # images looked at in one pass
HEADS = 4  # images whose heads are all remembered
MEANS = 8  # models, at one moment each, whose mean attention is remembered
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
        self.names = words_of(names)
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


def words_of(names: Any) -> list[str]:
    """Names of classes, by rank. Raises a `LabError` for what has no order or is one word."""
    if names is None:
        return []
    if isinstance(names, str | bytes | Mapping | Set) or not hasattr(names, "__len__"):
        raise LabError(f"names = {brief(names)}: give a list of words, the names of class 0, 1, 2 and so on.")
    return [str(name) for name in names]


def _labels(given: Any, images: int) -> list[int | None]:
    """A label for each image, or None for all. Raises a `LabError` for what are no labels of so many images."""
    if given is None:
        return [None] * images
    labels = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(labels, list | tuple) or len(labels) != images:
        count = f"{len(labels)} labels" if isinstance(labels, list | tuple) else f"labels = {brief(labels)}"
        raise LabError(f"{images} images and {count}: give a label for every image.")
    wrong = [one for one in labels if isinstance(one, bool) or not isinstance(one, int) or one < 0]
    if wrong:
        raise LabError(
            f"a label of {brief(wrong[0])}: must be a whole number from 0. Without labels give the images alone."
        )
    return list(labels)


class Subject(Shown):
    """Models by name, and the images that they are shown.

    Args:
        models: networks that take images of one size.
        images: a `Batch`, such as ``stream.test_images(16)`` gives, or uint8 (B, C, H, W) without labels.
        names: of the classes by rank; default: their ranks.
        moments: of the models that belong to runs, by name, see `go`.

    Raises:
        LabError: no image, images of another size, networks of different sizes, a network that `lab.probe` refuses.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        images: Images,
        names: Sequence[str] | None = (),
        moments: Mapping[str, Moments] | None = None,
    ) -> None:
        if not models:
            raise LabError("there is no model to look at: give one, or a dictionary of several by name.")
        self.models: dict[str, ExpandableViT] = {name: find_network(model, "explore") for name, model in models.items()}
        shapes = {name: tuple(network.shape) for name, network in self.models.items()}
        if len(set(shapes.values())) > 1:
            raise LabError(f"the models take images of different sizes, {shapes}: explore them one at a time.")
        pixels, labels = (images.images, images.labels) if isinstance(images, Batch) else (images, None)
        if not isinstance(pixels, Tensor) or not len(pixels):
            raise LabError("there is no image to look at: give stream.test_images(16), or a uint8 tensor (B, C, H, W).")
        known = _labels(labels, len(pixels))
        for network in self.models.values():
            network.check(pixels)
        super().__init__(list(pixels.cpu()), known, names)
        self.moments = dict(moments or {})
        self.moment = max(self.places, default=0)
        self._stamps: dict[str, Hashable] = {}  # which state a model is in: what was computed with another is not its
        self._changes = 0  # of models that learn
        self._plans = group_plans()
        self._glances: dict[Any, Glance] = {}
        self._heads: dict[Any, list[Head]] = {}
        self._maps: dict[Any, AttentionMap] = {}
        self._scores: dict[Any, Tensor] = {}
        self._views: dict[Any, Views] = {}
        self._means: dict[Any, Means] = {}

    def forget(self) -> None:
        super().forget()
        self.models.clear()
        self.moments.clear()
        for computed in (self._maps, self._scores, self._views, self._means, self._glances, self._heads):
            computed.clear()

    @property
    def places(self) -> list[int]:
        """The moments of the runs behind the models, in order; none where there are no runs."""
        return sorted({place for moments in self.moments.values() for place in moments.places})

    def moment_name(self, place: int) -> str:
        """A moment in words."""
        return next(moments.name(place) for moments in self.moments.values() if place in moments.places)

    def go(self, place: int) -> None:
        """From now on models are those of a moment, or of the last one before it that their run has.

        Raises:
            LabError: the file of a moment is gone or damaged; then nothing has changed.
        """
        last = {name: max(n for n in moments.places if n <= place) for name, moments in self.moments.items()}
        found = {name: find_network(self.moments[name].network(there), "explore") for name, there in last.items()}
        self.moment = place
        self.models |= found
        self._stamps |= {name: self._stamp(name, there) for name, there in last.items()}

    def changed(self) -> None:
        """A model that learns is no longer what it was."""
        self._changes += 1
        for computed in (self._scores, self._views, self._means):
            computed.clear()
        self.go(self.moment)

    def _stamp(self, model: str, place: int) -> Hashable:
        return place, self._changes if place == self.moments[model].learning else 0

    def stamp(self, model: str) -> Hashable:
        """Tells the states of a model apart."""
        return self._stamps.get(model)

    def glances(self, model: str, image: int) -> list[Glance]:
        """What one image gives at every moment of a model's run; images next to it are looked at in the same pass."""
        moments, found = self.moments[model], []
        for place in moments.places:
            stamp = self._stamp(model, place)
            if (model, stamp, image) not in self._glances:
                while len(self._glances) >= GLANCES:
                    del self._glances[next(iter(self._glances))]
                few = range(image - image % TOGETHER, min(image - image % TOGETHER + TOGETHER, len(self.images)))
                network = find_network(moments.network(place), "explore")
                made = glances(network, torch.stack([self.images[number] for number in few]), self._plans)
                self._glances |= {(model, stamp, number): one for number, one in zip(few, made, strict=True)}
            found.append(self._glances[model, stamp, image])
        return found

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(next(iter(self.models.values())).shape)  # type: ignore[return-value]

    def grid(self, model: str) -> tuple[int, int]:
        """(rows, columns) of patches of a model."""
        return self.models[model].grid

    def labelled(self, model: str) -> Batch | None:
        """All images that have a label among the classes that a model knows at this moment, or None."""
        known = len(self.scores(model, 0))
        places = [place for place, label in enumerate(self.labels) if label is not None and label < known]
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
        key = (model, self.stamp(model), image, kind, layer, expert)
        if key not in self._maps:
            while len(self._maps) >= REMEMBERED:
                del self._maps[next(iter(self._maps))]
            self._maps[key] = views.read(self.models[model], self.images[image], kind, layer, expert)
        return self._maps[key]

    def structure(self, model: str, image: int, kinds: tuple[str, ...]) -> dict[Entry, Values]:
        """How far from uniform each head's patches are, see `dne_lab.analysis.views.structure`."""
        return views.structure(self.models[model], self.images[image], kinds)

    def heads(self, model: str, image: int) -> list[Head]:
        """All heads of a model for one image; those of the last few are remembered."""
        key = (model, self.stamp(model), image)
        if key not in self._heads:
            while len(self._heads) >= HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[key] = heads_of_image(self.models[model], self.images[image])
        return self._heads[key]

    def connections(self, model: str) -> Views:
        """What each expert of a model looks at, remembered; a model that is still learning gets more experts."""
        network = self.models[model]
        key = (model, self.stamp(model), network.heads)
        if key not in self._views:
            self._views[key] = views_of(network)
        return self._views[key]

    def means(self, model: str) -> Means:
        """A model's mean attention over (at most 256 of) the images, remembered."""
        network = self.models[model]
        key = (model, self.stamp(model), network.heads)
        if key not in self._means:
            while len(self._means) >= MEANS:
                del self._means[next(iter(self._means))]
            step = -(-len(self.images) // MEANT)
            self._means[key] = means_of(network, torch.stack(self.images[::step]))
        return self._means[key]

    def scores(self, model: str, image: int) -> Tensor:
        """(classes,) logits of one image, remembered. Raises a `LabError` where they are not finite."""
        key = (model, self.stamp(model), image)
        if key not in self._scores:
            network = self.models[model]
            with evaluating(network) as device:
                scores = network(self.images[image][None].to(device)).logits[0].float().cpu()
            if not bool(torch.isfinite(scores).all()):
                raise LabError(
                    f"{model} computes values that are NaN or infinite: its training diverged, its weights are broken, "
                    "or half precision runs over, which model.float() does not. Look at another moment or model."
                )
            self._scores[key] = scores
        return self._scores[key]

    def prediction(self, model: str, image: int) -> str:
        """Prediction of one image in words, and the truth where it is known."""
        scores = self.scores(model, image)
        best = int(scores.argmax())
        share = float(scores.softmax(0)[best])
        label = self.labels[image]
        said = f"{model} predicts {self.name(best)} (softmax {share:.2f})"
        if label is None:
            return said
        verdict = "not learned yet" if label >= len(scores) else "right" if label == best else "wrong"
        return f"{said}, truth {self.name(label)}, {verdict}"


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
