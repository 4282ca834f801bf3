"""Batches on the device. Of a stage in training, augmented: fetched one by one, or from images that stay on a GPU; and
clean ones, in a fixed order. What comes from files is decoded one batch ahead."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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

    On a CPU each batch is fetched and augmented by itself; from files the next one is decoded in the meantime. On a GPU
    all images of the stage are brought there once, and what their augmentation draws once per epoch: a step then copies
    B numbers from pinned memory and waits for nothing.

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
        self._worker: ThreadPoolExecutor | None = None  # decodes the next batch, in an epoch
        self._next: tuple[Tensor, Future[Batch]] | None = None

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
        with chance.ahead(self._numbers) as self.ahead, ExitStack() as ending:
            if self.stream.source.from_files and not self.resident:
                self._worker = ThreadPoolExecutor(1)
                ending.callback(self._stop)
            if self.resident:
                drawn = draw(self.recipe.augment, key, self._numbers, self.stream.shape, self.device)
                if not self._drawn:
                    self._drawn = drawn
                for old, new in zip(chain(*self._drawn), chain(*drawn), strict=True):
                    old.copy_(new)  # where a captured step looks for them
            yield
        self.ahead = None

    def _stop(self) -> None:
        """The worker ends with the epoch; what it has decoded is given up."""
        assert self._worker is not None
        self._worker.shutdown(cancel_futures=True)
        self._worker = self._next = None

    def batch(self, order: Tensor, following: Tensor | None = None) -> Batch:
        """The images ``order`` (B,) of the stage in an `epoch`; ``following``: those that will be asked for next."""
        if not self.resident:
            plain = self._plain(order)
            if self._worker is not None and following is not None:
                self._next = following, self._worker.submit(self.stream.batch, "train", following)
            return augmented(moved(plain, self.device), order, self.recipe, self._key)
        places = self.places(order)
        batch = self.at(places)
        if self.ahead is not None:
            self.ahead.name(batch.index, places)
        return batch

    def _plain(self, order: Tensor) -> Batch:
        """The images ``order`` on the CPU, as they are: those that were fetched ahead, or fetched now."""
        if self._next is not None and torch.equal(self._next[0], order):
            return self._next[1].result()
        return self.stream.batch("train", order)

    def places(self, order: Tensor) -> Tensor:
        """Where the images ``order`` (B,) stand among those that are resident, (B,) on the device."""
        return chance.upload(torch.searchsorted(self._numbers, order), self.device)

    def at(self, places: Tensor) -> Batch:
        """The resident images at ``places`` (B,), augmented: operations on the device alone."""
        drawn = [tuple(part[places] for part in parts) for parts in self._drawn]
        return Batch(apply(self._images[places], self.recipe.augment, drawn), self._labels[places], self._index[places])


def fetched(stream: ClassStream, order: Tensor, recipe: Recipe, key: chance.Key, device: torch.device) -> Batch:
    """One training batch by itself: the images ``order`` (B,), augmented, on the device."""
    return augmented(moved(stream.batch("train", order), device), order, recipe, key)


def augmented(batch: Batch, order: Tensor, recipe: Recipe, key: chance.Key) -> Batch:
    """The batch of the images ``order`` (B,) with the augmentations that ``key`` draws for them."""
    return batch._replace(images=augment(batch.images, recipe.augment, key, order)) if recipe.augment else batch


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device."""
    return Batch(*(chance.upload(tensor, device) for tensor in batch))


def clean(stream: ClassStream, split: str, index: Tensor, device: torch.device) -> Iterator[Batch]:
    """The images ``index`` (n,) as they are, on the device, in this order."""
    parts = index.split(CLEAN) if len(index) else ()
    if not stream.source.from_files:
        for part in parts:
            yield moved(stream.batch(split, part), device)
        return
    with ThreadPoolExecutor(1) as worker:
        waiting = [worker.submit(stream.batch, split, part) for part in parts[:1]]
        for number in range(len(parts)):
            batch = waiting.pop().result()
            waiting += [worker.submit(stream.batch, split, part) for part in parts[number + 1 : number + 2]]
            yield moved(batch, device)
