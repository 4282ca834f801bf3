"""Images that another library gives by number: any `torch.utils.data.Dataset`, any data set of the Hugging Face Hub.

Both become a `NumberedSource`: labels are known at once, an image is asked for when it is needed, and kept where all of
them fit into memory. The same number must always give the same image; augmentation is the trainer's.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dne_lab.core.errors import LabError, brief, reason
from dne_lab.data import image_file
from dne_lab.data.source import (
    KEEP_BYTES,
    SPLITS,
    Kept,
    Source,
    channel_statistics,
    check_labels,
    check_split,
    names_of_classes,
    numbers_in,
    usual_statistics,
)

TWICE = 16  # images of each split that are read twice, to see whether they change
GREY = 4096  # grey images, spread over all training images, whose mean and deviation stand for them


class NumberedSource(Source):
    """Images by number from two functions.

    Args:
        read: by split, the image of a number: a Pillow image, (H, W), (H, W, C) or (C, H, W) uint8, or a float tensor
            in [0, 1] (what torchvision's ToTensor makes).
        labels: by split, (n,) class numbers.
        classes: one name per class.
        name, path: as a configuration has them.
        size: the shorter side is brought to this many pixels (bicubic), then the centre is cropped. Without it all
            images must have one size; one of another size is an error when it is met.
        keep: decoded images stay in memory when all of them together take at most this many bytes.

    Pillow images become RGB as those of a folder do. Mean and deviation are ImageNet's, CIFAR-100's for 32 pixels, and
    for grey images (one channel) their own.

    Raises:
        LabError: labels that are none, an image that changes from one look to the next, or that is none.
    """

    def __init__(
        self,
        read: Mapping[str, Callable[[int], Any]],
        labels: dict[str, np.ndarray],
        classes: Sequence[Any],
        *,
        name: str,
        path: str | None = None,
        size: int | None = None,
        keep: int = KEEP_BYTES,
    ) -> None:
        image_file.check_size(size)
        self.name, self.path, self.given, self.size = name, path, path, size
        self.classes = names_of_classes(classes)
        check_labels(labels, self.classes)
        self._read, self._labels = read, {split: labels[split].astype(np.int64) for split in SPLITS}
        first = self._pixels("train", 0, None)
        self.shape = (int(first.shape[0]), int(first.shape[1]), int(first.shape[2]))
        self._check_constant()
        self._kept = Kept({split: len(some) for split, some in self._labels.items()}, self.shape, keep, self._decode)
        if self.shape[0] == 1:
            self.mean, self.std = channel_statistics(
                self.images("train", torch.from_numpy(self._spread("train", GREY)))
            )
        else:
            self.mean, self.std = usual_statistics(self.shape)

    def labels(self, split: str) -> np.ndarray:
        return self._labels[check_split(split)]

    def images(self, split: str, index: Tensor) -> Tensor:
        return self._kept(check_split(split), index)

    def _spread(self, split: str, most: int) -> np.ndarray:
        """Numbers of at most so many images at equal distances."""
        return np.unique(np.linspace(0, len(self._labels[split]) - 1, most).astype(np.int64))

    def _check_constant(self) -> None:
        """Reads some images twice: one that is mirrored in half of all cases may look alike once."""
        for split in SPLITS:
            for number in self._spread(split, TWICE).tolist():
                if not torch.equal(*(self._pixels(split, number, self.shape) for _ in range(2))):
                    raise LabError(
                        f"{self.name}: {split} image {number} is another one each time that it is read. Leave random "
                        "transforms out of the data set: images are augmented in training (learn.augment)."
                    )

    def _decode(self, split: str, index: Tensor) -> Tensor:
        images = torch.empty((len(index), *self.shape), dtype=torch.uint8)
        for row, number in zip(images, index.tolist(), strict=True):
            row.copy_(self._pixels(split, number, self.shape))
        return images

    def _pixels(self, split: str, number: int, shape: tuple[int, int, int] | None) -> Tensor:
        """One image as (C, H, W) uint8; of the common ``shape`` where that is known."""
        where = f"{self.name}, {split} image {number}"
        try:
            image = self._read[split](number)
        except LabError:
            raise
        except Exception as error:  # of code that is not ours
            raise LabError(f"{where} cannot be read: {type(error).__name__}: {reason(error)}") from error
        pixels = self._fitted(as_pixels(image, where))
        if shape is not None and tuple(pixels.shape) != shape:
            raise LabError(
                f"{where} is {tuple(pixels.shape)} (C, H, W), the first image {shape}. Pass size (data.size), e.g. "
                "224, to bring all images to one size; all must have as many channels."
            )
        return pixels

    def _fitted(self, pixels: Tensor) -> Tensor:
        if self.size is None or tuple(pixels.shape[1:]) == (self.size, self.size):
            return pixels
        from PIL import Image

        planes = pixels[0] if pixels.shape[0] == 1 else pixels.permute(1, 2, 0)  # (C, H, W) -> (H, W) or (H, W, C)
        fitted = np.array(image_file.fitted(Image.fromarray(planes.numpy()), self.size, self.size))
        return as_pixels(fitted, self.name)


def as_pixels(image: Any, where: str) -> Tensor:
    """An image of any accepted kind as (C, H, W) uint8; ``where`` is how a `LabError` calls it."""
    if hasattr(image, "convert") and hasattr(image, "getexif"):  # Pillow's, which need not be imported to know
        image = np.array(image_file.to_rgb(image, where))
    if not isinstance(image, np.ndarray | Tensor):
        raise LabError(f"{where} is a {type(image).__name__}: give a Pillow image, a NumPy array or a tensor.")
    try:  # a copy, which may be written to, whatever the order of the axes
        array = torch.from_numpy(np.array(image, order="C")) if isinstance(image, np.ndarray) else image.detach().cpu()
        within = not array.is_floating_point() or bool(((array >= 0) & (array <= 1)).all())
    except (TypeError, ValueError, RuntimeError) as error:  # of a type that PyTorch lacks, sparse, without storage
        raise LabError(f"{where} is no plain array of numbers ({reason(error, 120)}): give uint8, 0..255.") from error
    if array.is_floating_point():
        if not within:
            raise LabError(
                f"{where} has numbers outside [0, 1]: leave normalisation out of the data set (the model normalises), "
                "or give uint8, 0..255."
            )
        array = (array * 255).round().to(torch.uint8)
    if array.dtype != torch.uint8:
        raise LabError(f"{where} has type {array.dtype}: give uint8, 0..255, or floats in [0, 1].")
    if array.ndim == 2:
        array = array[None]  # (H, W) -> (1, H, W)
    elif array.ndim == 3 and array.shape[0] not in (1, 3) and array.shape[2] in (1, 3):
        array = array.permute(2, 0, 1)  # (H, W, C) -> (C, H, W)
    if array.ndim != 3 or array.shape[0] not in (1, 3) or 0 in array.shape:
        raise LabError(f"{where} has shape {tuple(array.shape)}: give (H, W), (H, W, C) or (C, H, W) with C = 1 or 3.")
    return array.contiguous()


# Any data set of PyTorch ----------------------------------------------------------------------------------------------


def of_torch(train: Dataset[Any], test: Dataset[Any], size: int | None = None) -> NumberedSource:
    """Two data sets whose items are (image, label), as torchvision's are: the images as they are without random
    transforms.

    Labels come from ``targets``, ``labels`` or ``_labels`` where there is such a list, else every item is read once;
    class names from ``classes``, else they are the numbers.

    Raises:
        LabError: no length, items that are no pairs, labels that are no whole numbers, other classes in the test set.
    """
    sets = dict(zip(SPLITS, (train, test), strict=True))
    labels = {split: _labels_of(one, split) for split, one in sets.items()}
    named = {split: _list_in(one, "classes", list | tuple) or () for split, one in sets.items()}
    if all(named.values()) and [*map(brief, named["train"])] != [*map(brief, named["test"])]:
        pairs = enumerate(itertools.zip_longest(*([*map(brief, names)] for names in named.values())))
        number, (one, other) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
        raise LabError(
            f"class {number} is {one or 'not there'} in the training set and {other or 'not there'} in the test set "
            "(their `classes`): give both sets the same classes in the same order."
        )
    names = named["train"] or numbers_in(labels["train"])
    read = {split: partial(_image_of, one) for split, one in sets.items()}
    return NumberedSource(read, labels, names, name="dataset", size=size)


def _image_of(data: Dataset[Any], number: int) -> Any:
    return data[number][0]


def _list_in(data: Dataset[Any], name: str, kinds: Any) -> Any:
    """An attribute of a data set, if it is one of these kinds of lists."""
    try:
        found = getattr(data, name, None)
    except Exception:  # of code that is not ours: computed, and not to be had; the items say what is needed
        return None
    return found if isinstance(found, kinds) else None


def _labels_of(data: Dataset[Any], split: str) -> np.ndarray:
    try:
        count = len(data)  # type: ignore[arg-type]
    except Exception as error:  # of code that is not ours
        raise LabError(
            f"the {split} data set has no length ({reason(error, 120)}): give one whose items have numbers, with "
            "__len__ and __getitem__."
        ) from error
    if not count:
        raise LabError(f"the {split} data set is empty.")
    for name in ("targets", "labels", "_labels"):
        given = _list_in(data, name, list | tuple | np.ndarray | Tensor)
        if given is not None and len(given) == count and _are_those(data, given):
            break
    else:
        given = [_label(data, number, split) for number in range(count)]
    found = np.asarray(given)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise LabError(f"the {split} labels are {found.dtype} of shape {found.shape}: give one whole number an image.")
    return found.astype(np.int64)


def _are_those(data: Dataset[Any], labels: Any) -> bool:
    """Whether a list holds what the items say: not under a ``target_transform``."""
    spread = {round(share * (len(labels) - 1)) for share in np.linspace(0, 1, min(8, len(labels)))}
    try:
        return all(_label(data, number, "") == _whole(labels[number]) for number in spread)
    except (TypeError, ValueError, RuntimeError):  # a list of something else; each item says what is wrong
        return False


def _whole(label: Any) -> int:
    return operator.index(label.item() if hasattr(label, "item") else label)


def _label(data: Dataset[Any], number: int, split: str) -> int:
    where = f"{split} item {number}"
    try:
        item = data[number]
    except Exception as error:  # of code that is not ours
        raise LabError(f"{where} cannot be read: {type(error).__name__}: {reason(error)}") from error
    try:
        if isinstance(item, Mapping | str | bytes):  # would be taken apart too
            raise TypeError
        _, label = item
    except (TypeError, ValueError) as error:
        raise LabError(f"{where} is {_shown(item)}: give pairs (image, whole number).") from error
    try:
        return _whole(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LabError(
            f"the label of {where} is {brief(label)}: give a whole number, of its class (of a vector: .argmax())."
        ) from error


def _shown(item: Any) -> str:
    """What an item is, in words."""
    kind = type(item).__name__
    if isinstance(item, Mapping):
        return f"a {kind} with {', '.join(brief(key) for key in list(item)[:3])}"
    return f"a {kind} of {len(item)}" if isinstance(item, tuple | list) else f"a {kind}"
