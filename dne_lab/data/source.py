"""Where images come from: the one interface, uint8 everywhere (the model normalises)."""

from __future__ import annotations

import abc
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.core.config import CLASSES
from dne_lab.core.errors import LabError, brief, reason, unknown
from dne_lab.core.files import absolute

SPLITS = ("train", "test")
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Source(abc.ABC):
    """Named images with class numbers, in two splits.

    Attributes: ``name`` as in `dne_lab.core.config.Data`; ``classes`` the class names by class number; ``shape`` (C, H,
    W); ``mean`` and ``std`` one number per channel, in units of [0, 1]; ``path`` where it is, absolute, ``given`` the
    same as it was written, and ``size`` the side that images are brought to; ``from_files``: images are decoded when
    they are asked for, so that the next batch is worth fetching while one is learned from.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    path: str | None = None
    given: str | None = None
    size: int | None = None
    from_files: bool = False

    @abc.abstractmethod
    def labels(self, split: str) -> np.ndarray:
        """Class numbers of all images of a split, (n,) int64."""

    @abc.abstractmethod
    def images(self, split: str, index: Tensor) -> Tensor:
        """Images by number: index (B,) int64 -> (B, C, H, W) uint8 on the CPU."""

    def names(self, split: str) -> list[str]:
        """The files of the images of a split; none where they do not come in files of their own.

        "CLASS/FILE", or any other name that tells an image from the others of its class.
        """
        return []

    def stamps(self, split: str) -> np.ndarray:
        """By what an unchanged file is known without reading it, (n, 3) int64, or (0, 3)."""
        return np.zeros((0, 3), dtype=np.int64)

    def remember(  # noqa: B027  (nothing to do where images are in memory)
        self, split: str, names: list[str], stamps: np.ndarray, digests: np.ndarray
    ) -> None:
        """Digests that were computed before, of files with these stamps: saves reading them again."""

    def digests(self, split: str) -> np.ndarray:
        """A digest of each image of a split, (n, 8) uint8, computed once: of its pixels."""
        known: dict[str, np.ndarray] = self.__dict__.setdefault("_digests", {})
        if split not in known:
            parts = torch.arange(len(self.labels(split))).split(1024)
            found = [digest(image) for part in parts for image in np.ascontiguousarray(self.images(split, part))]
            known[split] = np.frombuffer(b"".join(found), dtype=np.uint8).reshape(len(found), -1)
        return known[split]

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return self  # never changes, and may be large: copies of a method that knows its stream share the images

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.labels(split)):,} {split}" for split in SPLITS)
        channels, height, width = self.shape
        return f"{self.name}: {len(self.classes)} classes, {sizes} images, {channels} x {height} x {width}"


def digest(content: bytes | np.ndarray) -> bytes:
    """8 bytes that tell one image from another."""
    return digest_of([content])


KEEP_BYTES = 1_000_000_000


class Kept:
    """Images that are decoded when asked for, and each once where all of them together take at most ``most`` bytes.

    Args:
        counts: images by split.
        shape: (C, H, W) of each.
        decode: a split and numbers (B,) -> (B, C, H, W) uint8.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        shape: tuple[int, int, int],
        most: int,
        decode: Callable[[str, Tensor], Tensor],
    ) -> None:
        self.decode = decode
        fits = sum(counts.values()) * int(np.prod(shape)) <= most
        kept = counts if fits else {}
        self.images = {split: torch.empty((count, *shape), dtype=torch.uint8) for split, count in kept.items()}
        self.known = {split: torch.zeros(count, dtype=torch.bool) for split, count in kept.items()}

    def __call__(self, split: str, index: Tensor) -> Tensor:
        """Images by number: index (B,) int64 -> (B, C, H, W) uint8."""
        index = index.cpu()
        if not self.images:
            return self.decode(split, index)
        missing = index[~self.known[split][index]].unique()
        if len(missing):
            self.images[split][missing] = self.decode(split, missing)
            self.known[split][missing] = True
        return self.images[split][index]


