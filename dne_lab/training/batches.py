"""Images on their way to the device: in the order of an epoch, augmented, or plain for everything else."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dne_lab import chance
from dne_lab.config import Recipe
from dne_lab.data.augment import augment
from dne_lab.data.stream import Batch, ClassStream

CLEAN = 256  # images a batch where nothing trains: fixed, so that herding does not depend on the recipe


def training(stream: ClassStream, order: Tensor, recipe: Recipe, key: chance.Key, device: torch.device) -> Batch:
    """One training batch: the images ``order`` (B,), augmented, on the device."""
    batch = _to(stream.batch("train", order), device)
    return batch._replace(images=augment(batch.images, recipe.augment, key, order)) if recipe.augment else batch


def clean(stream: ClassStream, split: str, index: Tensor, device: torch.device) -> Iterator[Batch]:
    """The images ``index`` (n,) as they are, in this order."""
    for part in index.split(CLEAN) if len(index) else ():
        yield _to(stream.batch(split, part), device)


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cuda":
        return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in batch))
    return Batch(*(tensor.to(device) for tensor in batch))
