"""Which classes and images a run has learned from, so that others in the same place are noticed and named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.data.source import SPLITS, Source
from dne_lab.data.stream import ClassStream

WORDS = {"train": "training", "test": "test"}
NAMED = 3  # classes and images that a message names; of more it gives the number


@dataclass(frozen=True)
class Images:
    """The images of a source as they were at one time.

    Attributes: ``source`` its name, ``classes`` the class names by number, and by split ``labels`` (n,) int64,
    ``files`` (n names, or none where images do not come in files), ``stamps`` (n, 3) or (0, 3) int64, and ``digests``
    (n, 8) uint8; see `Source`.
    """

    source: str
    classes: tuple[str, ...]
    labels: dict[str, np.ndarray]
    files: dict[str, list[str]]
    stamps: dict[str, np.ndarray]
    digests: dict[str, np.ndarray]

    @classmethod
    def of(cls, source: Source, before: Images | None = None) -> Images:
        """Those of a source now. What is known from ``before`` about files that have not changed is not read again.

        Raises:
            LabError: a file that cannot be read, or is truncated.
        """
        if before is not None:
            before.remember(source)
        return cls(
            source.name,
            source.classes,
            {split: source.labels(split) for split in SPLITS},
            {split: source.names(split) for split in SPLITS},
            {split: source.stamps(split) for split in SPLITS},
            {split: source.digests(split) for split in SPLITS},
        )

    def remember(self, source: Source) -> None:
        """Tells a source what is known of its files: those that have not changed need not be read again."""
        for split in SPLITS:
            if len(self.stamps[split]) == len(self.files[split]) == len(self.digests[split]):
                source.remember(split, self.files[split], self.stamps[split], self.digests[split])

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able rest, for a file; `from_parts` is the inverse."""
        tensors = {
            f"{split}/{name}": torch.from_numpy(np.array(values[split]))
            for split in SPLITS
            for name, values in (("labels", self.labels), ("stamps", self.stamps), ("digests", self.digests))
        }
        return tensors, {"source": self.source, "classes": list(self.classes), "files": self.files}

    @classmethod
    def from_parts(cls, tensors: dict[str, Tensor], info: dict[str, Any]) -> Images:
        """From what `parts` gave.

        Raises:
            KeyError, TypeError: something else.
        """
        labels, stamps, digests = (
            {split: tensors[f"{split}/{name}"].numpy() for split in SPLITS} for name in ("labels", "stamps", "digests")
        )
        files = {split: [str(name) for name in info["files"][split]] for split in SPLITS}
        return cls(info["source"], tuple(info["classes"]), labels, files, stamps, digests)

    def keys(self, split: str, classes: Mapping[int, int] | None = None) -> list[tuple[Any, ...]]:
        """What an image is found again by: class and file below the class's folder, or class and digest.

        ``classes``: the numbers that stand for those of the classes.
        """
        labels = self.labels[split].tolist()
        if classes is not None:
            labels = [classes[label] for label in labels]
        if self.files[split]:
            return [
                (label, name.partition("/")[2] or name) for label, name in zip(labels, self.files[split], strict=True)
            ]
        own = [digest.tobytes() for digest in self.digests[split]]
        return list(zip(labels, own, strict=True))

    def name(self, split: str, number: int) -> str:
        """An image in words."""
        if self.files[split]:
            return self.files[split][number]
        return f"number {number} (class {self.classes[self.labels[split][number]]})"


def other_classes(there: Sequence[str], here: Sequence[str]) -> list[str]:
    """Which classes are gone or new ``here``, in words, as far as names say it."""
    gone, new = ([repr(name) for name in one if name not in other] for one, other in ((there, here), (here, there)))
    count = [f"{len(there)} classes there, {len(here)} here"] if len(there) != len(here) else []
    kinds = (("is gone", gone), ("is new", new))
    return count + [f"class {_some(names)} {how}" for how, names in kinds if names]


def _same_classes(there: Images, here: Images) -> dict[int, int]:
    """The number ``there`` of each class ``here``: the one with its name, else one that is called otherwise but has its
    images, or, among as many classes, its number. A new class gets a number that no class has there."""
    old = {name: number for number, name in enumerate(there.classes)}
    if len(old) < len(there.classes) or len(set(here.classes)) < len(here.classes):  # of arrays: as they are numbered
        return {number: number for number in range(len(here.classes))}
    found = {number: old[name] for number, name in enumerate(here.classes) if name in old}
    for number in range(len(here.classes)):
        if number not in found:
            left = [one for one in old.values() if one not in found.values()]
            mine = _content(here, number)
            alike = (one for one in left if _content(there, one) == mine)
            same_number = number if number in left and len(old) == len(here.classes) else None
            partner = next(alike, same_number)
            found[number] = len(old) + number if partner is None else partner
    return found


def _content(images: Images, number: int) -> list[bytes]:
    """The digests of a class's images of both splits, sorted."""
    every = (images.digests[split][images.labels[split] == number] for split in SPLITS)
    return sorted(digest.tobytes() for digests in every for digest in digests)


