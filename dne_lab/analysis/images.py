"""Images for the instruments, batch by batch, and a network held in evaluation mode while they look at it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dne_lab.data.stream import Batch
from dne_lab.errors import LabError

Images = Tensor | Batch | Iterable[Tensor | Batch]


class Part(NamedTuple):
    """Images (B, C, H, W) as they were given, their numbers (B,) int64, and labels (B,) or None."""

    images: Tensor
    numbers: Tensor
    labels: Tensor | None


def parts(images: Images, size: int, spread: bool = False) -> Iterator[Part]:
    """Up to ``size`` images at a time, from a batch, a tensor or any number of them.

    Images without numbers of their own are numbered as they come.

    Args:
        spread: every part holds images from the whole length of the batch or tensor that it is cut from, in order, and
            no part one image alone (unless it was given alone; ``size`` 1 then means 2, and one more may come along):
            so of images that are sorted by class those half a part apart are about half the classes apart.

    Raises:
        LabError: something else, or no image at all (on reading the first).
    """
    if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1:
        raise LabError(f"batch_size = {size!r}: must be a whole number, at least 1.")
    given: Iterable[Tensor | Batch] = [images] if isinstance(images, Tensor | Batch) else images
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise LabError(
            f"images is a {type(images).__name__}: give stream.test_images(n), a tensor, or several of them."
        )
    seen = 0
    for some in given:
        if not isinstance(some, Tensor | Batch):
            raise LabError(f"images hold a {type(some).__name__}: give batches or tensors of shape (B, C, H, W).")
        pixels = some.images if isinstance(some, Batch) else some
        if pixels.dim() != 4:
            raise LabError(f"images have shape {tuple(pixels.shape)}: give (B, C, H, W); one image is image[None].")
        index = some.index if isinstance(some, Batch) else torch.arange(seen, seen + len(pixels))
        labels = some.labels if isinstance(some, Batch) else None
        seen += len(pixels)
        for few in _cuts(len(pixels), size, spread):
            yield Part(pixels[few], index[few], None if labels is None else labels[few])
    if not seen:
        raise LabError("there is no image to look at: the data set is empty.")


def _cuts(count: int, size: int, spread: bool) -> list[slice]:
    """Slices that take each of ``count`` things once."""
    if not spread:
        return [slice(at, at + size) for at in range(0, count, size)]
    steps = max(1, min(-(-count // size), count // 2))
    return [slice(at, None, steps) for at in range(steps)] if count else []


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode and no gradients inside; afterwards every module is as it was. Gives the network's device."""
    modes = [(module, module.training) for module in model.modules()]
    place = next(model.parameters(), torch.zeros(0)).device
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield place
    finally:
        for module, mode in modes:
            module.training = mode
