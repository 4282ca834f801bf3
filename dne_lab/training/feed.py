"""Batches on the device. Of a stage in training, augmented: fetched one by one, or from images that stay on a GPU; and
clean ones, in a fixed order."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor

from dne_lab.core import chance
from dne_lab.core.config import Recipe
from dne_lab.data.augment import Drawn, apply, augment, draw
from dne_lab.data.stream import Batch, ClassStream

SHARE = 4  # images stay on a GPU where they take no more than one part in four of its free memory
AT_ONCE = 1024  # images that are brought there together
CLEAN = 256  # images per batch where nothing trains: fixed, so that herding does not depend on the recipe


class Feed:
    """Batches of the images ``index`` (n,) of a stage.

    On a CPU each batch is fetched and augmented by itself. On a GPU all images of the stage are brought there once, and
    what their augmentation draws once per epoch: a step then copies B numbers from pinned memory and waits for nothing.

    Args:
        stream, index: where the images are, and their numbers among its training images.
        recipe: names the augmentations.
        device: where batches are wanted.
        resident: whether the images stay on the device; default: on a GPU, where they fit (`SHARE`).
    """

    def __init__(
        self, stream: ClassStream, index: Tensor, recipe: Recipe, device: torch.device, resident: bool | None = None
    ) -> None:
        self.stream, self.recipe, self.device = stream, recipe, device
        self._numbers = index.cpu().unique()  # sorted
        if resident is None:
            resident = device.type == "cuda" and self._bytes * SHARE <= torch.cuda.mem_get_info(device)[0]
        self.resident = resident
        self._images = self._labels = self._index = torch.empty(0)
        if resident:
            self._bring()
        self._key: chance.Key = ()
        self._drawn: list[Drawn] = []
        self.ahead: chance.Images | None = None  # of the running epoch

    @property
    def _bytes(self) -> int:
        return len(self._numbers) * torch.Size(self.stream.shape).numel()

    def _bring(self) -> None:
        self._images = torch.empty((len(self._numbers), *self.stream.shape), dtype=torch.uint8, device=self.device)
        for here, part in zip(self._images.split(AT_ONCE), self._numbers.split(AT_ONCE), strict=True):
            here.copy_(self.stream.images("train", part))
        self._labels = self.stream.labels("train", self._numbers).to(self.device)
        self._index = self._numbers.to(self.device)

    @contextmanager
    def epoch(self, key: chance.Key) -> Iterator[None]:
        """Inside, batches are augmented as ``key`` draws it, and stochastic depth draws for all images at once."""
        self._key = key
        with chance.ahead(self._numbers) as self.ahead:
            if self.resident:
                drawn = draw(self.recipe.augment, key, self._numbers, self.stream.shape, self.device)
                if not self._drawn:
                    self._drawn = drawn
                for old, new in zip(chain(*self._drawn), chain(*drawn), strict=True):
                    old.copy_(new)  # where a captured step looks for them
            yield
        self.ahead = None

    def batch(self, order: Tensor) -> Batch:
        """The images ``order`` (B,) of the stage in an `epoch`."""
        if not self.resident:
            return fetched(self.stream, order, self.recipe, self._key, self.device)
        places = self.places(order)
        batch = self.at(places)
        if self.ahead is not None:
            self.ahead.name(batch.index, places)
        return batch

    def places(self, order: Tensor) -> Tensor:
        """Where the images ``order`` (B,) stand among those that are resident, (B,) on the device."""
        return chance.upload(torch.searchsorted(self._numbers, order), self.device)

    def at(self, places: Tensor) -> Batch:
        """The resident images at ``places`` (B,), augmented: operations on the device alone."""
        drawn = [tuple(part[places] for part in parts) for parts in self._drawn]
        return Batch(apply(self._images[places], self.recipe.augment, drawn), self._labels[places], self._index[places])


def fetched(stream: ClassStream, order: Tensor, recipe: Recipe, key: chance.Key, device: torch.device) -> Batch:
    """One training batch by itself: the images ``order`` (B,), augmented, on the device."""
    batch = moved(stream.batch("train", order), device)
    return batch._replace(images=augment(batch.images, recipe.augment, key, order)) if recipe.augment else batch


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device."""
    return Batch(*(chance.upload(tensor, device) for tensor in batch))


def clean(stream: ClassStream, split: str, index: Tensor, device: torch.device) -> Iterator[Batch]:
    """The images ``index`` (n,) as they are, on the device, in this order."""
    for part in index.split(CLEAN) if len(index) else ():
        yield moved(stream.batch(split, part), device)