def in_order(there: Images, here: Images) -> bool:
    """Whether classes that are both there and ``here`` have the same numbers."""
    return all(one == other for one, other in _same_classes(there, here).items() if other < len(there.classes))


def unlike(there: Images, here: Images) -> list[str]:
    """In what the images ``here`` are not those ``there``, in words; nothing where they are the same."""
    same, count = _same_classes(there, here), len(there.classes)
    called = [there.classes[same[n]] if same[n] < count else name for n, name in enumerate(here.classes)]
    found = other_classes(there.classes, called)
    renamed = [(one, other) for one, other in zip(called, here.classes, strict=True) if one != other]
    if renamed:
        found.append(_some([f"class {one!r} is called {other!r} here" for one, other in renamed]))
    if not in_order(there, here):
        found.append("the classes come in another order")
    for split in SPLITS:
        found += _unlike_images(there, here, split, same)
    return found


def _unlike_images(there: Images, here: Images, split: str, same: dict[int, int]) -> list[str]:
    """`unlike` of a split; images of classes that are gone or new as a whole are not named."""
    word, before, now = WORDS[split], there.digests[split], here.digests[split]
    labels = np.array([same[label] for label in here.labels[split].tolist()], dtype=np.int64)
    if np.array_equal(before, now) and np.array_equal(there.labels[split], labels):
        return []
    if there.files[split] and here.files[split]:
        known = set(same.values()) & set(range(len(there.classes)))
        old = {key: number for number, key in enumerate(there.keys(split)) if key[0] in known}
        new = {key: number for number, key in enumerate(here.keys(split, same)) if key[0] in known}
        gone = [there.name(split, number) for key, number in old.items() if key not in new]
        added = [here.name(split, number) for key, number in new.items() if key not in old]
        both = [(old[key], new[key]) for key in old if key in new]
        changed = [here.name(split, n) for o, n in both if before[o].tobytes() != now[n].tobytes()]
        kinds = (("is gone", gone), ("is new", added), ("has other content", changed))
        return [f"of the {word} images {_some(names)} {how}" for how, names in kinds if names]
    if len(before) != len(now):
        return [f"{len(before):,} {word} images there, {len(now):,} here"]
    if sorted(there.keys(split)) == sorted(here.keys(split, same)) and not here.files[split]:
        return [f"the {word} images come in another order"]
    other = np.flatnonzero((before != now).any(axis=1) | (there.labels[split] != labels))
    return [f"{len(other):,} of {len(now):,} {word} images are others, the first is {here.name(split, int(other[0]))}"]


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def numbers_now(there: Images, here: Images, split: str) -> np.ndarray:
    """Where the images of a split ``there`` are ``here``: (n there,) int64, -1 for one that is gone.

    An image is the same one if it lies in the same file of the same class; where there are no files, if class and
    pixels are the same.
    """
    places: dict[tuple[Any, ...], list[int]] = {}
    for number, key in enumerate(here.keys(split)):
        places.setdefault(key, []).append(number)
    found = []
    for key in there.keys(split):
        waiting = places.get(key)
        found.append(waiting.pop(0) if waiting else -1)
    return np.array(found, dtype=np.int64)


def fingerprint(stream: ClassStream) -> dict[str, Any]:
    """Tells streams apart, JSON-able: names, sizes, hashes of all labels and of the images; computed once a stream.

    Raises:
        LabError: a file that cannot be read, or is truncated.
    """
    known: dict[str, Any] | None = stream.__dict__.get("_fingerprint")
    if known is None:
        known = {"name": stream.name, "tasks": list(stream.tasks), "shape": list(stream.shape)}
        for split in SPLITS:
            index = stream.index(split, range(stream.classes))
            labels = torch.stack([index, stream.labels(split, index)]).numpy().astype("<i8")
            known |= {split: len(index), f"{split}_labels": _hash([labels.tobytes()])}
            behind = stream.source.digests(stream.split_behind(split))
            known[f"{split}_images"] = _hash([behind[index.numpy()].tobytes()])
        known["class_names"] = _hash(name.encode("utf-8", "surrogatepass") + b"\0" for name in stream.class_names)
        stream.__dict__["_fingerprint"] = known
    return dict(known)


YOUNGER = ("train_images", "test_images", "class_names")  # what fingerprints of older runs do not have


def data_sha256(stream: ClassStream) -> str:
    """One hash of the class names and images of a stream, in whatever tasks they come."""
    known = fingerprint(stream)
    return _hash(known[name].encode() for name in YOUNGER)


def images_sha256(stream: ClassStream) -> str:
    """One hash of the images of a stream and of the names of its classes, in whatever order and tasks these come."""
    known = fingerprint(stream)
    names = [stream.source.classes[number] for number in sorted(stream.order)]
    parts = [known["train_images"], known["test_images"], *names]
    return _hash(part.encode("utf-8", "surrogatepass") + b"\0" for part in parts)


def _hash(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]