def usual_statistics(shape: tuple[int, int, int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of colour images (C, H, W) in files: ImageNet's, CIFAR-100's for 32 pixels, so that CIFAR-100
    is normalised alike wherever it comes from."""
    return (CIFAR_MEAN, CIFAR_STD) if shape[1:] == (32, 32) else (IMAGENET_MEAN, IMAGENET_STD)


def digest_of(pieces: Iterable[bytes | np.ndarray]) -> bytes:
    """`digest` of pieces that are read one after the other."""
    found = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        found.update(piece)  # type: ignore[arg-type]  # an array is a buffer too
    return found.digest()


def check_split(split: str) -> str:
    """``split`` itself, or an error that lists the splits."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return split


class ArraySource(Source):
    """Images in memory.

    Args:
        train_images, test_images: uint8, (n, H, W) grey, (n, H, W, C) or (n, C, H, W) with C = 1 or 3.
        train_labels, test_labels: integers (n,), class numbers 0..classes-1.
        class_names: one per class; the class numbers as text when left out.
        mean, std: one number per channel in units of [0, 1]; computed from the training images when left out.

    Raises:
        LabError: wrong type, shape or channels, labels out of range, a class without images.
    """

    def __init__(
        self,
        train_images: Any,
        train_labels: Any,
        test_images: Any,
        test_labels: Any,
        class_names: Sequence[str] | None = None,
        *,
        name: str = "arrays",
        path: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.name, self.given = name, path
        self.path = None if path is None else str(absolute(path))
        self._images = {"train": _images("train_images", train_images), "test": _images("test_images", test_images)}
        self._labels = {"train": _labels("train_labels", train_labels), "test": _labels("test_labels", test_labels)}
        for split in SPLITS:
            if len(self._images[split]) != len(self._labels[split]):
                raise LabError(
                    f"{split}: {len(self._images[split])} images, {len(self._labels[split])} labels: give one each."
                )
        shapes = [tuple(self._images[split].shape[1:]) for split in SPLITS]
        if shapes[0] != shapes[1]:
            raise LabError(f"training images are {shapes[0]} (C, H, W), test images {shapes[1]}: give one shape.")
        self.shape = (int(shapes[0][0]), int(shapes[0][1]), int(shapes[0][2]))
        self.classes = names_of_classes(numbers_in(self._labels["train"]) if class_names is None else class_names)
        check_labels(self._labels, self.classes)
        computed = channel_statistics(self._images["train"])
        self.mean = tuple(map(float, mean)) if mean is not None else computed[0]
        self.std = tuple(map(float, std)) if std is not None else computed[1]
        if len(self.mean) != self.shape[0] or len(self.std) != self.shape[0] or min(self.std) <= 0:
            raise LabError(f"mean = {self.mean}, std = {self.std}: give {self.shape[0]} numbers, std above 0.")

    def labels(self, split: str) -> np.ndarray:
        return self._labels[check_split(split)]

    def images(self, split: str, index: Tensor) -> Tensor:
        return self._images[check_split(split)][index.cpu()]


def numbers_in(labels: np.ndarray) -> range:
    """The class numbers of training labels (n,), where nobody gives names; a `LabError` for one that is too high."""
    highest = int(labels.max())
    if highest >= len(labels):
        raise LabError(
            f"train_labels go up to {highest:,}, but there are {len(labels):,} training images: classes are numbered "
            "from 0 on, and every one needs images."
        )
    return range(highest + 1)


def names_of_classes(names: Any) -> tuple[str, ...]:
    """Names as text, each of one class.

    Raises:
        LabError: no list of names (a text, a mapping, an array of another shape), more than a stream may have, two that
            are the same.
    """
    if isinstance(names, np.ndarray | Tensor):
        if names.ndim != 1:
            raise LabError(f"class_names has shape {tuple(names.shape)}: give one name per class, (classes,).")
    elif isinstance(names, str | bytes | Mapping | Set) or not isinstance(names, Collection):
        raise LabError(f"class_names = {brief(names)}: give one name per class, in a list.")
    if len(names) > CLASSES:
        raise LabError(f"class_names has {len(names):,} names: up to {CLASSES:,} classes are taken.")
    found = tuple(map(_class_name, names.tolist() if isinstance(names, np.ndarray | Tensor) else names))
    if len(set(found)) < len(found):
        twice = next(name for name, times in Counter(found).items() if times > 1)
        raise LabError(f"class_names: {brief(twice)} is the name of two classes. Give each a name of its own.")
    return found


def _class_name(name: Any) -> str:
    """Text, also of bytes (h5py, older NumPy); without the mark that some editors begin a file with, and composed.

    Halves of characters, which no file can hold, are written out.
    """
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    text = text.encode("utf-8", "backslashreplace").decode()
    return unicodedata.normalize("NFC", text.removeprefix("\ufeff"))


def _array(name: str, value: Any) -> np.ndarray:
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()  # NumPy has no bfloat16
        return np.asarray(value)
    except ValueError as error:
        raise LabError(
            f"{name}: not a rectangular array ({reason(error)}). All images must have the same size."
        ) from error
    except (TypeError, RuntimeError) as error:  # a tensor without storage, or with one that is not dense
        raise LabError(f"{name} is no array ({reason(error)}). Give a NumPy array or a dense tensor.") from error


def _images(name: str, value: Any) -> Tensor:
    """Any accepted layout as a (n, C, H, W) uint8 tensor."""
    array = _array(name, value)
    if array.dtype != np.uint8:
        raise LabError(
            f"{name} has type {array.dtype}: images must be uint8, 0..255. "
            "Floats in [0, 1]: (255 * images).round().astype('uint8')."
        )
    layouts = "(n, H, W) grey, (n, H, W, C) or (n, C, H, W) with C = 1 or 3"
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
        if first == last:
            why = "both could be the channels" if first else "neither axis 1 nor axis 3 is 1 or 3 channels"
            raise LabError(f"{name} has shape {array.shape}: {why}. Give {layouts}.")
        array = array.transpose(0, 3, 1, 2) if last else array
    else:
        raise LabError(f"{name} has shape {array.shape}. Give {layouts}.")
    if 0 in array.shape:
        raise LabError(f"{name} has shape {array.shape}: there are no images in it. Give {layouts}.")
    # a copy, so that a source never changes when the user's array does, and never shares read-only memory with torch
    return torch.from_numpy(array.copy(order="C"))


def _labels(name: str, value: Any) -> np.ndarray:
    array = _array(name, value)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise LabError(f"{name} has shape {array.shape} and type {array.dtype}: give one whole number per image, (n,).")
    return array.astype(np.int64)


def check_labels(labels: dict[str, np.ndarray], classes: Sequence[str], every_class: bool = True) -> None:
    """Every label is a class number and (``every_class``) every class has images in both splits, or a `LabError` that
    says which not."""
    for split in SPLITS:
        given = labels[split]
        if not isinstance(given, np.ndarray) or given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
            said = f"shape {given.shape}, {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
            raise LabError(f"{split} labels are {said}: give a NumPy array (n,) of whole numbers, one per image.")
        low, high = (int(given.min()), int(given.max())) if len(given) else (0, 0)
        if low < 0 or high >= len(classes):
            raise LabError(
                f"{split} labels run from {low} to {high}: {len(classes)} classes have 0..{len(classes) - 1}."
            )
        empty = np.flatnonzero(every_class & (np.bincount(labels[split], minlength=len(classes)) == 0))
        if len(empty):
            named = ", ".join(f"{c} ({classes[c]})" for c in empty[:5].tolist()) + (", ..." if len(empty) > 5 else "")
            raise LabError(f"classes without {split} images: {named}. Each class needs both; renumber without them.")


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (n, C, H, W) uint8 images, in units of [0, 1].

    From exact counts of the 256 values, so the same on every machine; a constant channel gets 1 as its deviation.
    """
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for part in images[:, channel].split(4096):
            counts += torch.bincount(part.flatten(), minlength=256).numpy()
        mean = float((counts * values).sum() / counts.sum())
        deviation = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
        means.append(mean)
        deviations.append(deviation if deviation > 0 else 1.0)
    return tuple(means), tuple(deviations)
