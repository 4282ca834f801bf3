"""What the explorers look at: models, and pictures with or without labels."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dne_lab.analysis import views
from dne_lab.analysis.ablation import means_of
from dne_lab.analysis.cutter import Means
from dne_lab.analysis.images import evaluating
from dne_lab.analysis.maps import AttentionMap
from dne_lab.analysis.removal import Views, views_of
from dne_lab.data.stream import Batch
from dne_lab.errors import LabError
from dne_lab.models.expandable import ExpandableViT

REMEMBERED = 16  # maps kept, of one image each
MEANT = 256  # images over which attention is averaged
Images = Batch | Tensor


class Subject:
    """Models by name, and the images that they are shown.

    Args:
        models: networks that take images of one size.
        images: a `Batch`, such as ``stream.test_images(16)`` gives, or uint8 (B, C, H, W) without labels.
        names: of the classes by rank; default: their ranks.

    Raises:
        LabError: no image, images of another size, networks of different sizes, a network that `lab.probe` refuses.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], images: Images, names: Sequence[str] = (), tasks: Sequence[int] = ()
    ) -> None:
        if not models:
            raise LabError("there is no model to look at: give one, or a dictionary of several by name.")
        self.models: dict[str, ExpandableViT] = {name: views.find_network(model) for name, model in models.items()}
        shapes = {name: tuple(network.shape) for name, network in self.models.items()}
        if len(set(shapes.values())) > 1:
            raise LabError(f"the models take images of different sizes, {shapes}: explore them one at a time.")
        self.names = [str(name) for name in names]
        pixels, labels = (images.images, images.labels.tolist()) if isinstance(images, Batch) else (images, None)
        if not isinstance(pixels, Tensor) or not len(pixels):
            raise LabError("there is no image to look at: give stream.test_images(16), or a uint8 tensor (B, C, H, W).")
        for network in self.models.values():
            network.check(pixels)
        self.images: list[Tensor] = list(pixels.cpu())
        self.labels: list[int | None] = [None] * len(pixels) if labels is None else list(labels)
        self.told: list[str] = [""] * len(pixels)
        self._maps: dict[Any, AttentionMap] = {}
        self._scores: dict[Any, Tensor] = {}
        self._views: dict[Any, Views] = {}
        self._means: dict[Any, Means] = {}

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
        image, told = fit(content, self.shape)
        self.images.append(image)
        self.labels.append(None)
        self.told.append(f"{name}: {told}")
        return len(self.images) - 1

    def map(self, model: str, image: int, kind: str, layer: int, expert: int) -> AttentionMap:
        """One point's attention for one image; the last few are remembered."""
        key = (model, image, kind, layer, expert)
        if key not in self._maps:
            while len(self._maps) >= REMEMBERED:
                del self._maps[next(iter(self._maps))]
            self._maps[key] = views.read(self.models[model], self.images[image], kind, layer, expert)
        return self._maps[key]

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

    def name(self, rank: int) -> str:
        """A class in words."""
        return self.names[rank] if rank < len(self.names) else f"class {rank}"

    def prediction(self, model: str, image: int) -> str:
        """Prediction and truth of one image in words."""
        scores = self.scores(model, image)
        best = int(scores.argmax())
        share = float(scores.softmax(0)[best])
        label = self.labels[image]
        truth = "truth unknown" if label is None else f"truth {self.name(label)}"
        verdict = "" if label is None else (", right" if label == best else ", wrong")
        return f"{model} predicts {self.name(best)} (softmax {share:.2f}), {truth}{verdict}"


def fit(content: bytes, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """An image file as (C, H, W) uint8: the largest part of the right proportions from its middle, resized.

    Returns:
        the image, and what was done to it in words.

    Raises:
        LabError: not an image that Pillow reads.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    try:
        opened = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        colours = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise LabError(f"this file is no image that can be read ({error}): give a PNG, JPEG or the like.") from error
    fitted = ImageOps.fit(colours, (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted))
    image = pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
    same = colours.size == (width, height)
    told = "as it is" if same else f"fitted from {colours.size[0]} x {colours.size[1]} to {width} x {height} pixels"
    return image, told
